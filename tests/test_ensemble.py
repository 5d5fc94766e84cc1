import dataclasses

import numpy as np
import pytest
import torch

import promptvit as pv
from promptvit.ensemble import Ensemble, load_ensemble
from promptvit.errors import BrokenImageError, ConfigError, DeltaError

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def backbone():
    return pv.load_backbone()


@pytest.fixture
def make_model(backbone):
    def make(method=None, classes=CLASSES, on=backbone):
        return pv.tune(on, method or pv.VPT(length=3), classes)

    return make


@pytest.fixture
def models(make_model):
    return [make_model(), make_model(pv.VPT(length=2, depth="shallow")), make_model(pv.VPT(weights="bias"))]


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32)


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_probabilities_are_the_mean_of_the_members(models, images):
    ensemble = Ensemble(models)
    expected = sum(model.eval()(images).softmax(dim=-1) for model in models) / 3
    torch.testing.assert_close(ensemble(images).exp(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ensemble(images).softmax(dim=-1), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ensemble.fold()(images), ensemble(images), rtol=0, atol=1e-5)


def test_the_backbone_is_one_object(models, backbone):
    ensemble = Ensemble(models)
    assert models[0].backbone is models[1].backbone is backbone
    own = sum(p.numel() for model in models for p in [*model.delta.parameters(), *model.head.parameters()])
    biases = sum(backbone.weights()[name].numel() for name in backbone.biases())
    body = sum(p.numel() for p in backbone.parameters())
    assert sum(p.numel() for p in ensemble.parameters()) == body + biases + own


def test_it_predicts_as_a_tuned_model_does(models, array):
    ensemble = Ensemble(models)
    (prediction,) = ensemble.predict(array)
    members = [dict(zip(p.names, p.probabilities, strict=True)) for m in models for p in m.predict(array)]
    means = {name: sum(member[name] for member in members) / 3 for name in CLASSES}
    assert dict(zip(prediction.names, prediction.probabilities, strict=True)) == pytest.approx(means, abs=1e-5)
    assert prediction.name == max(means, key=means.__getitem__)
    assert [len(p.names) for p in ensemble.predict([array, array], top=2, batch_size=1)] == [2, 2]


def test_it_is_for_inference(models, array, tmp_path):
    assert all(model.training for model in models)
    ensemble = Ensemble(models)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    for _ in range(2):
        assert not any(module.training for module in ensemble.modules())
        with pytest.raises(BrokenImageError):
            ensemble.predict(tmp_path / "broken.png")
    ensemble.train()
    ensemble.predict(array)
    assert ensemble.training
    assert all(model.training for model in models)
    assert not models[0].backbone.training


def test_members_of_another_kind_are_refused(models, make_model):
    with pytest.raises(ConfigError, match="1 models; expected at least two"):
        Ensemble(models[:1])
    with pytest.raises(ConfigError, match="model 2 has other classes"):
        Ensemble([models[0], make_model(classes=("ant", "cat", "bee"))])
    resized = pv.load_backbone(image_size=16)
    with pytest.raises(ConfigError, match="model 4 has another backbone; model 4 has another preprocessing"):
        Ensemble([*models, make_model(on=resized)])
    models[1].preprocessing = dataclasses.replace(models[1].preprocessing, geometry="squash")
    models[0].preprocessing = dataclasses.replace(models[0].preprocessing, geometry="crop")
    with pytest.raises(ConfigError, match="model 2 has another preprocessing"):
        Ensemble(models[:2])


@pytest.mark.parametrize("given", [True, False])
def test_folders_are_loaded_onto_one_backbone(given, models, backbone, images, tmp_path):
    folders = [model.save(tmp_path / str(number)) for number, model in enumerate(models)]
    for order in (slice(None), slice(None, None, -1)):  # the first may train backbone weights
        loaded = load_ensemble(folders[order], backbone=backbone if given else None)
        torch.testing.assert_close(loaded(images), Ensemble(models)(images), rtol=0, atol=1e-6)
        trunks = {id(parameter) for member in loaded.members for parameter in [member.backbone.model.cls_token]}
        assert len(trunks) == 1
        assert (loaded.members[1].backbone is backbone) == given


def test_what_cannot_be_loaded(models, tmp_path):
    folder = models[0].save(tmp_path / "one")
    with pytest.raises(ConfigError, match="1 folders; expected at least two"):
        load_ensemble([folder])
    with pytest.raises(DeltaError, match="does not exist"):
        load_ensemble([tmp_path / "none", folder])
    (folder / "delta.json").write_text('{"format": 1}')
    with pytest.raises(DeltaError, match="is not a delta description"):
        load_ensemble([folder, folder])
