"""`promptvit analyze nmi` and `train --nmi` as a person calls them, on real images."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from promptvit.cli.main import main

QUICK = ["--backbone.image_size", "16", "--train.epochs", "1", "--train.device", "cpu", "--method.length", "3"]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    """Trained with `--nmi tokens`."""
    folder = tmp_path_factory.mktemp("runs") / "_zero$or$one"  # a name that is no formula and no private label
    assert main(["train", "--data", str(images), "--out", str(folder), "--nmi", "tokens", *QUICK]) == 0
    return folder


@pytest.fixture
def plain(run, tmp_path) -> Path:
    """The same without its curve."""
    shutil.copytree(run, tmp_path / "plain")
    (tmp_path / "plain" / "nmi.jsonl").unlink()
    return tmp_path / "plain"


def test_the_result_is_the_end_of_the_curve(run, capsys):
    assert main(["analyze", "nmi", str(run), "--variant", "tokens", "--json", *CPU]) == 0
    (result,) = json.loads(capsys.readouterr().out)["runs"]
    assert result["run"] == str(run)
    assert [row["epoch"] for row in result["epochs"]] == [0, 1]
    assert result["blocks"] == pytest.approx(result["epochs"][-1]["blocks"], rel=1e-5)
    assert result["mean"] == pytest.approx(sum(result["blocks"]) / 6)


def test_without_json_it_is_a_few_lines(run, plain, capsys):
    assert main(["analyze", "nmi", str(run), str(plain), "--images", "2", *CPU]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(run.name)}: NMI 0\.\d{{4}} \(attention\)", lines[0])
    assert re.fullmatch(r"  by block ( 0\.\d{4}){6}", lines[1])
    assert [line.partition(":")[0] for line in lines[2::2]] == ["plain"]  # no curve of this variant
    assert main(["analyze", "nmi", str(run), "--variant", "tokens", *CPU]) == 0
    assert re.search(r"  by epoch  0\.\d{4} after 0 to 0\.\d{4} after 1\n", capsys.readouterr().out)


@pytest.mark.parametrize("ending", ["png", "SVG"])
def test_the_figure_has_a_line_for_each_run_with_a_curve(ending, run, plain, tmp_path, capsys):
    figure, other = tmp_path / f"nmi.{ending}", tmp_path / "elsewhere" / run.name
    shutil.copytree(run, other)
    command = ["analyze", "nmi", str(run), str(plain), str(other), "--variant", "tokens", "--figure", str(figure)]
    assert main([*command, *CPU]) == 0
    assert "without NMI (tokens) by epoch: plain" in capsys.readouterr().err
    if ending == "png":
        with Image.open(figure) as picture:
            assert min(picture.size) > 500
    else:
        text = figure.read_text()
        assert all(f">{label}<" in text for label in (str(run), str(other), "epoch"))  # two of a name: as typed
        assert "NMI of prompts and patches (tokens)" in text


def test_other_images_can_be_named(run, images, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run / "delta", moved)  # a delta alone does not know its images
    assert main(["analyze", "nmi", str(moved), "--json", *CPU]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    results = []
    for folder, data in ((run, []), (moved, ["--data", str(images)])):
        assert main(["analyze", "nmi", str(folder), *data, "--json", *CPU]) == 0
        results.append(json.loads(capsys.readouterr().out)["runs"][0]["blocks"])
    assert results[0] == results[1]


def test_help_says_what_there_is(capsys):
    assert main(["analyze", "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"  nmi +NMI of prompts and patches", shown)
    assert re.search(r"  embedding +features before and after tuning", shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no WHAT; expected nmi, embedding"),
        (["nni", "RUN"], "unknown WHAT 'nni'. Did you mean nmi?"),
        (["nmi"], "the following arguments are required: runs"),
        (["nmi", "RUN", "--variant", "token"], "--variant token; expected attention, tokens, clustering"),
        (["nmi", "RUN", "--images", "0"], "images=0; expected at least 1"),
        (["nmi", "RUN", "--figure", "nmi.jpg"], "a figure called nmi.jpg; expected .png or .svg"),
        (["nmi", "RUN", "--figure", "nmi.png"], "no NMI (attention) by epoch in _zero$or$one"),
        (["nmi", "RUN", "--data.augment", "flip"], "unknown option --data.augment"),
    ],
)
def test_wrong_usage(arguments, message, run, capsys):
    assert main(["analyze", *(str(run) if word == "RUN" else word for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""


def test_a_run_keeps_to_what_it_follows(run, images, tmp_path, capsys):
    again = ["train", "--data", str(images), "--out", str(run), "--resume", *QUICK]
    assert main([*again, "--nmi", "attention"]) == 2
    assert "--nmi attention with --resume; expected tokens" in capsys.readouterr().err
    assert main(again) == 0
    command = ["train", "--data", str(images), "--method", "linear", *QUICK[:-2]]
    assert main([*command, "--out", str(tmp_path / "run"), "--nmi", "attention"]) == 2
    assert "the method linear puts no prompts beside the patches" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # so that the corrected command may go there


def test_a_finished_run_cannot_begin_a_curve(images, plain, capsys):
    again = ["train", "--data", str(images), "--out", str(plain), "--resume", *QUICK]
    assert main([*again, "--nmi", "tokens"]) == 2
    assert f"promptvit analyze nmi {plain} --variant tokens" in capsys.readouterr().err
    assert main(again) == 0


@pytest.mark.parametrize("folders", [["RUN", "missing"], ["missing", "--figure", "nmi.svg"]], ids=len)
def test_every_folder_is_looked_at_before_the_first_is_measured(folders, run, monkeypatch, capsys):
    monkeypatch.setattr("promptvit.analysis.nmi.task_nmi", None)
    assert main(["analyze", "nmi", *(str(run) if word == "RUN" else word for word in folders)]) == 1
    assert "missing holds no delta" in capsys.readouterr().err


def test_a_figure_comes_after_all_else(run, tmp_path, capsys):
    delta = tmp_path / "broken" / "delta"
    shutil.copytree(run, delta.parent)
    next(path for path in delta.iterdir() if path.name != "delta.json").write_bytes(b"")
    command = ["analyze", "nmi", str(run), str(delta.parent), "--variant", "tokens", *CPU]
    assert main([*command, "--figure", str(tmp_path / "nmi.svg")]) == 1
    assert "is truncated" in capsys.readouterr().err
    assert not (tmp_path / "nmi.svg").exists()
