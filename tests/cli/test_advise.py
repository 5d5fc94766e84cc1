import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.search.conftest import write_task

from promptvit.cli.main import main
from promptvit.search.jobs import TrainingJob
from promptvit.study.calibration import read_records

SMALL = ["--backbone", "vit_pico", "--backbone.image_size", "16"]


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "toys", (0, 1, 2, 3))
    return "toys"


def test_advice_names_its_evidence_and_the_command_that_decides(task, capsys):
    assert main(["advise", "--data", task, "--kind", "classes", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "40 training images of 4 classes, 10 a class" in said
    assert "you said classes" in said
    assert "measured with 400 to 10,000 images, not with 40" in said
    assert "measured on backbones of 86 million parameters; this one has 1." in said
    assert "confidence low" in said
    assert "cifar100" in said or "dtd" in said
    assert (
        "decide it: promptvit advise --data toys --backbone vit_pico --backbone.image_size=16 --kind classes --verify"
        in said
    )
    assert (
        "promptvit cost --data toys --backbone vit_pico --backbone.image_size=16 --methods vpt-deep,full,lora,linear"
        in said
    )
    assert "unknown distance" in said  # the statistics of the pretraining images are of another image size


def test_a_bake_off_says_who_was_right_and_is_remembered(task, capsys):
    arguments = ["advise", "--data", task, *SMALL, "--verify", "--set", "train.epochs=1", "--seeds", "0", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["truth"]["accuracies"]) == {"prompts", "full", "lora", "linear"}
    best = max(found["truth"]["accuracies"].values())
    assert found["truth"]["accuracies"][found["truth"]["best"]] == best
    (record,) = read_records("runs/calibration.jsonl")
    assert (record.task, record.images, record.classes) == ("toys", 40, 4)
    assert record.accuracies == pytest.approx(found["truth"]["accuracies"])
    assert main(["advise", "--data", task, *SMALL, "--json"]) == 0
    advised = json.loads(capsys.readouterr().out)["advice"]
    assert any("of your 1 studies on this backbone" in reason for reason in advised["reasons"])
    assert main(arguments[:-1]) == 0  # the finished study is read
    assert "bake-off, test accuracy in percent, mean of 1 seed:" in capsys.readouterr().out
    assert len(read_records("runs/calibration.jsonl")) == 1
    assert main(["study", "calibrate", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["records"]) == 1


def test_a_bake_off_leaves_out_what_the_backbone_cannot_have(task, capsys):
    backbone = ["--backbone", "resnet10t", "--backbone.pretrained", "false", "--backbone.image_size", "32"]
    arguments = ["advise", "--data", task, *backbone, "--verify", "--set", "train.epochs=1", "--seeds", "0"]
    assert main(arguments) == 0
    assert "the advice abstained" in capsys.readouterr().out
    assert not Path("runs/calibration.jsonl").exists()  # without prompts there is nothing to learn


def test_other_draws_of_images_are_other_studies(task, capsys):
    arguments = ["advise", "--data", task, *SMALL, "--look", "0", "--verify"]
    arguments += ["--set", "train.epochs=1", "--set", "train.learning_rate=0.01", "--seeds", "0"]
    for shots in ("1", "2"):
        assert main([*arguments, "--data.shots", shots]) == 0
    assert capsys.readouterr().err.count("not kept in the calibration file") == 2
    assert {path.name for path in Path("runs").iterdir()} == {f"toys-vit_pico-{n}-shots-advice" for n in (1, 2)}


def test_statistics_of_another_backbone_are_refused(task, capsys):
    assert main(["data", "stats", task, "--backbone", "vit_pico_mae", "--out", "mae.safetensors"]) == 0
    assert main(["advise", "--data", task, "--reference", "mae.safetensors"]) == 1
    assert "features of 'vit_pico'" in capsys.readouterr().err


def test_without_a_look_nothing_is_loaded(task, capsys, monkeypatch):
    monkeypatch.setattr("promptvit.study.gather.load_source", None)
    assert main(["advise", "--data", task, "--look", "0", "--backbone", "vit_base_patch16_224", "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert any("images were not looked at" in reason for reason in advice["reasons"])


@pytest.mark.parametrize("backbone", ["resnet18", "vit_base_patch16_clip_224"])
def test_other_kinds_of_backbones_are_outside(task, backbone, capsys):
    assert main(["advise", "--data", task, "--look", "0", "--backbone", backbone, "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert (advice["choice"], advice["probability"]) == ("abstain", None)
    assert "outside the evidence" in advice["reasons"][0]


def test_copies_of_one_image_are_no_task(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "copies" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8)).save(tmp_path / "copies" / name / f"{number}.png")
    assert main(["advise", "--data", str(tmp_path / "copies"), *SMALL]) == 0
    said = capsys.readouterr().out
    assert said.startswith("abstain")
    assert "of the images differ from each other" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "nowhere"], 1, "nowhere"),
        (["--data", "toys", "--calibration", "none.jsonl"], 2, "none.jsonl does not exist"),
        (["--data", "toys", "--reference", "none.safetensors"], 1, "none.safetensors does not exist"),
        (["--data", "toys", "--max_parameters", "-4", "--look", "0"], 2, "parameters=-4: expected at least 1"),
        (["--data", "toys", "--look", "1"], 2, "look=1; expected 0, or at least 2"),
        (["--data", "toys", "--backbone", "vit_picoo"], 2, "vit_pico"),
        (["--data", "toys", "--images", "3"], 2, "unknown option --images"),
        (["--data", "toys", "--data.images", "5"], 1, "images=5 of toys"),
    ],
)
def test_wrong_input_is_one_line(task, arguments, code, message, capsys):
    assert main(["advise", *arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_one_class_is_refused(tmp_path, capsys):
    (tmp_path / "one" / "a").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "one" / "a" / f"{number}.png")
    assert main(["advise", "--data", str(tmp_path / "one")]) == 1
    assert "expected at least 2" in capsys.readouterr().err


def test_rules_are_printed_with_the_advice_beside_them(capsys):
    assert main(["advise", "--rules"]) == 0
    said = capsys.readouterr().out
    assert "up to 120 images a class" in said
    (line,) = (line for line in said.splitlines() if line.startswith("this advice"))
    assert "59 (0.89)" in line
    assert said.splitlines()[-1].endswith("0.81 to 0.97")


def test_a_scale_study_goes_on_where_it_stopped(task, capsys, monkeypatch):
    arguments = ["study", "scale", task, "--methods", "vpt-shallow,linear", "--sizes", "16,40,900", "--shots", "1"]
    arguments += ["--draws", "2", "--set", "train.epochs=1", "--set", "train.learning_rate=0.01"]
    arguments += ["--set", "backbone.image_size=16"]
    steps, calls = TrainingJob.steps, []

    def stopped(self, stock):
        calls.append(self.folder)
        if len(calls) == 5:
            raise KeyboardInterrupt
        yield from steps(self, stock)

    monkeypatch.setattr(TrainingJob, "steps", stopped)
    assert main([*arguments, "--out", "broken"]) == 130
    monkeypatch.setattr(TrainingJob, "steps", steps)
    capsys.readouterr()
    assert main([*arguments, "--out", "broken"]) == 0
    broken = capsys.readouterr()
    assert "left out, for which the task is too small: 900 images" in broken.err
    assert main([*arguments, "--out", "whole"]) == 0
    assert capsys.readouterr().out == broken.out
    assert [line.partition("|")[2].partition("|")[0].strip() for line in broken.out.splitlines()[2:5]] == [
        "1-shot, 8 images",
        "16 images",
        "40 images",
    ]
    report = Path("broken", "report.html").read_text()
    assert "Test accuracy on toys against the number of images" in report


def cells_of(folder):
    """The cells of a study's results, but for the seconds that its runs took."""
    cells = json.loads(Path(folder, "results.json").read_text())["cells"]
    for run in (run for cell in cells for part in ("points", "finals") for run in cell[part]):
        assert run.pop("seconds") > 0
    return cells


def test_a_scale_study_that_is_killed_goes_on_to_the_same_figures(task, capsys):
    small = ["--set", "train.epochs=1", "--set", "backbone.image_size=16", "--grid", "train.learning_rate=0.01,0.05"]
    arguments = ["study", "scale", task, "--methods", "vpt-shallow,linear", "--sizes", "16,40", "--draws", "1", *small]
    command = [sys.executable, "-m", "promptvit.cli", *arguments, "--device", "cpu", "--out", "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    def count(name):
        return len(list(Path("killed").rglob(name)))

    while count("summary.json") < 4 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 4 <= count("summary.json") < 4 * 3
    summaries = {path: path.stat().st_mtime_ns for path in Path("killed").rglob("summary.json")}

    def finished(folder):
        assert main([*arguments, "--device", "cpu", "--out", folder]) == 0
        return capsys.readouterr().out, cells_of(folder)

    table, cells = finished("killed")
    assert (table, cells) == finished("whole")
    assert [(len(cell["points"]), len(cell["finals"])) for cell in cells] == [(2, 1)] * 4
    assert all(path.stat().st_mtime_ns == seen for path, seen in summaries.items())  # what was done was not done again


def test_a_scale_study_hears_how_to_search(task, monkeypatch):
    plans = []

    def heard(plan, *_):
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("promptvit.cli.study_scale.run_study", heard)
    assert main(["study", "scale", task, "--sizes", "40", "--sampler", "random", "--trials", "2"]) == 130
    assert (plans[0].search.sampler, plans[0].search.trials) == ("random", 2)
