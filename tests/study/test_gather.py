import dataclasses

import numpy as np
import pytest

from promptvit.analysis.feature_stats import FeatureSpace, FeatureStats
from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.study.gather import Threshold, linear_probe, options, similar

LIMIT = Threshold(fingerprint="space", images=50, low=0.5, high=1.0, origin="a test")


def stats(mean, count=50, fingerprint="space"):
    rows = np.random.default_rng(count).normal(mean, 1.0, (count, 4))
    return FeatureStats.of(rows, space=FeatureSpace(fingerprint=fingerprint))


@pytest.mark.parametrize(
    ("mean", "known", "said"),
    [(0.0, "similar", "below 0.500, a test"), (3.0, "dissimilar", "above 1.000, a test"), (0.9, "unknown", "between")],
)
def test_an_interval_beyond_a_threshold_tells(mean, known, said):
    found, reason = similar(stats(mean), stats(0.0, 100), [LIMIT])
    assert found == known
    assert said in reason


@pytest.mark.parametrize("changes", [{"images": 49}, {"fingerprint": "other"}])
def test_thresholds_of_another_number_or_space_decide_nothing(changes):
    found, reason = similar(stats(0.0), stats(0.0, 100), [dataclasses.replace(LIMIT, **changes)])
    assert found == "unknown"
    assert "no threshold for this backbone at this number" in reason
    assert similar(stats(0.0, fingerprint="other"), stats(0.0, 100), [LIMIT])[0] == "unknown"


def test_the_probe_is_of_classes_with_an_image_for_every_fold():
    labels = np.repeat([0, 1, 2], [20, 20, 4])
    features = np.random.default_rng(0).normal(0.0, 0.1, (44, 3)) + 5 * np.eye(3)[labels]
    found = linear_probe(features, labels)
    assert found is not None
    assert found.accuracy == 1.0
    assert found.low == pytest.approx(40 / (40 + 1.959964**2), abs=1e-6)  # Wilson's, of 40 right of 40
    assert linear_probe(features, np.repeat([0, 2], [40, 4])) is None


def test_options_are_what_is_not_the_default():
    data, source = DataConfig(source="my birds", images=50), BackboneSource(image_size=16)
    assert options(data, source) == (
        *("--data", "my birds", "--backbone", "vit_pico"),
        *("--data.images=50", "--backbone.image_size=16"),
    )
