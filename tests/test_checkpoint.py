import json
import os
import pickle
import shutil

import pytest
import safetensors.torch
import torch

import promptvit as pv
from promptvit.errors import DeltaError, OutputError

TENSORS, DESCRIPTION = "delta.safetensors", "delta.json"
METHOD = pv.VPT(length=4, depth="deep")


@pytest.fixture(scope="module")
def backbone():
    return pv.load_backbone()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32)


def make(backbone, method=METHOD, classes=("ant", "bee", "cat")):
    return pv.tune(backbone, method, classes).eval()


@pytest.fixture
def model(backbone):
    return make(backbone)


@pytest.fixture
def folder(model, tmp_path):
    return model.save(tmp_path / "delta")


def edit(folder, **changes):
    """Overwrite top-level entries of the description."""
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_saved_is_what_is_loaded(model, backbone, folder, images):
    loaded = pv.load(folder)
    assert (loaded.method, loaded.classes, loaded.preprocessing) == (METHOD, model.classes, model.preprocessing)
    assert torch.equal(loaded(images), model(images))
    assert torch.equal(pv.load(str(folder), backbone=backbone)(images), model(images))


def test_only_what_was_trained_is_saved(model, folder):
    values = 6 * 4 * 128 + 3 * 128 + 3
    assert model.trained_parameters() == values
    assert 4 * values <= (folder / TENSORS).stat().st_size <= 4 * values + 1024
    assert (folder / DESCRIPTION).stat().st_size < 2048
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, TENSORS]
    tensors = safetensors.torch.load_file(folder / TENSORS)
    assert set(tensors) == {"delta.prompts.0", "head.weight", "head.bias"}


def test_trained_backbone_tensors_are_saved_by_the_models_own_names(backbone, images, tmp_path):
    model = make(backbone, pv.Full())
    with torch.no_grad():
        model.backbone.model.pos_embed.add_(0.5)
    model.save(tmp_path)
    names = {f"backbone.{name}" for name in backbone.body()} | {"head.weight", "head.bias"}
    assert set(safetensors.torch.load_file(tmp_path / TENSORS)) == names
    loaded = pv.load(tmp_path, backbone=backbone)
    assert torch.equal(loaded(images), model(images))
    assert not torch.equal(loaded.backbone.model.pos_embed, backbone.model.pos_embed)


def test_it_loads_in_a_fresh_process(model, folder, images, run_python, tmp_path):
    safetensors.torch.save_file({"images": images}, tmp_path / "images")
    run_python(
        "import sys, promptvit as pv; from safetensors.torch import load_file, save_file\n"
        "logits = pv.load(sys.argv[1])(load_file(sys.argv[2])['images'])\n"
        "save_file({'logits': logits.detach()}, sys.argv[3])",
        folder,
        tmp_path / "images",
        tmp_path / "logits",
    )
    logits = safetensors.torch.load_file(tmp_path / "logits")["logits"]
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)


PLAIN = """
import hashlib, json, pathlib, sys
from safetensors.numpy import load
folder = pathlib.Path(sys.argv[1])
description, content = json.loads((folder / "delta.json").read_text()), (folder / "delta.safetensors").read_bytes()
assert hashlib.sha256(content).hexdigest() == description["sha256"]
tensors = load(content)
print(json.dumps({
    "shapes": {name: tensor.shape for name, tensor in tensors.items()},
    "sum": float(tensors["delta.prompts.0"].astype("float64").sum()),
    "description": description,
    "promptvit": "promptvit" in sys.modules,
}))
"""


def test_the_files_can_be_read_without_promptvit(model, folder, run_python):
    read = json.loads(run_python(PLAIN, folder))
    assert not read["promptvit"]
    assert read["shapes"] == {"delta.prompts.0": [6, 4, 128], "head.weight": [3, 128], "head.bias": [3]}
    assert read["sum"] == pytest.approx(model.delta.prompts[0].double().sum().item(), abs=1e-6)
    description = read["description"]
    assert description["format"] == 1
    assert description["method"] == {"kind": "vpt", "config": METHOD.to_dict()}
    assert description["classes"] == ["ant", "bee", "cat"]
    assert description["backbone"]["source"]["name"] == "vit_pico"
    assert description["backbone"]["fingerprint"] == model.backbone.fingerprint
    assert description["preprocessing"] == model.preprocessing.to_dict()
    assert set(description["versions"]) == {"promptvit", "torch", "timm"}


def refused(folder, message, **arguments):
    with pytest.raises(DeltaError, match=message):
        pv.load(folder, **arguments)


def test_another_backbone_is_refused(folder, backbone):
    refused(folder, "has fingerprint .*expected vit_pico with", backbone=pv.load_backbone(pretrained=False))
    refused(folder, "has fingerprint", backbone=pv.load_backbone(image_size=48))
    refused(folder, "Prompts work only on the weights", backbone=pv.load_backbone(pretrained=False))


def test_a_model_made_in_the_program_has_to_be_handed_over(make_vit, tmp_path):
    backbone = pv.from_timm(make_vit().float())
    make(backbone).save(tmp_path)
    refused(tmp_path, "no name to load it by.*from_timm")
    assert pv.load(tmp_path, backbone=backbone).method == METHOD


