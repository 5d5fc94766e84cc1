"""`promptvit analyze embedding` as a person calls it, on real images."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import silhouette_score

import promptvit as pv
from promptvit.analysis.embedding import task_features
from promptvit.cli.main import main
from promptvit.data.config import DataConfig

QUICK = ["--backbone.image_size", "16", "--train.epochs", "1", "--train.device", "cpu"]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Folders of runs by the name of their method."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("linear", "full", "vpt-deep"):
        command = ["train", "--data", str(images), "--method", method, "--out", str(root / method), *QUICK]
        assert main(command) == 0
    return root


def asked(arguments, capsys):
    """The JSON that it prints."""
    capsys.readouterr()
    assert main(["analyze", "embedding", *arguments, "--json", *CPU]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_run_has_its_points_before_and_after(runs, images, capsys):
    shown = asked([str(runs / name) for name in ("linear", "full", "vpt-deep")], capsys)
    assert (shown["kind"], shown["seed"]) == ("tsne", 0)
    linear, full, vpt = shown["runs"]
    assert linear["run"] == str(runs / "linear")
    assert linear["classes"] == ["one", "zero"]
    assert set(linear["labels"]) == {0, 1}
    assert np.array(linear["before"]["points"]).shape == (len(linear["labels"]), 2)
    assert linear["after"] == linear["before"]
    for other in (full, vpt):
        assert other["before"] == linear["before"]
        assert other["after"]["points"] != linear["before"]["points"]
    backbone = pv.load_backbone(image_size=16)
    model = pv.load(runs / "full" / "delta", backbone=backbone)
    found = task_features(model, backbone, DataConfig(source=str(images)))
    for features, moment in ((found.before, "before"), (found.after, "after")):
        score = silhouette_score(features, found.labels, metric="cosine")
        assert full[moment]["silhouette"] == pytest.approx(score, abs=1e-5)


def test_runs_that_share_what_was_before_share_its_panel(runs, tmp_path, capsys):
    figure = tmp_path / "a.svg"
    capsys.readouterr()
    command = ["analyze", "embedding", str(runs / "linear"), str(runs / "full"), "--figure", str(figure), *CPU]
    assert main(command) == 0
    text = figure.read_text()
    assert [text.count(f">{title}<") for title in ("before", "linear: after", "full: after", "zero")] == [1, 1, 1, 1]
    lines = capsys.readouterr().out.splitlines()
    score = r"-?0\.\d{3}"
    images = r"\(\d+ images, 2 classes\)"
    assert re.fullmatch(rf"linear: silhouette ({score}) before, \1 after {images}", lines[0])
    assert re.fullmatch(rf"full: silhouette {score} before, {score} after {images}", lines[1])


def test_other_runs_have_a_row_each(runs, tmp_path, capsys):
    figure, digits = tmp_path / "a.svg", tmp_path / "digits"
    assert main(["train", "--data", "digits", "--method", "linear", "--out", str(digits), *QUICK]) == 0
    command = ["analyze", "embedding", str(runs / "linear"), str(digits), "--images", "30", "--figure", str(figure)]
    assert main([*command, *CPU]) == 0
    text = figure.read_text()
    titles = [f"{name}: {moment}" for name in ("linear", "digits") for moment in ("before", "after")]
    assert [text.count(f">{title}<") for title in titles] == [1, 1, 1, 1]
    assert ">zero<" in text
    assert ">9<" in text


@pytest.mark.slow
def test_the_disk_of_a_run(runs, tmp_path, capsys):
    figure = tmp_path / "a.png"
    (run,) = asked([str(runs / "vpt-deep"), "--kind", "poincare", "--figure", str(figure)], capsys)["runs"]
    for moment in ("before", "after"):
        assert (np.hypot(*np.array(run[moment]["points"]).T) < 1).all()
    with Image.open(figure) as picture:
        assert min(picture.size) > 500


def test_other_images_can_be_named(runs, images, capsys):
    chosen = [asked([str(runs / "linear"), *data], capsys)["runs"] for data in ([], ["--data", str(images)])]
    assert chosen[0] == chosen[1]
    (fewer,) = asked([str(runs / "linear"), "--images", "6"], capsys)["runs"]
    assert len(fewer["labels"]) == 6


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ([], "nothing to make; expected --figure FILE or --json", 2),
        (["--figure", "a.gif"], "a figure called a.gif; expected .png or .svg", 2),
        (["--kind", "pca", "--json"], "--kind pca; expected tsne, umap, poincare", 2),
        (["--images", "0", "--json"], "images=0; expected at least 1", 2),
        (["--images", "4", "--json"], "4 images; expected at least 5", 1),
        (["--seed", "-1", "--json"], "seed=-1; expected 0 to 2**32 - 1", 2),
    ],
)
def test_wrong_usage(arguments, message, code, runs, capsys):
    capsys.readouterr()
    assert main(["analyze", "embedding", str(runs / "linear"), *arguments, *CPU]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""


def test_every_folder_is_looked_at_before_the_first_is_read(runs, monkeypatch, capsys):
    monkeypatch.setattr("promptvit.analysis.embedding.task_features", None)
    assert main(["analyze", "embedding", str(runs / "linear"), "missing", "--json"]) == 1
    assert "missing holds no delta" in capsys.readouterr().err


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert main(["analyze", "embedding", "missing", "--kind", "umap", "--json"]) == 2
    assert "pip install 'promptvit[analysis]'" in capsys.readouterr().err
