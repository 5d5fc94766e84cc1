"""`promptvit prune` as a person calls it, on real images."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import promptvit as pv
from promptvit.cli.main import main
from promptvit.cli.prune import bracketed, cells

QUICK = ["--backbone.image_size", "16", "--train.epochs", "1", "--train.device", "cpu"]
SMALL = ["--tokens", "[1]", "--segments", "[8]", "--budget", "1"]


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    """A run with three prompts per block."""
    folder = tmp_path_factory.mktemp("runs") / "zero-or-one"
    assert main(["train", "--data", str(images), "--method.length", "3", "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture(scope="module")
def linear(images, tmp_path_factory) -> Path:
    """A run without prompts."""
    folder = tmp_path_factory.mktemp("runs") / "linear"
    assert main(["train", "--data", str(images), "--method", "linear", "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture(scope="module")
def pruned(finished) -> Path:
    """The folder beside it that is the default."""
    assert main(["prune", str(finished), *SMALL, "--tolerance", "100"]) == 0
    return finished.with_name("zero-or-one-pruned")


def test_a_table_says_what_was_tried_and_what_came_of_it(finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prune", str(finished), "--out", str(out), *SMALL, "--tolerance", "100"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert re.split(r"  +", lines[0].strip()) == [
        *("prompts", "segments", "parameters", "MFLOPs", "delta", "val before", "after mask", "after rewind")
    ]
    rows = [line.replace("*", " ").split() for line in lines[1:5]]
    assert [row[:2] for row in rows] == [["3", "48"], ["3", "24"], ["2", "32"], ["2", "16"]]
    assert [row[2] for row in rows] == [f"{6 * 8 * segments + 258:,}" for segments in (48, 24, 32, 16)]
    assert [line.startswith("*") for line in lines[1:5]].count(True) == 1
    assert sum(len(row) == 9 for row in rows) == 1  # one was trained again; the size of a file has a unit beside it
    assert len(rows[0]) == 7  # and the run itself was not
    assert re.search(r"chosen \(\*\): \d+ % of the prompt values.*; val accuracy \d+\.\d % before", lines[-2])
    assert lines[-1] == f"saved in {out}"
    assert "Traceback" not in captured.err


def test_json_is_the_summary(finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prune", str(finished), "--out", str(out), *SMALL, "--epochs", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["command"].startswith(f"promptvit prune {finished} --out {out}")
    assert summary["pruning"]["settings"]["tokens"] == [1]
    assert summary["pruning"]["settings"]["budget"] == 1


def test_the_result_is_used_like_a_run(pruned, images, capsys):
    assert main(["evaluate", str(pruned), "--split", "val", "--device", "cpu", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    known = json.loads((pruned / "summary.json").read_text())
    assert metrics["top1"] == known["result"]["val"]["top1"]
    assert metrics["loss"] == pytest.approx(known["result"]["val"]["loss"], rel=1e-5)
    first = sorted((images / "zero").iterdir())[0]
    assert main(["predict", str(pruned), str(first), "--device", "cpu", "--json"]) == 0
    (prediction,) = json.loads(capsys.readouterr().out)["predictions"]
    assert {found["name"] for found in prediction["classes"]} == {"zero", "one"}


def test_a_finished_search_is_shown_again(finished, pruned, capsys):
    before = (pruned / "summary.json").read_bytes()
    arguments = ["prune", str(finished), "--out", str(pruned), *SMALL, "--tolerance", "100"]
    assert main([*arguments, "--resume"]) == 0
    assert "chosen (*)" in capsys.readouterr().out
    assert main(arguments) == 1
    assert f"{pruned} holds a search already" in capsys.readouterr().err
    assert (pruned / "summary.json").read_bytes() == before


@pytest.mark.parametrize("here", [".", "..", "./"])
def test_the_folder_beside_the_run_has_its_name_wherever_one_stands(here, finished, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(finished, tmp_path / "mine")
    (tmp_path / "mine-pruned").mkdir()
    (tmp_path / "mine-pruned" / "thesis.tex").touch()
    monkeypatch.chdir(run / "delta" if here == ".." else run)
    assert main(["prune", here, *SMALL]) == 1
    assert f"{tmp_path}/mine-pruned is in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "budget=0: expected at least 1"),
        (["--percents", "[50, 101]"], "percents: 101.0: expected 0 to 100"),
        (["--percents", "[-5]"], "percents: -5.0: expected 0 to 100"),
        (["--tokens", "[3]"], "prompts: 3 of 3 pruned: 1 are always kept"),
        (["--score", "signed"], "score"),
        (["--rewind", "init"], "rewind"),
        (["--resume"], "expected --out with the folder of a search that was begun"),
        (["--parts", "5", "--keep_segments", "1"], "5 segments of prompts of width 128; expected a divisor"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line(options, message, finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prune", str(finished), "--out", str(out), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("promptvit prune: ")
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_what_cannot_be_pruned_is_said_in_one_line(finished, linear, pruned, tmp_path, capsys):
    out = tmp_path / "out"
    for arguments, code, message in (
        ([linear], 2, "the method linear has no visual prompts; expected vpt, spt or e2vpt"),
        ([pruned], 2, "it is pruned already; prune the run that it comes from"),
        ([tmp_path / "nowhere"], 2, "nowhere holds no run that is done"),
        ([finished, "--rewind", "early"], 1, "has kept no values of early. Train it again with --train.keep_epoch"),
    ):
        assert main(["prune", *map(str, arguments), "--out", str(out)]) == code
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert not out.exists()


def test_folders_of_others_are_left_alone(finished, linear, pruned, tmp_path, capsys):
    before = {path: path.read_bytes() for path in pruned.rglob("*") if path.is_file()}
    assert main(["prune", str(finished), "--out", str(linear)]) == 1
    assert f"{linear} is in use" in capsys.readouterr().err
    other, model = shutil.copytree(finished, tmp_path / "other"), pv.load(finished / "delta")
    torch.nn.init.ones_(model.head.bias)
    model.save(other / "delta")
    assert main(["prune", str(other), "--out", str(pruned), *SMALL, "--tolerance", "100", "--resume"]) == 1
    message = capsys.readouterr().err
    assert "belong to another run" in message
    assert message.count("\n") == 1
    assert main(["prune", str(finished), "--out", str(pruned), "--budget", "2", "--resume"]) == 2
    assert re.search(r"budget, .*tolerance differ from .*prune.json", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in pruned.rglob("*") if path.is_file()} == before


def test_numbers_are_lists_where_lists_are_wanted():
    given = ["run", "--tokens", "2,5", "--segments=4", "--percents", "[20]", "--budget", "3"]
    assert bracketed(given) == ["run", "--tokens", "[2,5]", "--segments=[4]", "--percents", "[20]", "--budget", "3"]


def test_a_training_that_failed_is_in_the_table():
    row = {"kept_tokens": 8, "kept_segments": 128, "trained_parameters": 100, "flops": 1e6, "delta_bytes": 1024}
    unpruned = {**row, "masked": {"top1": 0.5}}
    assert cells({**row, "masked": {"top1": 0.25}, "failed": "the loss is nan"}, unpruned)[-3:] == (
        "50.0",
        "25.0",
        "failed",
    )