@pytest.mark.parametrize("size", [0, 5, 100, 5000])
def test_truncated_tensors_are_refused(size, folder, backbone):
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:size])
    refused(folder, "truncated or not a safetensors file.*Copy or train", backbone=backbone)


def test_garbage_is_refused(folder, backbone):
    (folder / TENSORS).write_bytes(b"\xff" * 4096)
    refused(folder, "truncated or not a safetensors file", backbone=backbone)
    (folder / DESCRIPTION).write_bytes(b"\x80\x81 not text")
    refused(folder, "cannot be read", backbone=backbone)
    (folder / DESCRIPTION).write_text("{")
    refused(folder, "cannot be read", backbone=backbone)
    (folder / DESCRIPTION).write_text("[1, 2]")
    refused(folder, "has no format number", backbone=backbone)


@pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
def test_a_missing_file_is_named(name, folder, backbone):
    (folder / name).unlink()
    refused(folder, f"{name} does not exist", backbone=backbone)


def test_a_folder_that_is_none_is_refused(tmp_path, backbone):
    refused(tmp_path / "nowhere", "does not exist; expected a folder with delta.safetensors", backbone=backbone)
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "cannot be read", backbone=backbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2; expected at most 1. Update promptvit"),
        ({"format": None}, "has no format number"),
        ({"method": {"kind": "vtp", "config": {}}}, "unknown method 'vtp'. Did you mean vpt"),
        ({"method": {"kind": "vpt", "config": {"lenght": 4}}}, "lenght"),
        ({"method": {"kind": "vpt", "config": {"length": 0}}}, "length=0: expected at least 1"),
        ({"method": "vpt"}, "is not a delta description"),
        ({"backbone": {}}, "is not a delta description"),
        ({"preprocessing": {"size": [32, 32], "colour": 3}}, "colour"),
        ({"classes": ["ant"]}, "classes"),
        ({"classes": ["ant", "ant", "cat"]}, "classes"),
        ({"classes": None}, "is not a delta description"),
        ({"sha256": None}, "SHA-256 differs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_description_that_does_not_fit_is_refused(changes, message, folder, backbone, untyped):
    edit(folder, **changes)
    refused(folder, message, backbone=backbone)


@pytest.mark.parametrize("key", ["format", "method", "backbone", "preprocessing", "classes", "sha256"])
def test_every_entry_of_the_description_is_needed(key, folder, backbone, untyped):
    path = folder / DESCRIPTION
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    refused(folder, key, backbone=backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "tensor head.bias is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "tensor more is not one of this method's"),
        (
            lambda t: t.update({"delta.prompts.0": torch.zeros(6, 3, 128)}),
            r"tensor delta\.prompts\.0 has shape \[6, 3, 128\], expected \[6, 4, 128\]",
        ),
        (lambda t: t.update({"head.bias": torch.ones(3)}), "SHA-256 differs"),
    ],
)
def test_other_tensors_are_refused_by_name(change, message, folder, backbone):
    tensors = safetensors.torch.load_file(folder / TENSORS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / TENSORS)
    refused(folder, message, backbone=backbone)


def test_files_of_two_deltas_do_not_mix(folder, backbone, tmp_path):
    other = make(backbone).save(tmp_path / "other")
    shutil.copy(other / TENSORS, folder / TENSORS)
    refused(folder, "Copy both files of one delta", backbone=backbone)


class Attack:
    def __reduce__(self):
        return os.mkdir, (os.environ["PROMPTVIT_ATTACK"],)


def test_a_pickle_is_refused_and_never_executed(folder, backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTVIT_ATTACK", str(tmp_path / "executed"))
    with (folder / TENSORS).open("wb") as file:
        pickle.dump({"delta.prompts.0": Attack()}, file)
    refused(folder, "not a safetensors file", backbone=backbone)
    torch.save({"delta.prompts.0": Attack()}, folder / TENSORS)
    refused(folder, "not a safetensors file", backbone=backbone)
    assert not (tmp_path / "executed").exists()


def test_a_failed_load_leaves_the_backbone_as_it_was(folder, backbone):
    before = backbone.fingerprint
    tensors = safetensors.torch.load_file(folder / TENSORS)
    safetensors.torch.save_file({**tensors, "head.bias": torch.ones(4)}, folder / TENSORS)
    refused(folder, "head.bias has shape", backbone=backbone)
    assert pv.from_timm(backbone.model).fingerprint == before
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_place_that_cannot_be_written_is_an_output_error(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        model.save(tmp_path / "file" / "delta")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_keeps_the_old_delta(failing, model, folder, backbone, images, monkeypatch):
    expected = model(images)
    other = make(backbone)
    calls = []

    def fsync(_):
        calls.append(1)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"No space left on device.*unchanged"):
        other.save(folder)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, TENSORS]
    assert torch.equal(pv.load(folder, backbone=backbone)(images), expected)


def test_saving_over_an_older_delta_replaces_it(backbone, folder, images):
    other = make(backbone, pv.VPT(length=2, depth="shallow"), ("yes", "no"))
    other.save(folder)
    assert torch.equal(pv.load(folder, backbone=backbone)(images), other(images))
