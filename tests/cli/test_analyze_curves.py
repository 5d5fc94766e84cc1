"""`promptvit analyze curves` as a person calls it."""

import json
import shutil

import pytest
import yaml
from PIL import Image

from promptvit.analysis.curves import overfitting, read_rows, reading
from promptvit.cli.main import main

QUICK = ["--backbone.image_size", "16", "--train.epochs", "2", "--train.device", "cpu"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "linear"
    assert main(["train", "--data", str(images), "--method", "linear", "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def worse(run, tmp_path):
    """The same run with a validation loss that rises again."""
    folder = tmp_path / "worse"
    shutil.copytree(run, folder)
    (row, _) = read_rows(run)
    rows = [row | {"epoch": place + 1, "val_loss": loss} for place, loss in enumerate([1.0, 0.8, 0.9, 1.2, 1.4])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


def asked(arguments, capsys):
    """The JSON that it prints."""
    capsys.readouterr()
    assert main(["analyze", "curves", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["runs"]


def test_each_run_has_its_figures_and_a_reading(run, worse, capsys):
    good, bad = asked([str(run), str(worse)], capsys)
    for folder, shown in ((run, good), (worse, bad)):
        known = overfitting(read_rows(folder))
        assert shown == {"run": str(folder), "reading": reading(known), **known.to_dict()}
    assert (good["overfits"], bad["overfits"]) == (False, True)
    assert "minimum at epoch 2 of 5 and ends 75 % above: it overfits." in bad["reading"]


def test_without_json_it_is_a_sentence_each_and_a_table(run, worse, capsys):
    capsys.readouterr()
    assert main(["analyze", "curves", str(run), str(worse)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["linear", "worse"]
    assert lines[3].split()[:3] == ["run", "epochs", "minimum"]
    assert [line.split()[0] for line in lines[4:]] == ["linear", "worse"]
    assert [line.split()[-1] for line in lines[4:]] == ["no", "yes"]
    assert len({len(line) for line in lines[3:]}) == 1


@pytest.mark.parametrize("log", [[], ["--log"]])
def test_the_figure_has_a_chart_for_each_run(log, run, worse, tmp_path):
    figure = tmp_path / "a.svg"
    assert main(["analyze", "curves", str(run), str(worse), "--figure", str(figure), *log]) == 0
    text = figure.read_text()
    assert [text.count(f">{name}<") for name in ("linear", "worse", "training", "validation (ring: minimum)")] == [
        1
    ] * 4
    assert text.count(">epoch<") == 2
    assert main(["analyze", "curves", str(run), "--figure", str(tmp_path / "a.png"), *log]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 400


def test_validation_images_that_were_trained_on_say_nothing(worse, capsys):
    config = yaml.safe_load((worse / "config.yaml").read_text())
    config["data"]["train_on"] = "train+val"
    (worse / "config.yaml").write_text(yaml.safe_dump(config))
    (shown,) = asked([str(worse)], capsys)
    assert shown["overfits"] is None
    assert "images were trained on" in shown["reading"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--log"], "--log without a figure; expected --figure FILE with it"),
        (["--figure", "a.gif"], "a figure called a.gif; expected .png or .svg"),
        (["missing"], "missing has no metrics.jsonl; expected the folder of a run"),
    ],
)
def test_wrong_usage(arguments, message, run, capsys):
    capsys.readouterr()
    assert main(["analyze", "curves", str(run), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""


def test_help_needs_no_torch(run_python):
    program = """
import sys
from promptvit.cli.main import main
for name in ("curves", "preservation"):
    try:
        main(["analyze", name, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
print([name for name in ("torch", "timm", "sklearn", "matplotlib.pyplot") if name in sys.modules])
"""
    shown = run_python(program)
    assert shown.endswith("[]")
    assert "before 80 % of the" in " ".join(shown.split())
