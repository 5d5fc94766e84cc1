import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import promptvit as pv
from promptvit.analysis.layers import SplitLayers
from promptvit.analysis.probes import knn_probe, layer_probes, linear_probe, probe_layers
from promptvit.data.config import DataConfig
from promptvit.errors import DataError
from promptvit.preprocessing import Preprocessing

LABELS = np.arange(60) % 3


@pytest.fixture
def clusters():
    """Training and validation rows of three classes that overlap, far from the origin, with axes of unlike scales."""
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(3, 5))
    scales = np.array([1, 10, 100, 0.1, 1])
    return [(middles[LABELS] + generator.normal(size=(60, 5)) + 2) * scales for _ in range(2)]


def test_the_linear_probe_is_logistic_regression_on_standardised_features(clusters):
    train, val = clusters
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    classifier = LogisticRegression(C=0.01, max_iter=10_000).fit((train - mean) / deviation, LABELS)
    expected = np.mean(classifier.predict((val - mean) / deviation) == LABELS)
    assert linear_probe(train, LABELS, val, LABELS) == pytest.approx(expected)
    assert 0.4 < expected < 1


@pytest.mark.parametrize("count", [60, 12])
def test_the_knn_probe_is_the_majority_of_the_nearest(count, clusters):
    train, val = clusters
    labels, right = LABELS[:count], 0
    for row, label in zip(val, LABELS, strict=True):
        similar = [row @ each / np.linalg.norm(row) / np.linalg.norm(each) for each in train[:count]]
        votes = np.bincount(labels[np.argsort(similar)[::-1][:20]], minlength=3)
        right += votes.argmax() == label
    assert knn_probe(train[:count], labels, val, LABELS) == pytest.approx(right / 60)


def split(rows, *, constant=False):
    cls = [np.ones((60, 5)) if constant else rows, rows]
    return SplitLayers(before={"cls": cls}, after={"cls": [rows, rows[:, :2]]}, labels=LABELS)


def test_each_depth_has_its_accuracy_unless_its_row_never_changes(clusters):
    train, val = clusters
    found = probe_layers(split(train, constant=True), split(val, constant=True))
    linear, knn = linear_probe(train, LABELS, val, LABELS), knn_probe(train, LABELS, val, LABELS)
    assert found["before"] == {"cls": {"linear": [None, linear], "knn": [None, knn]}}
    assert found["after"]["cls"]["linear"] == [linear, linear_probe(train[:, :2], LABELS, val[:, :2], LABELS)]


def test_a_task_is_probed_before_and_after(make_vit):
    backbone = pv.from_timm(make_vit(depth=2).float(), preprocessing=Preprocessing(size=(16, 16)))
    found = layer_probes(pv.tune(backbone, pv.VPT(length=2), 10), backbone, DataConfig(), images=80)
    for moment in ("before", "after"):
        assert [len(found[moment][row][probe]) for row in ("cls", "patch") for probe in ("linear", "knn")] == [3] * 4
        assert found[moment]["cls"]["linear"][0] is None  # the CLS token alone
        assert None not in found[moment]["patch"]["linear"]
    assert found["before"]["patch"]["linear"][0] == found["after"]["patch"]["linear"][0]
    again = layer_probes(pv.tune(backbone, pv.Linear(), 10), backbone, DataConfig(), images=80)
    assert again["before"] == again["after"] == found["before"]


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_training_images_of_one_class_are_refused(probe, clusters):
    with pytest.raises(DataError, match=r"60 training images of one class; expected at least two.*Take more images"):
        probe(clusters[0], np.zeros(60, dtype=np.int64), clusters[1], LABELS)
