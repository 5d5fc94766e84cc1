import dataclasses

import numpy as np
import pytest
import torch

import promptvit as pv
from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.data.load import load_split, load_task
from promptvit.data.transforms import normalise
from promptvit.errors import ConfigError, DataError
from promptvit.methods.spt import SPT
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.loop import Listener, fit
from promptvit.train.samples import TrainingSamples


def make_config(folder, **fields):
    return RunConfig(
        data=DataConfig(source=str(folder), augment="crop+flip"),
        backbone=BackboneSource(name="vit_pico", image_size=16),  # 17 tokens in place of 65
        method={"name": "spt-deep", "length": 3, **fields},
        train=TrainConfig(epochs=2, batch_size=16, device="cpu", warmup_epochs=0.5),
    )


@pytest.fixture
def dataset(digits_folder):
    config = make_config(digits_folder).data
    preprocessing = pv.load_backbone(image_size=16).preprocessing
    return load_split(load_task(config).train, preprocessing, config)


def samples_of(dataset, batch_size=4, **settings):
    device = torch.device("cpu")
    return TrainingSamples(dataset, dataset.preprocessing, device=device, batch_size=batch_size, **settings)


def test_images_are_those_of_evaluation_by_number(dataset):
    samples = samples_of(dataset)
    assert len(samples) == len(dataset)
    assert samples.labels.tolist() == [dataset[number][1] for number in range(len(dataset))]
    for images, numbers in samples.batches([5, 2, 9, 0, 3]):
        pixels = torch.stack([dataset[number][0] for number in numbers])
        torch.testing.assert_close(images, normalise(pixels, dataset.preprocessing), rtol=0, atol=0)


def test_the_augmented_view_of_an_image_depends_on_its_number_and_the_seed_alone(dataset):
    settings = {"augmentation": "crop+flip", "seed": 3}
    one, many = samples_of(dataset, 1, **settings), samples_of(dataset, 7, **settings)
    ours = torch.cat([images for images, _ in one.batches(range(10))])
    theirs = torch.cat([images for images, _ in many.batches(range(10))])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.equal(ours, samples_of(dataset).images(range(10)))
    assert not torch.equal(ours, samples_of(dataset, augmentation="crop+flip", seed=5).images(range(10)))


def test_augmented_tokens_are_others_and_need_an_augmentation(digits_folder, dataset, tmp_path):
    backbone = pv.load_backbone(image_size=16)
    plain, augmented = (
        pv.tune(backbone, SPT(length=3), 3, samples=samples_of(dataset, augmentation=kind)).delta.prompts[0]
        for kind in ("none", "crop+flip")
    )
    assert not torch.allclose(plain, augmented)
    config = make_config(digits_folder, augment=True)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment="none"))
    with pytest.raises(ConfigError, match="training images are not augmented"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_start_leaves_nothing_and_a_resumed_run_does_not_start_again(
    digits_folder, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    config = make_config(digits_folder)
    unbroken = fit(config, tmp_path / "unbroken")
    with monkeypatch.context() as patched:
        patched.setattr(SPT, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", listener=Listener(epoch=interrupted))  # after the first epoch was kept
    with monkeypatch.context() as patched:
        patched.setattr(SPT, "start", interrupted)
        resumed = fit(config, tmp_path / "run", resume=True)
    assert resumed["result"] == unbroken["result"]


def test_too_few_tokens_and_broken_values_leave_no_folder(digits_folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="expected at most 48 prompts"):
        fit(make_config(digits_folder, length=49, images=3), tmp_path / "run")
    broken = normalise
    monkeypatch.setattr("promptvit.train.samples.normalise", lambda *given: broken(*given) * torch.nan)
    with pytest.raises(DataError, match=r"training image \d+ gives tokens at block 1 that are NaN"):
        fit(make_config(digits_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_backbone_without_tokens_is_refused_before_images_are_read(digits_folder, tmp_path):
    read = []
    config = dataclasses.replace(make_config(digits_folder), method={"name": "spt-deep", "pooling": "all"})
    config = dataclasses.replace(config, backbone=BackboneSource(name="test_convnext", pretrained=False))
    with pytest.raises(ConfigError, match="prompts need tokens to join"):
        fit(config, tmp_path / "run", listener=Listener(read=lambda *what: read.append(what)))
    assert not read


def test_the_batch_size_of_training_does_not_change_the_start(digits_folder, tmp_path):
    starts = []

    def keep(epoch, run):
        if epoch == 0:
            starts.append(run.model.delta.prompts[0].detach().clone())

    for size in (7, 64):
        config = make_config(digits_folder, source="kmeans")
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size, epochs=1))
        fit(config, tmp_path / str(size), listener=Listener(watch=keep))
    np.testing.assert_allclose(*starts, rtol=0, atol=1e-5)
