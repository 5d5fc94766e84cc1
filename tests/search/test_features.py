"""Heads on features that are computed once: the same numbers, from far less work."""

import dataclasses

import pytest

from promptvit.backbones.base import Backbone
from promptvit.data.config import DataConfig
from promptvit.methods import METHODS
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.loop import fit
from promptvit.train.stock import Stock


def config_of(two_tasks, method, **train):
    settings = {"epochs": 3, "device": "cpu", "batch_size": 16, "seed": 1, **train}
    return RunConfig(
        data=DataConfig(source=str(two_tasks / "low")), method={"name": method}, train=TrainConfig(**settings)
    )


@pytest.mark.parametrize("method", ["linear", "mlp-3"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_features_once_give_what_images_every_epoch_give(two_tasks, tmp_path, monkeypatch, method, optimizer):
    config = config_of(two_tasks, method, optimizer=optimizer, learning_rate=0.02)
    once = fit(config, tmp_path / "once")
    monkeypatch.setattr(METHODS[method].method, "only_head", property(lambda self: False))
    every = fit(config, tmp_path / "every")
    for split in ("val", "test"):
        assert once["result"][split]["top1"] == pytest.approx(every["result"][split]["top1"], abs=1e-6)
        assert once["result"][split]["loss"] == pytest.approx(every["result"][split]["loss"], abs=1e-5)


def test_runs_of_one_stock_read_images_and_compute_features_once(two_tasks, tmp_path, monkeypatch):
    forwards = []
    original = Backbone.__call__

    def counted(self, images, *arguments, **keywords):
        forwards.append(len(images))
        return original(self, images, *arguments, **keywords)

    monkeypatch.setattr(Backbone, "__call__", counted)
    stock = Stock()
    results = [
        fit(config_of(two_tasks, "linear", learning_rate=rate), tmp_path / str(rate), stock=stock, test=False)
        for rate in (0.01, 0.1)
    ]
    assert sum(forwards) == 40 + 20
    assert results[0]["result"]["val"]["loss"] != results[1]["result"]["val"]["loss"]
    assert stock.task(config_of(two_tasks, "linear").data) is stock.task(config_of(two_tasks, "mlp-3").data)


def test_augmented_images_have_no_lasting_features(two_tasks, tmp_path):
    config = config_of(two_tasks, "linear")
    augmented = dataclasses.replace(config, data=dataclasses.replace(config.data, augment="flip"))
    plain, flipped = fit(config, tmp_path / "plain"), fit(augmented, tmp_path / "flipped")
    assert plain["train_loss"] != flipped["train_loss"]


def test_a_stock_lets_go_of_what_was_not_used_for_longest(two_tasks):
    stock = Stock(limit_bytes=1)
    low, high = (DataConfig(source=str(two_tasks / name)) for name in ("low", "high"))
    preprocessing = stock.backbone(config_of(two_tasks, "linear").backbone).preprocessing
    tasks = {data: stock.task(data) for data in (low, high)}
    first = stock.images("val", tasks[low].val, preprocessing, low)
    assert stock.images("val", tasks[low].val, preprocessing, low) is first
    stock.images("val", tasks[high].val, preprocessing, high)
    assert stock.images("val", tasks[low].val, preprocessing, low) is not first


def test_a_stock_does_not_mix_up_what_is_read_differently(two_tasks):
    stock = Stock()
    data = DataConfig(source=str(two_tasks / "low"))
    more = dataclasses.replace(data, train_on="train+val")
    preprocessing = stock.backbone(config_of(two_tasks, "linear").backbone).preprocessing
    assert len(stock.images("train", stock.task(data).train, preprocessing, data)) == 40
    assert len(stock.images("train", stock.task(more).train, preprocessing, more)) == 60
    cropped = dataclasses.replace(preprocessing, geometry="crop")
    assert stock.images("val", stock.task(data).val, cropped, data).preprocessing.geometry == "crop"


@pytest.mark.parametrize("method", ["vpt-deep", "full", "bias", "partial-1"])
def test_a_run_leaves_a_shared_backbone_as_it_was(two_tasks, tmp_path, method):
    stock = Stock()
    config = config_of(two_tasks, method, epochs=1)
    before = {name: tensor.clone() for name, tensor in stock.backbone(config.backbone).model.state_dict().items()}
    first = fit(config, tmp_path / "first", stock=stock, test=False)
    after = stock.backbone(config.backbone)
    assert all(tensor.equal(before[name]) for name, tensor in after.model.state_dict().items())
    assert not any(weight.requires_grad for weight in after.weights().values())
    second = fit(config, tmp_path / "second", stock=stock, test=False)
    alone = fit(config, tmp_path / "alone", test=False)
    assert first["result"] == second["result"] == alone["result"]
