"""Paper mode with random weights: nothing is downloaded."""

import numpy as np
import pytest
import torch
from PIL import Image

from promptvit.analysis.extractor import feature_stats
from promptvit.analysis.inception import inception
from promptvit.data.dataset import ImageDataset
from promptvit.data.task import Split
from promptvit.errors import DataError
from promptvit.files import digest
from promptvit.preprocessing import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch-fidelity's imports


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights in place of the published ones."""
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Random(source.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    torch.manual_seed(0)
    empty = tmp_path_factory.mktemp("inception") / "empty.pth"
    torch.save({}, empty)
    network = Random("inception-v3", ["2048"], feature_extractor_weights_path=str(empty))
    path = empty.with_name("weights.pth")
    torch.save(network.state_dict(), path)
    return path


def test_features_are_those_of_torch_fidelity(weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = inception(weights)
    assert extractor.space.extractor == "inception-v3"
    assert extractor.space.fingerprint == digest(weights.read_bytes())
    random = np.random.default_rng(0)
    images = np.stack(
        [
            np.asarray(Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize((40, 32)))
            for _ in range(3)
        ]
    )
    split = Split(images=images, labels=np.array([0, 1, 0]))
    found = feature_stats(extractor, ImageDataset(split, extractor.preprocessing), name="three")
    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))
    expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))[0].double().numpy()
    # Resized images are rounded to 8 bits here.
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), atol=0.02 * np.abs(expected).max())
    assert found.rows.shape == (3, 2048)
    assert found.space.preprocessing == Preprocessing(size=(299, 299), interpolation="tf1-bilinear")


def test_what_holds_no_such_weights_is_refused(tmp_path):
    missing = tmp_path / "none.pth"
    with pytest.raises(DataError, match=r"none\.pth cannot be read.*Fetch weights-inception-2015-12-05-6726825d\.pth"):
        inception(missing)
    pytest.importorskip("torch_fidelity")
    for content in ({"a": torch.zeros(1)}, {"a": Split}):  # other tensors; what only unpickling can read
        torch.save(content, missing)
        with pytest.raises(DataError, match="does not hold the weights of Inception-v3"):
            inception(missing)
    missing.write_bytes(b"<html>")
    with pytest.raises(DataError, match="does not hold the weights of Inception-v3"):
        inception(missing)
