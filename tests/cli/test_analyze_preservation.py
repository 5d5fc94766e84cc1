"""`promptvit analyze preservation` as a person calls it, on real images."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import promptvit as pv
from promptvit.analysis.preservation import preservation, reading
from promptvit.cli.main import main
from promptvit.data.config import DataConfig

QUICK = ["--backbone.image_size", "16", "--train.epochs", "1", "--train.device", "cpu"]
CPU = ["--device", "cpu", "--images", "20"]
METHODS = ("vpt-deep", "full")


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        command = ["train", "--data", str(images), "--method", method, "--out", str(root / method), *QUICK]
        assert main(command) == 0
    return root


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """The same without results of other tests."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def ask(folders, *arguments):
    return main(["analyze", "preservation", *map(str, folders), *arguments, *CPU])


def asked(folders, capsys, *arguments):
    """The JSON that it prints, and what it says beside it."""
    capsys.readouterr()
    assert ask(folders, *arguments, "--json") == 0
    shown = capsys.readouterr()
    return json.loads(shown.out)["runs"], shown.err


def test_each_run_has_what_the_library_finds(runs, images, capsys):
    found, _ = asked([runs / name for name in METHODS], capsys, "--other", "digits")
    backbone = pv.load_backbone(image_size=16)
    for name, shown in zip(METHODS, found, strict=True):
        model = pv.load(runs / name / "delta", backbone=backbone)
        own, other = DataConfig(source=str(images)), DataConfig(source="digits")
        known = preservation(model, backbone, own, other=other, images=20)
        assert shown == {"run": str(runs / name), "other_data": "digits", "reading": reading(known), **known.to_dict()}
    vpt, full = found
    assert vpt["probes"]["before"] == full["probes"]["before"]
    assert set(vpt["weights"]) == {0}
    assert min(full["weights"]) > 0


def test_what_was_measured_is_read_again_and_a_killed_command_goes_on(runs, monkeypatch, capsys):
    folders = [runs / name for name in METHODS]
    (first, _) = asked(folders[:1], capsys)
    done = (folders[0] / "preservation.json").read_bytes()
    both, said = asked(folders, capsys)
    assert f"vpt-deep: measured before, in {folders[0] / 'preservation.json'}" in said
    assert "full" not in said
    assert both[:1] == first
    monkeypatch.setattr("promptvit.analysis.preservation.preservation", None)
    assert asked(folders, capsys)[0] == both
    assert (folders[0] / "preservation.json").read_bytes() == done
    assert ask(folders) == 0
    lines = capsys.readouterr().out
    assert ask(folders) == 0
    assert capsys.readouterr().out == lines


def test_another_question_or_another_delta_is_measured_anew(runs, capsys):
    folder = runs / "vpt-deep"
    (one,), _ = asked([folder], capsys)
    (other,), said = asked([folder], capsys, "--other", "digits")
    assert "measured before" not in said
    assert other["other"]["images"] == 20
    assert other["own"] == one["own"]
    shutil.rmtree(folder / "delta")
    shutil.copytree(runs / "full" / "delta", folder / "delta")
    (changed,), said = asked([folder], capsys, "--other", "digits")
    assert "measured before" not in said
    assert changed["weights"] != other["weights"]


@pytest.mark.parametrize("content", ["", "{}", '{"asked": {}}'])
def test_a_damaged_file_is_made_anew(content, runs, capsys):
    folder = runs / "vpt-deep"
    (known,), _ = asked([folder], capsys)
    (folder / "preservation.json").write_text(content)
    assert asked([folder], capsys)[0] == [known]


def test_results_can_be_kept_elsewhere(runs, tmp_path, capsys):
    folders = [runs / name for name in METHODS]
    found, _ = asked(folders, capsys, "--out", str(tmp_path / "kept"))
    assert len(list((tmp_path / "kept").glob("preservation-*.json"))) == 2
    assert not list(runs.rglob("preservation.json"))
    again, said = asked(folders, capsys, "--out", str(tmp_path / "kept"))
    assert again == found
    assert said.count("measured before") == 2


