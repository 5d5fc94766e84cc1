"""Values that a run keeps for pruning, and a start that somebody else sets."""

import dataclasses

import pytest
import torch

import promptvit as pv
from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError, DeltaError
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.folder import RunFolder
from promptvit.train.loop import Listener, fit


@pytest.fixture
def make_config(digits_folder):
    def make(method="vpt-deep", **settings):
        fields = {"length": 2} if method.startswith("vpt") else {}
        train = {"epochs": 2, "batch_size": 30, "device": "cpu"} | settings
        return RunConfig(
            data=DataConfig(source=str(digits_folder)),
            backbone=BackboneSource(name="vit_pico", image_size=16),
            method={"name": method, **fields},
            train=TrainConfig(**train),
        )

    return make


def same(values, others):
    return values.keys() == others.keys() and all(torch.equal(values[name], others[name]) for name in values)


def watched(seen):
    """Notes what is trained before the first step and after every epoch."""
    return Listener(
        watch=lambda epoch, run: seen.update({epoch: {n: t.clone() for n, t in run.model.trained_tensors().items()}})
    )


def test_a_run_keeps_its_first_values_and_those_of_one_epoch(make_config, tmp_path):
    seen = {}
    fit(make_config(epochs=3, keep_epoch=2), tmp_path / "run", listener=watched(seen))
    folder = RunFolder(tmp_path / "run")
    assert same(folder.read_values("start"), seen[0])
    assert same(folder.read_values("early"), seen[2])
    assert same(pv.load(folder.delta).trained_tensors(), seen[3])
    assert not same(seen[0], seen[2])


def test_to_keep_them_changes_no_number(make_config, tmp_path):
    with_values, without = (fit(make_config(keep_epoch=epoch), tmp_path / str(epoch)) for epoch in (1, None))
    assert with_values["result"] == without["result"]
    with pytest.raises(DeltaError, match=r"has kept no values of early\. Train it again with --train\.keep_epoch"):
        RunFolder(tmp_path / "None").read_values("early")


def test_a_method_that_trains_weights_of_the_backbone_keeps_none(make_config, tmp_path):
    fit(make_config("vpt-bias", epochs=1, keep_epoch=1), tmp_path / "run")
    for when in ("start", "early"):
        with pytest.raises(DeltaError, match=f"has kept no values of {when}"):
            RunFolder(tmp_path / "run").read_values(when)


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_resumed_run_has_kept_the_same(stopped, make_config, tmp_path):
    config = make_config(epochs=3, keep_epoch=2)
    fit(config, tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(epoch, run):
        if epoch == stopped:  # done, and not yet on the disk
            raise StopError

    with pytest.raises(StopError):
        fit(config, tmp_path / "run", listener=Listener(watch=stop))
    fit(config, tmp_path / "run", resume=True)
    for when in ("start", "early"):
        assert same(*(RunFolder(tmp_path / name).read_values(when) for name in ("whole", "run")))


def test_damaged_values_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_values("start", {"a": torch.randn(3, 2).T})  # contiguous or not
    assert folder.read_values("start")["a"].shape == (2, 3)
    folder.values("start").write_bytes(folder.values("start").read_bytes()[:-1])
    with pytest.raises(DeltaError, match=r"start.safetensors cannot be read.*Train the run again"):
        folder.read_values("start")


def test_values_come_back_as_they_were(tmp_path):
    values = {"delta.prompts.0": torch.randn(2, 3, 4).transpose(0, 2), "head.bias": torch.randn(3).half()}
    RunFolder(tmp_path).write_values("early", values)
    assert same(RunFolder(tmp_path).read_values("early"), values)


@pytest.mark.parametrize("epoch", [0, 3, -1])
def test_the_epoch_that_is_kept_is_one_of_the_run(epoch):
    with pytest.raises(ConfigError, match=f"keep_epoch={epoch}: expected one of the 2 epochs, or null"):
        TrainConfig(epochs=2, keep_epoch=epoch)


def test_a_start_takes_the_place_of_the_methods(make_config, tmp_path):
    """Of everything that is trained; the rest of the run is the same."""
    first = fit(make_config(seed=1), tmp_path / "first")
    values = RunFolder(tmp_path / "first").read_values("start")

    def start(model):
        with torch.no_grad():
            for name, tensor in model.trained_tensors().items():
                tensor.copy_(values[name])

    config = dataclasses.replace(make_config(seed=1), method={"name": "spt", "length": 2})
    again = fit(config, tmp_path / "again", start=start)
    assert same(RunFolder(tmp_path / "again").read_values("start"), values)
    assert (again["result"], again["train_loss"]) == (first["result"], first["train_loss"])


def test_a_start_is_for_the_first_epoch_alone(make_config, tmp_path):
    called = []

    def start(model):
        called.append(len(called))
        torch.nn.init.constant_(model.head.bias, 0.25)

    whole = fit(make_config(), tmp_path / "whole", start=start)
    seen = {}

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make_config(), tmp_path / "run", start=start, listener=dataclasses.replace(watched(seen), epoch=stop))
    assert (seen[0]["head.bias"] == 0.25).all()
    again = fit(make_config(), tmp_path / "run", start=start, resume=True)
    assert (again["result"], again["train_loss"]) == (whole["result"], whole["train_loss"])
    assert called == [0, 1]
