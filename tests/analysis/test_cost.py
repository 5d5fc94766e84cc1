"""Costs: what is exact is that of a run; the rest by arithmetic, and by plausibility. No test looks at a clock."""

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from promptvit.analysis import cost, cost_probe
from promptvit.analysis.cost import Probe, TaskSize, estimate_cost, extrapolate
from promptvit.analysis.cost_probe import Stopwatch, enough, noise, part_of, probe, some
from promptvit.backbones.source import BackboneSource
from promptvit.counting import count, outline
from promptvit.data.config import DataConfig
from promptvit.data.digits import read_digits
from promptvit.errors import ConfigError, DataError, TrainingError, UnknownNameError
from promptvit.methods import METHODS
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.loop import fit

PICO = BackboneSource(image_size=16)
HYPOTHETICAL = TaskSize(classes=3, train=19, val=9, test=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Digits 0 to 2: 30 images to train on, 12 to validate by, and 7 to test."""
    root = tmp_path_factory.mktemp("digits")
    digits = read_digits().train
    rows = [row for row, label in enumerate(digits.labels) if label < 3]
    for place, row in enumerate(rows[:49]):
        split = "train" if place < 30 else "val" if place < 42 else "test"
        file = root / split / str(digits.labels[row]) / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[row]).save(file)
    return root


def config_of(method: str = "linear", source: str = "digits", backbone=PICO, data=None, **train) -> RunConfig:
    return RunConfig(
        data=DataConfig(source=source, **data or {}),
        backbone=backbone,
        method={"name": method},
        train=TrainConfig(**{"batch_size": 4, "epochs": 2, "device": "cpu", **train}),
    )


def probed(config: RunConfig, tmp_path: Path, size: TaskSize | None = None, steps: int = 2) -> Probe:
    """A probe in this process."""
    return probe(config, size, steps, tmp_path, 0.0)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    """Features of 16 images instead of 128, and epochs of a head as few as of others."""
    monkeypatch.setattr(cost_probe, "BATCH", 8)
    monkeypatch.setattr(cost_probe, "HEAD_EPOCHS", 4)


@pytest.mark.parametrize("method", ["linear", "vpt-deep", "full", "spt-deep"])
def test_parameters_and_bytes_are_those_of_a_run(method, folder, tmp_path):
    config = config_of(method, str(folder), epochs=1)
    found = extrapolate(probed(config, tmp_path / "probe"), config)
    summary = fit(config, tmp_path / "run")
    real = summary["cost"]
    for name in ("trained_parameters", "trained_percent", "delta_bytes"):
        assert getattr(found, name) == real[name]
    counted = count(outline(PICO), METHODS[method].build(), 3)
    assert (found.trained_parameters, found.delta_bytes) == (counted.trained, counted.bytes)
    assert found.delta_bytes == (tmp_path / "run/delta/delta.safetensors").stat().st_size
    assert found.probe.whole == TaskSize(classes=3, **summary["task"]["images"])


@pytest.mark.parametrize("method", ["linear", "vpt-deep"])
def test_a_probe_of_a_hypothetical_task(method, tmp_path):
    found = probed(config_of(method), tmp_path, HYPOTHETICAL)
    many = 4 if method == "linear" else 2
    assert found.part == TaskSize(classes=3, train=4 * many + 3, val=min(9, 4 * many + 1), test=5)
    assert (found.whole, found.image_bytes, found.cached) == (HYPOTHETICAL, 3 * 16 * 16, True)
    assert found.feature_bytes == (4 * 128 if method == "linear" else 0)
    assert found.trained_parameters == count(outline(PICO), METHODS[method].build(), 3).trained
    assert found.peak_memory_bytes is not None
    for name in ("peak_memory_bytes", "epoch_seconds", "step_seconds", "batch_seconds", "finish_seconds"):
        assert getattr(found, name) > 0
    assert found.epoch_seconds > found.step_seconds


def test_a_probe_reads_images_as_the_run_does(folder, tmp_path):
    found = probed(config_of("vpt-deep", str(folder), data={"cache_gib": 0.0, "workers": 0}), tmp_path)
    assert (found.cached, found.part) == (False, TaskSize(classes=3, train=10, val=8, test=7))
    assert found.image_seconds > 0


def test_a_method_that_starts_from_images_gets_one_of_every_class(tmp_path):
    method, whole = METHODS["spt-deep"].build(), TaskSize(classes=9, train=40, val=9)
    assert method.needs_samples
    assert enough(method, False, whole, 2, 2) == 5
    assert enough(METHODS["vpt-deep"].build(), False, whole, 2, 2) == 2
    assert enough(METHODS["linear"].build(), True, whole, 4, 2) == 4


def test_settings_that_are_about_the_length_of_a_run_do_not_hinder_a_probe(tmp_path):
    config = config_of(
        epochs=90, warmup_epochs=40.0, schedule_steps="epoch", keep_epoch=80, rate_batch=256, final_rate=1e-4
    )
    assert probed(config, tmp_path, HYPOTHETICAL).delta_bytes > 0


MEASURED = Probe(
    device="cpu",
    trained_parameters=10,
    trained_percent=1.0,
    delta_bytes=100,
    peak_memory_bytes=10_000,
    whole=TaskSize(train=1003, val=201, test=100),
    part=TaskSize(train=43, val=41, test=40),
    image_bytes=3,
    cached=True,
    feature_bytes=2,
    setup_seconds=5.0,
    image_seconds=0.25,
    epoch_seconds=2.0,
    step_seconds=0.5,
    batch_seconds=0.125,
    state_seconds=1.0,
    finish_seconds=3.0,
)
TEN = config_of(batch_size=10, epochs=7)


def test_the_whole_run_has_more_batches_and_images_than_the_probe():
    found = extrapolate(MEASURED, TEN)
    assert found.epoch_seconds == 2 + 96 * 0.5 + 16 * 0.125
    setup, finish = 5 + (1304 - 124) * 0.25, 3 + (16 + 6) * 0.125
    assert found.run_seconds == setup + 7 * (found.epoch_seconds + 1) + finish
    assert found.peak_memory_bytes == 10_000 + (1304 - 124) * (3 + 2)
    assert found.probe == MEASURED


def test_time_grows_in_proportion_to_the_images():
    epochs = [
        extrapolate(dataclasses.replace(MEASURED, whole=TaskSize(train=train, val=201)), TEN).epoch_seconds
        for train in (1003, 2003, 3003, 11003)
    ]
    assert np.diff(epochs).tolist() == [50.0, 50.0, 400.0]
    assert extrapolate(dataclasses.replace(MEASURED, whole=MEASURED.part), TEN).epoch_seconds == 2.0


def test_test_images_in_every_epoch_are_part_of_it():
    every = extrapolate(MEASURED, dataclasses.replace(TEN, train=dataclasses.replace(TEN.train, test="every-epoch")))
    assert every.epoch_seconds == extrapolate(MEASURED, TEN).epoch_seconds + 6 * 0.125


def test_memory_of_splits_that_are_not_kept():
    cost_of = dataclasses.replace(MEASURED, feature_bytes=0)
    assert cost.peak_memory(cost_of, cache=1003 * 3) == 10_000 + (1304 - 124) * 3
    assert cost.peak_memory(dataclasses.replace(cost_of, cached=False), cache=1003 * 3 - 1) == 10_000 + 301 * 3
    for device, peak in (("cuda:0", 10_000), ("cpu", None)):
        assert cost.peak_memory(dataclasses.replace(MEASURED, device=device, peak_memory_bytes=peak), 10**9) == peak


def test_a_part_has_the_last_batch_of_the_whole():
    whole = TaskSize(classes=5, train=1003, val=10, test=0)
    assert part_of(whole, 10, 4) == TaskSize(classes=5, train=43, val=10, test=0)
    assert part_of(whole, 2000, 4) == whole


def test_some_images_are_of_all_classes_alike():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    assert some(labels, 4).tolist() == [0, 1, 4, 6]
    assert some(labels, 9).tolist() == list(range(9))


def test_noise_takes_no_memory_of_its_own():
    task = noise(TaskSize(classes=2, train=10**6, val=3), 8, 6)
    images = task.train.images
    assert isinstance(images, np.ndarray)
    assert (images.shape, images.strides[0]) == ((10**6, 8, 6, 3), 0)
    assert (task.val.labels.tolist(), task.test) == ([0, 1, 0], None)


def test_laps_are_between_full_batches_of_one_kind(monkeypatch):
    watch, head = Stopwatch(batch_size=4), nn.Linear(2, 2)
    passes = [(True, 4, 1.0), (True, 4, 3.0), (True, 2, 4.0), (False, 4, 9.0), (False, 4, 10.0), (True, 4, 30.0)]
    watch.laps.append({True: [], False: []})
    for training, images, now in passes:
        monkeypatch.setattr("time.perf_counter", lambda now=now: now)
        watch.pass_head(head.train(training), None, torch.zeros(images, 2))
    assert watch.laps == [{True: [2.0], False: [1.0]}]


def test_a_lap_is_the_median_over_epochs_of_the_mean():
    watch = Stopwatch(batch_size=4)
    watch.laps = [{True: laps, False: [1.0]} for laps in ([1.0, 3.0], [9.0, 99.0], [1.0, 4.0, 7.0], [])]
    assert (watch.lap_seconds(training=True), watch.lap_seconds(training=False)) == (4.0, 1.0)
    assert Stopwatch(batch_size=4).lap_seconds(training=True) == 0.0


def test_a_probe_is_a_process_of_its_own(folder):
    held = np.ones(2**28)  # 2 GiB that are no part of the cost
    found = estimate_cost(config_of("linear", str(folder)))
    assert len(held)
    assert found.peak_memory_bytes is not None
    assert 2**26 < found.peak_memory_bytes < 2**31
    assert found.run_seconds > found.probe.setup_seconds > 0


def test_what_a_probe_refuses_is_raised_here(tmp_path):
    with pytest.raises(DataError, match="tmp"):
        estimate_cost(config_of("linear", str(tmp_path)))


def test_a_probe_that_dies_is_an_error(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9))
    with pytest.raises(TrainingError, match=r"the probe of full ended with exit code -9.*--train.batch_size"):
        estimate_cost(config_of("full"))


def test_refusals(tmp_path, untyped):
    with pytest.raises(UnknownNameError, match=r"unknown method 'vpt-deap'.*vpt-deep"):
        probed(config_of("vpt-deap"), tmp_path, HYPOTHETICAL)
    resnet = BackboneSource(name="resnet18", image_size=32, pretrained=False)
    with pytest.raises(ConfigError, match="VPT on a resnet backbone: prompts need tokens"):
        probed(config_of("vpt-deep", backbone=resnet), tmp_path, HYPOTHETICAL)
    with pytest.raises(ConfigError, match="test=every-epoch: the task has no test images"):
        probed(config_of(test="every-epoch"), tmp_path, TaskSize(train=9, val=9))
    with pytest.raises(ConfigError, match="train=0: expected at least 1; val=-1: expected at least 1"):
        TaskSize(train=0, val=-1)
    with pytest.raises(ConfigError, match="steps=1; expected at least 2"):
        estimate_cost(config_of(), steps=1)
