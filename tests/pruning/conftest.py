"""A small task of real images, and runs on it that are to be pruned."""

from pathlib import Path

import pytest
from PIL import Image

import promptvit as pv
from promptvit.backbones.load import load_source
from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.data.digits import read_digits
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.folder import RunFolder
from promptvit.train.loop import fit, make_method


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """scikit-learn's digits 0 to 2: 30 for training, 20 for validation, 10 for the test."""
    root = tmp_path_factory.mktemp("digits")
    task = read_digits()
    for name, split, count in (("train", task.train, 30), ("val", task.val, 20), ("test", task.test, 10)):
        for i in [i for i, label in enumerate(split.labels) if label < 3][:count]:
            folder = root / name / str(split.labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i]).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def make_config(digits_folder):
    """The configuration of a run; settings as in TrainConfig."""

    def make(method, **settings) -> RunConfig:
        train = {"epochs": 2, "batch_size": 15, "device": "cpu", "warmup_epochs": 0.5} | settings
        return RunConfig(
            data=DataConfig(source=str(digits_folder)),
            backbone=BackboneSource(name="vit_pico", image_size=16),
            method=method,
            train=TrainConfig(**train),
        )

    return make


@pytest.fixture(scope="session")
def make_untrained(make_config, tmp_path_factory):
    """What a search looks at first of a finished run, which did not train."""

    def make(method) -> Path:
        config, folder = make_config(method), RunFolder(tmp_path_factory.mktemp("runs") / "run")
        pv.tune(load_source(config.backbone), make_method(config), ("0", "1", "2")).save(folder.delta)
        folder.write_config(config.to_dict())
        folder.write_summary({})
        return folder.root

    return make


@pytest.fixture(scope="session")
def run(make_config, tmp_path_factory) -> Path:
    """Four prompts at each of six blocks."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(make_config({"name": "vpt-deep", "length": 4}, keep_epoch=1), folder)
    return folder


@pytest.fixture(scope="session")
def composed(make_config, tmp_path_factory) -> Path:
    """Prompts that start from tokens, and key-value prompts."""
    method = {"name": "e2vpt", "prompts": {"name": "spt", "length": 4}, "kv": {"length": 2}}
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(make_config(method, rate_batch=30), folder)
    return folder
