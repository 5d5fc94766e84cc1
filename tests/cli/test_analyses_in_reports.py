"""What `analyze` finds, of runs and of whole studies, and the reports that show it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest
from tests.search.conftest import write_task

from promptvit.cli.main import main

SMALL = ["--backbone.image_size", "16", "--train.epochs", "2", "--train.device", "cpu"]
CPU = ["--device", "cpu", "--images", "20"]


def section(folder: Path, name: str) -> str:
    """A section of the report, as it is written; empty if there is none."""
    found = re.search(rf'<section id="{name}".*?</section>', (folder / "report.html").read_text(), re.DOTALL)
    return found[0] if found else ""


def plain(markup: str) -> str:
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", markup).split()))


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    for name, *method in (
        ("vpt", "vpt-deep"),
        ("full", "full", "--train.learning_rate", "0.01"),
        ("poor", "full", "--train.learning_rate", "1e-9", "--train.head", "paper"),
    ):
        assert main(["train", "--data", str(images), "--method", *method, "--out", str(root / name), *SMALL]) == 0
    return root


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A study of two ways on two tasks."""
    root = tmp_path_factory.mktemp("study")
    for name, classes in (("low", (0, 1)), ("high", (5, 6))):
        write_task(root / "tasks" / name, classes)
    settings = ["train.epochs=2", "train.warmup_epochs=0", "train.learning_rate=0.01"]
    options = [word for each in settings for word in ("--set", each)]
    rows = ["--methods", "vpt-deep,full", "--seeds", "0", "--device", "cpu"]
    assert main(["bench", str(root / "tasks"), "--out", str(root / "study"), *rows, *options]) == 0
    return root / "study"


@pytest.fixture
def study(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory) -> Path:
    """The same study, whose final runs were measured."""
    folder = tmp_path_factory.mktemp("measured") / "study"
    shutil.copytree(finished, folder)
    assert main(["analyze", "preservation", str(folder), *CPU]) == 0
    return folder


@pytest.fixture
def kept(measured, tmp_path) -> Path:
    shutil.copytree(measured, tmp_path / "kept")
    return tmp_path / "kept"


