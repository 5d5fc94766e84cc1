import json
from pathlib import Path

import numpy as np
import pytest
import torch

from promptvit.data.config import DataConfig
from promptvit.data.task import Split
from promptvit.errors import DataError
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.evaluate import measure
from promptvit.train.loop import Listener, fit
from promptvit.train.predictions import Predictions


def some(count: int = 40, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, Split]:
    logits, labels = torch.randn(count, classes), torch.randint(0, classes, (count,))
    paths = tuple(Path("data", "test", f"{place}.png") for place in range(count))
    return logits, labels, Split(images=paths, labels=labels.numpy())


def test_predictions_are_those_of_the_logits():
    logits, labels, images = some()
    found = Predictions.of(logits, labels, images, source="data", split="test")
    shares = logits.double().softmax(dim=1)
    assert found.predicted == tuple(logits.argmax(dim=1).tolist())
    assert found.confidence == pytest.approx(shares.max(dim=1).values.tolist(), abs=5e-5)
    assert found.of_label == pytest.approx(shares[torch.arange(40), labels].tolist(), abs=5e-5)
    assert found.images[:2] == ("test/0.png", "test/1.png")
    confusion = found.confusion(3)
    assert confusion.sum() == 40
    assert np.trace(confusion) / 40 == pytest.approx(measure(logits, labels).top1)


def test_files_elsewhere_keep_their_whole_paths():
    found = Predictions.of(*some(), source="hf:name", split="test")
    assert found.images[0] == str(Path("data", "test", "0.png").absolute())


def test_equal_logits_are_predicted_as_they_are_counted():
    logits, labels = torch.zeros(4, 7), torch.tensor([0, 1, 2, 6])
    images = Split(images=np.zeros((4, 1, 1, 3), np.uint8), labels=labels.numpy())
    found = Predictions.of(logits, labels, images, source="digits", split="val")
    assert np.trace(found.confusion(7)) / 4 == measure(logits, labels).top1
    assert found.images == (0, 1, 2, 3)


def test_plain_values_come_back():
    found = Predictions.of(*some(), source="data", split="test")
    assert Predictions.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": [0]}, "columns of 40, 1, 40, 40, 40 values"), ({"images": None}, "no predictions")],
)
def test_damaged_ones_are_refused(change, message):
    values = Predictions.of(*some(), source="data", split="test").to_dict()
    with pytest.raises(DataError, match=message):
        Predictions.from_dict(values | change)


class StopError(Exception):
    pass


def stop(row):
    raise StopError


def test_a_run_keeps_what_it_says_of_each_test_image_and_a_resumed_one_the_same(digits_folder, tmp_path):
    config = RunConfig(
        data=DataConfig(source=str(digits_folder)),
        method={"name": "linear"},
        train=TrainConfig(epochs=2, batch_size=16, device="cpu"),
    )
    summary = fit(config, tmp_path / "whole")
    with pytest.raises(StopError):
        fit(config, tmp_path / "again", listener=Listener(epoch=stop))
    assert not (tmp_path / "again" / "predictions.json").exists()
    fit(config, tmp_path / "again", resume=True)
    whole, again = ((tmp_path / name / "predictions.json").read_bytes() for name in ("whole", "again"))
    assert whole == again
    found = Predictions.from_dict(json.loads(whole))
    assert (found.split, len(found.images)) == ("test", 20)
    assert np.trace(found.confusion(3)) / 20 == pytest.approx(summary["result"]["test"]["top1"])
    for name, label in zip(found.images, found.labels, strict=True):
        assert (digits_folder / name).is_file()
        assert Path(name).parts[:2] == ("test", str(label))


def test_without_test_images_those_of_validation_are_kept(digits_folder, tmp_path):
    config = RunConfig(
        data=DataConfig(source=str(digits_folder)),
        method={"name": "linear"},
        train=TrainConfig(epochs=1, batch_size=16, device="cpu"),
    )
    summary = fit(config, tmp_path / "run", test=False)
    found = Predictions.from_dict(json.loads((tmp_path / "run" / "predictions.json").read_text()))
    assert found.split == "val"
    assert np.trace(found.confusion(3)) / len(found.labels) == pytest.approx(summary["result"]["val"]["top1"])
