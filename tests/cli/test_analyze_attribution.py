"""`promptvit analyze attribution` and `analyze attention` as a person calls them, on real images."""

import json
import re
import shutil

import pytest
from PIL import Image

import promptvit as pv
from promptvit.analysis.attention import prompt_attention
from promptvit.analysis.images import batches, choose
from promptvit.cli.main import main
from promptvit.data.config import DataConfig
from promptvit.data.load import load_split, load_task

QUICK = ["--backbone.image_size", "16", "--train.epochs", "1", "--train.device", "cpu"]
CPU = ["--device", "cpu"]
KINDS = ("grad-cam", "rollout", "integrated-gradients")


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Folders of runs by name: two of one task, and one of the ten digits."""
    root = tmp_path_factory.mktemp("runs")
    for name, method, data in (
        ("vpt", ["vpt-deep", "--method.length", "3"], images),
        ("poor", ["full", "--train.learning_rate", "1e-9", "--train.head", "paper"], images),
        ("digits", ["linear"], "digits"),
    ):
        assert main(["train", "--data", str(data), "--method", *method, "--out", str(root / name), *QUICK]) == 0
    return root


def asked(arguments, capsys):
    """The JSON that it prints."""
    capsys.readouterr()
    assert main(["analyze", *arguments, "--json", *CPU]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", KINDS)
def test_one_run_is_drawn_and_scored(kind, runs, tmp_path, capsys):
    figure = tmp_path / "a.png"
    command = ["attribution", str(runs / "vpt"), "--kind", kind, "--images", "6", "--show", "3"]
    result = asked([*command, "--figure", str(figure), "--score"], capsys)
    assert (result["kind"], result["images"]) == (kind, 6)
    (run,) = result["runs"]
    assert run["run"] == str(runs / "vpt")
    assert 0 <= run["accuracy"] <= 1
    for name in ("deletion", "insertion"):
        assert set(run[name]) == {"maps", "random", "p"}
    with Image.open(figure) as picture:
        assert picture.width > picture.height > 300


def test_without_json_it_is_a_few_lines(runs, capsys):
    capsys.readouterr()
    assert main(["analyze", "attribution", str(runs / "vpt"), "--images", "5", "--score", *CPU]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"vpt: \d+\.\d% of 5 images right", lines[0])
    number = r"0\.\d{3}"
    assert re.fullmatch(rf"  deletion   {number}, random maps {number} \(lower is better; p = \S+\)", lines[1])
    assert re.fullmatch(rf"  insertion  {number}, random maps {number} \(higher is better; p = \S+\)", lines[2])


def test_two_runs_are_shown_where_they_differ(runs, tmp_path, capsys):
    figure, both = tmp_path / "a.svg", [str(runs / "vpt"), str(runs / "poor")]
    result = asked(["attribution", *both, "--figure", str(figure)], capsys)
    assert result["differ"] > 0
    assert sum(result["right"]) == result["differ"]  # of two classes, one is right
    shown = figure.read_text()
    assert ">vpt<" in shown
    assert ">poor<" in shown
    assert shown.count("<image") == 3 * min(8, result["differ"])  # alone, and with the map of each run
    capsys.readouterr()
    assert main(["analyze", "attribution", *both, *CPU]) == 0
    assert re.search(r"they differ on \d+: vpt is right on \d+, poor on \d+\n", capsys.readouterr().out)


def test_runs_that_agree_have_nothing_to_draw(runs, tmp_path, capsys):
    shutil.copytree(runs / "vpt", tmp_path / "copy")
    command = ["analyze", "attribution", str(runs / "vpt"), str(tmp_path / "copy"), *CPU]
    assert main(command) == 0
    assert "they differ on 0" in capsys.readouterr().out
    assert main([*command, "--figure", str(tmp_path / "a.png")]) == 2
    assert "the runs agree on every image" in capsys.readouterr().err


def test_attention_to_prompts_of_each_run(runs, images, tmp_path, capsys):
    figure = tmp_path / "a.svg"
    result = asked(["attention", str(runs / "vpt"), "--images", "5", "--figure", str(figure)], capsys)["runs"][0]
    model = pv.load(runs / "vpt" / "delta")
    data = DataConfig(source=str(images))
    pixels, _ = choose(load_split(load_task(data).val, model.preprocessing, data), 5, "test")
    found = prompt_attention(model, batches(pixels, model.preprocessing, model.device))
    assert [block["mass"] for block in result["blocks"]] == pytest.approx([block.mass for block in found], rel=1e-5)
    assert [block["even"] for block in result["blocks"]] == pytest.approx([block.even for block in found])
    shown = figure.read_text()
    assert all(f">{text}<" in shown for text in ("block", "attention to prompts", "vpt"))
    assert main(["analyze", "attention", str(runs / "vpt"), *CPU]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"vpt: attention to prompts, by block \(\d+ images\)", lines[0])
    assert re.fullmatch(r"  mass ( 0\.\d{3}){6}", lines[1])
    assert re.fullmatch(r"  even ( 0\.\d{3}){6}", lines[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attribution", "vpt", "vpt"], "the same run twice"),
        (["attribution", "vpt", "digits", "other"], "3 runs: expected one, or two to compare"),
        (["attribution", "vpt", "--score", "--show", "0"], "show=0: expected at least 1"),
        (["attribution", "vpt", "--score", "--images", "0"], "images=0; expected at least 1"),
        (["attribution", "vpt", "--kind", "cam"], "--kind cam; expected grad-cam, rollout"),
        (["attribution", "vpt", "--figure", "a.jpg"], "a figure called a.jpg"),
        (["attribution", "vpt", "digits"], "vpt and digits are of different images or classes"),
        (["attention", "digits"], "the method linear puts no prompts beside the patches"),
    ],
)
def test_wrong_usage(arguments, message, runs, capsys):
    typed = [str(runs / word) if word in ("vpt", "digits") else word for word in arguments]
    assert main(["analyze", *typed, *CPU]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_single_image_cannot_be_compared(runs, capsys):
    assert main(["analyze", "attribution", str(runs / "vpt"), "--score", "--images", "1", *CPU]) == 1
    assert "1 image; expected at least two to compare" in capsys.readouterr().err


@pytest.mark.slow
def test_maps_of_a_trained_model_are_evidence(tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "--data", "digits", "--method", "vpt-deep", "--train.epochs", "10", "--out", str(run)]
    assert main([*command, "--train.device", "cpu"]) == 0
    for kind, images in (("rollout", "60"), ("integrated-gradients", "30")):  # Grad-CAM marks the empty ground too
        result = asked(["attribution", str(run), "--kind", kind, "--images", images, "--score"], capsys)
        (scores,) = result["runs"]
        assert scores["insertion"]["p"] < 0.01, kind
        assert scores["deletion"]["p"] < 0.01, kind