def test_a_run_shows_what_tuning_kept(runs, capsys):
    folder = runs / "full"
    assert main(["analyze", "preservation", str(folder), "--other", "digits", *CPU, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert main(["report", str(folder)]) == 0
    shown = section(folder, "preserved")
    assert found["reading"] in plain(shown)
    assert shown.count("<svg") == 5
    assert "images of digits" in plain(shown)
    last = found["own"]["cka"][found["read"]][-1][-1]
    assert f"pretrained 6, tuned 6: {last:.3f}" in unescape(shown)
    assert f"{found['weights'][2]:.3f}" in shown


def test_a_run_whose_weights_stay_has_no_picture_of_them(runs):
    assert main(["analyze", "preservation", str(runs / "vpt"), *CPU]) == 0
    assert main(["report", str(runs / "vpt")]) == 0
    shown = section(runs / "vpt", "preserved")
    assert shown.count("<svg") == 4
    assert "No weight of a block has moved" in plain(shown)


def test_a_run_shows_the_maps_that_were_looked_at_last(runs, images):
    folder = runs / "vpt"
    assert main(["analyze", "attribution", str(folder), "--show", "3", *CPU]) == 0
    assert main(["report", str(folder)]) == 0
    shown = section(folder, "maps")
    assert shown.count("<img") == 6
    assert f"of 8 validation images of {images.name}. Grad-CAM of 3 of them; dark" in plain(shown)
    assert f"promptvit analyze attribution {folder} --kind grad-cam --score" in plain(shown)
    assert main(["analyze", "attribution", str(folder), "--show", "2", "--kind", "rollout", "--score", *CPU]) == 0
    kept = json.loads((folder / "attribution.json").read_text())
    assert main(["report", str(folder)]) == 0
    shown = section(folder, "maps")
    assert shown.count("<img") == 4
    deletion = kept["scores"]["deletion"]
    assert f"Deletion {deletion['maps']:.3f}, of random maps {deletion['random']:.3f}" in plain(shown)


def test_two_runs_stand_beside_each_other_in_both_reports(runs):
    folders = [runs / "vpt", runs / "poor"]
    assert main(["analyze", "attribution", *map(str, folders), "--device", "cpu"]) == 0
    for folder, other in (folders, folders[::-1]):
        assert main(["report", str(folder)]) == 0
        shown = section(folder, "maps")
        kept = json.loads((folder / "attribution.json").read_text())
        assert [each["run"] for each in kept["runs"]] == [folder.name, other.name]
        assert shown.count("<img") == 3 * len(kept["labels"]) > 0
        assert f"on which {folder.name} and {other.name} differ" in plain(shown)
        assert shown.count('class="good"') == len(kept["labels"])  # of two classes, one is right


@pytest.mark.parametrize("name", ["preservation.json", "attribution.json"])
@pytest.mark.parametrize("change", ["damaged", "of another delta", "of a run without delta"])
def test_what_does_not_fit_is_left_out(name, change, runs):
    folder = runs / "vpt"
    analysis = name.removesuffix(".json")
    assert main(["analyze", analysis, str(folder), *CPU]) == 0
    if change == "damaged":
        (folder / name).write_text('{"asked": {}, "runs": [')
    else:
        shutil.rmtree(folder / "delta")
    if change == "of another delta":
        shutil.copytree(runs / "full" / "delta", folder / "delta")
    assert main(["report", str(folder)]) == 0
    assert not section(folder, "preserved")
    assert not section(folder, "maps")


def test_a_study_shows_how_its_runs_learn(study, capsys):
    assert main(["analyze", "curves", str(study), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert len(found) == 4
    assert main(["report", str(study)]) == 0
    shown = section(study, "learning")
    assert shown.count("<svg") == 2
    assert f"full: {sum(each['overfits'] for each in found if '/full/' in each['run']) or 'none'} of 2 runs" in plain(
        shown
    )
    assert all(f"{each['gap']:.3f}" in shown for each in found)


def test_a_study_trained_on_validation_images_is_judged_by_its_searches(study):
    values = json.loads((study / "results.json").read_text())
    values["protocol"]["retrain"] = "train+val"
    for cell in values["cells"]:
        (final,) = cell["finals"]
        cell["chosen"] = {"train.learning_rate": 0.01}
        point = {"settings": cell["chosen"], "state": "complete", "val_top1": 0.5, "folder": final["folder"]}
        cell["points"] = [{**point, "settings": {"train.learning_rate": 1.0}, "folder": "gone"}, point]
        final["folder"] = "gone"
    (study / "results.json").write_text(json.dumps(values))
    assert main(["report", str(study)]) == 0
    assert "full: " in plain(section(study, "learning"))
    for cell in values["cells"]:
        cell["points"] = []
    (study / "results.json").write_text(json.dumps(values))
    assert main(["report", str(study)]) == 0
    assert not section(study, "learning")


def test_a_study_shows_what_its_runs_kept(kept, capsys):
    command = ["analyze", "preservation", str(kept), *CPU]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert main(["report", str(kept)]) == 0
    shown = plain(section(kept, "preserved"))
    full = [each for each in found if "/full/" in each["run"]]
    cka = sum(each["own"]["cka"][each["read"]][-1][-1] for each in full) / 2
    assert f"full one of {cka:.2f}" in shown
    assert f"{cka:.3f}" in shown
    weights = [100 * sum(each["weights"]) / len(each["weights"]) for each in full]
    assert f"{sum(weights) / 2:.2g}" in shown


def test_killed_in_the_middle_it_goes_on_to_the_same_table(study, kept, capsys):
    """By kill -9, after the first run was measured."""
    command = ["analyze", "preservation", *CPU]
    started = [sys.executable, "-m", "promptvit.cli", *command, str(study)]
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(study.rglob("preservation.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    capsys.readouterr()
    shown = {}
    for folder in (study, kept):
        assert main([*command, str(folder)]) == 0
        assert main(["report", str(folder)]) == 0
        shown[folder] = capsys.readouterr()
    assert 1 <= shown[study].err.count("measured before") < 4
    (again, whole) = (each.out.replace(str(folder), "") for folder, each in shown.items())
    assert again == whole
    assert section(study, "preserved") == section(kept, "preserved")


def test_runs_of_two_studies_are_told_apart(study, tmp_path, capsys):
    shutil.copytree(study, tmp_path / "twin")
    assert main(["analyze", "curves", str(study), str(tmp_path / "twin")]) == 0
    shown = capsys.readouterr().out
    assert f"{study}: high, full, seed 0" in shown
    assert f"{tmp_path / 'twin'}: high, full, seed 0" in shown


def test_a_study_without_final_runs_is_refused(study, capsys):
    values = json.loads((study / "results.json").read_text())
    (study / "results.json").write_text(json.dumps({**values, "cells": []}))
    assert main(["analyze", "curves", str(study)]) == 2
    assert "is a study without final runs" in capsys.readouterr().err


def test_a_study_with_rows_that_start_elsewhere_or_were_asked_otherwise_says_so(kept):
    values = json.loads((kept / "results.json").read_text())
    for cell in values["cells"]:
        cell["first"] = {"name": "full"} if cell["method"] == "full" else {}
    (kept / "results.json").write_text(json.dumps(values))
    assert main(["report", str(kept)]) == 0
    assert "vpt-deep has a mean CKA" in (shown := plain(section(kept, "preserved")))
    assert "full" not in shown
    (final,) = values["cells"][0]["finals"]
    assert main(["analyze", "preservation", str(kept / final["folder"]), "--device", "cpu", "--images", "10"]) == 0
    assert main(["report", str(kept)]) == 0
    assert "1 run measured otherwise, or of other tasks, left out" in plain(section(kept, "preserved"))


def test_backbones_of_different_depths_stand_in_one_report(kept):
    values = json.loads((kept / "results.json").read_text())
    for cell in values["cells"]:
        if cell["method"] == "full":
            path = kept / cell["finals"][0]["folder"] / "preservation.json"
            values_there = json.loads(path.read_text())
            for similarity in values_there["found"]["own"]["cka"].values():
                del similarity[3:]
            path.write_text(json.dumps(values_there))
    assert main(["report", str(kept)]) == 0
    assert plain(section(kept, "preserved")).count("\N{EN DASH}") >= 4  # depths that one of them lacks


def test_maps_of_a_study_are_refused_in_one_line(study, capsys):
    assert main(["analyze", "attribution", str(study)]) == 2
    assert "4 runs: expected one, or two to compare" in capsys.readouterr().err


def test_a_pruned_run_has_the_epochs_of_its_training_or_is_left_out(runs, capsys):
    folder = runs / "vpt"
    (folder / "trained" / "a").mkdir(parents=True)
    (folder / "metrics.jsonl").rename(folder / "trained" / "a" / "metrics.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    for chosen, code in (({"folder": "trained/a"}, 0), ({}, 2)):
        (folder / "summary.json").write_text(json.dumps({**summary, "pruning": {"chosen": chosen}}))
        assert main(["analyze", "curves", str(folder)]) == code
    assert main(["analyze", "curves", str(folder), str(runs / "full")]) == 0
    assert f"left out: {folder} has no metrics.jsonl" in capsys.readouterr().err