def test_without_json_it_is_a_sentence_and_a_table_for_each_run(runs, capsys):
    capsys.readouterr()
    assert ask([runs / "full"], "--other", "digits") == 0
    first, head, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("full: At the last depth a linear probe is right for")
    assert head.split()[0] == "depth"
    assert head.endswith("block moved by")
    assert [row.split()[0] for row in rows] == [str(depth) for depth in range(7)]
    assert rows[0].endswith("-")
    assert len({len(line) for line in (head, *rows)}) == 1


def test_the_figure_lays_runs_over_each_other(runs, tmp_path):
    figure = tmp_path / "a.svg"
    folders = [runs / name for name in METHODS]
    assert ask(folders, "--other", "digits", "--figure", str(figure)) == 0
    text = figure.read_text()
    names = ("pretrained", "vpt-deep", "full", "full, other images", "CKA, vpt-deep", "Weights of blocks moved")
    assert [text.count(f">{name}<") for name in names] == [1] * 6
    assert ask(folders[:1], "--figure", str(tmp_path / "a.png")) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 500


def test_runs_on_other_images_start_from_other_features(runs, tmp_path, capsys):
    assert main(["train", "--data", "digits", "--method", "linear", "--out", str(tmp_path / "digits"), *QUICK]) == 0
    figure = tmp_path / "a.svg"
    assert ask([runs / "full", tmp_path / "digits"], "--figure", str(figure)) == 0
    assert all(f">{name}, pretrained<" in figure.read_text() for name in ("full", "digits"))


def test_validation_images_that_were_trained_on_are_told(images, tmp_path, capsys):
    options = ["--data", str(images), "--method", "linear", "--data.train_on", "train+val", *QUICK]
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 0
    _, said = asked([tmp_path / "run"], capsys)
    assert "validation images were trained on, so probes after tuning say too much: run" in said


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--images", "1"], "1 images; expected at least 4", 1),
        (["--images", "0"], "images=0; expected at least 1", 2),
        (["--other", "missing"], "data source 'missing' is neither built in nor a folder", 1),
        (["--other", "OWN"], "the images that the model was tuned on; expected images of another task", 2),
        (["--figure", "a.gif"], "a figure called a.gif; expected .png or .svg", 2),
        (["missing"], "missing holds no delta", 1),
    ],
)
def test_wrong_usage(arguments, message, code, runs, images, capsys):
    capsys.readouterr()
    words = [str(images) if word == "OWN" else word for word in arguments]
    assert main(["analyze", "preservation", str(runs / "full"), *words, *([] if "--images" in words else CPU)]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""
    assert not list(runs.rglob("preservation.json"))


def test_runs_of_two_backbones_are_refused(runs, images, tmp_path, capsys):
    command = ["train", "--data", str(images), "--method", "linear", "--out", str(tmp_path / "mae"), *QUICK]
    assert main([*command, "--backbone", "vit_pico_mae"]) == 0
    capsys.readouterr()
    folders, figure = [runs / "full", tmp_path / "mae"], tmp_path / "a.png"
    assert ask(folders, "--figure", str(figure)) == 2
    assert "full and mae were tuned on different backbones; expected runs of the same" in capsys.readouterr().err
    assert ask(folders) == 0


def test_a_convnet_is_refused(images, tmp_path, capsys):
    weights = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), weights)
    options = ["--backbone", "resnet10t", "--backbone.checkpoint", str(weights), "--backbone.image_size", "32"]
    command = ["train", "--data", str(images), "--method", "linear", "--out", str(tmp_path / "conv"), *options]
    assert main([*command, "--train.epochs", "1", "--train.device", "cpu"]) == 0
    capsys.readouterr()
    assert ask([tmp_path / "conv"]) == 2
    assert "a resnet backbone, which has no rows between its blocks; expected a transformer" in capsys.readouterr().err
