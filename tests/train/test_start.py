import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.train.test_loop import figures, make_config

import promptvit as pv
from promptvit.errors import ConfigError, DeltaError
from promptvit.train.loop import epochs, fit
from promptvit.train.start import Anchors


def tensors(folder):
    return load_file(folder / "delta" / "delta.safetensors")


@pytest.fixture(scope="module")
def linear(digits_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear") / "run"
    fit(make_config(digits_folder, "linear"), folder)
    return folder


def test_full_starts_at_the_head_of_linear(digits_folder, linear, tmp_path):
    config = make_config(digits_folder, "full", head_from=str(linear), learning_rate=1e-12, epochs=1)
    fit(config, tmp_path / "run")
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(tensors(tmp_path / "run")[name], tensors(linear)[name], rtol=0, atol=1e-6)


def test_prompts_after_full_keep_its_weights_and_may_keep_its_head(digits_folder, tmp_path):
    full = tmp_path / "full"
    fit(make_config(digits_folder, "full"), full)
    for name, head in (("kept", str(full)), ("anew", None)):
        config = make_config(digits_folder, head_from=head, learning_rate=1e-12, epochs=1)
        backbone = dataclasses.replace(config.backbone, tuned=str(full))
        fit(dataclasses.replace(config, backbone=backbone), tmp_path / name)
    assert not any(name.startswith("backbone.") for name in tensors(tmp_path / "kept"))
    torch.testing.assert_close(
        tensors(tmp_path / "kept")["head.weight"], tensors(full)["head.weight"], rtol=0, atol=1e-6
    )
    assert tensors(tmp_path / "anew")["head.weight"].abs().max() < 1e-6


def test_a_head_of_another_form_or_task_is_refused(digits_folder, linear, tmp_path):
    with pytest.raises(DeltaError, match=r"the head of .* has .*; expected .*as this run's"):
        fit(make_config(digits_folder, "mlp-3", head_from=str(linear)), tmp_path / "form")
    other = tmp_path / "other"
    shutil.copytree(digits_folder, other / "digits")
    for split in ("train", "val", "test"):
        shutil.rmtree(other / "digits" / split / "2")
    with pytest.raises(DeltaError, match="knows 3 classes; expected the 2 of this task"):
        fit(make_config(other / "digits", "linear", head_from=str(linear)), tmp_path / "classes")
    with pytest.raises(DeltaError, match="does not exist"):
        fit(make_config(digits_folder, "linear", head_from=str(tmp_path / "nothing")), tmp_path / "nothing-run")


def test_a_pull_to_the_start_keeps_weights_near_it(digits_folder, tmp_path):
    moved, start = {}, pv.load_backbone("vit_pico", image_size=16).body()
    for decay in (0.0, 100.0, 1000.0):
        folder = tmp_path / f"{decay}"
        fit(make_config(digits_folder, "bias", start_decay=decay), folder)
        tuned = {name.removeprefix("backbone."): t for name, t in tensors(folder).items() if "backbone." in name}
        moved[decay] = sum((tensor - start[name].float()).square().sum().item() for name, tensor in tuned.items())
    assert moved[1000.0] < 0.5 * moved[100.0] < 0.5 * moved[0.0]


def test_the_pull_is_the_formula():
    model = pv.tune(pv.load_backbone("vit_pico"), pv.Bias(), classes=2)
    anchors = Anchors(model, 0.5)
    name, weight = next((n, w) for n, w in model.backbone.weights().items() if w.requires_grad)
    start = weight.detach().clone()
    with torch.no_grad():
        weight.add_(2.0)
    anchors.pull(0.1)
    torch.testing.assert_close(weight.detach(), start + 2.0 * (1 - 0.1 * 0.5), msg=name)


def test_a_pull_resumes(digits_folder, tmp_path):
    config = make_config(digits_folder, "bias", start_decay=10.0)
    whole = fit(config, tmp_path / "whole")
    steps = epochs(config, tmp_path / "parts")
    next(steps)
    steps.close()
    assert figures(fit(config, tmp_path / "parts", resume=True)) == figures(whole)


def test_a_pull_without_weights_is_refused(digits_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"start_decay=1.0 with vpt, which trains no weights"):
        fit(make_config(digits_folder, start_decay=1.0), tmp_path / "run")
