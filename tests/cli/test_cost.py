"""`promptvit cost` as a person calls it; probes are in this process, on few images."""

import json
from pathlib import Path

import pytest
import yaml

from promptvit.analysis import cost_probe
from promptvit.analysis.cost import Cost, extrapolate
from promptvit.cli import cost
from promptvit.cli.main import main

QUICK = ["--backbone.image_size", "16", "--train.batch_size", "4", "--train.device", "cpu", "--steps", "2"]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, tmp_path):
    folders = iter(range(9))

    def estimate(config, *, size, steps) -> Cost:
        probed = cost_probe.probe(config, size, steps, Path(tmp_path, str(next(folders))), 0.0)
        return extrapolate(probed, config)

    monkeypatch.setattr(cost, "estimate_cost", estimate)
    monkeypatch.setattr(cost_probe, "BATCH", 8)
    monkeypatch.setattr(cost_probe, "HEAD_EPOCHS", 4)


def test_a_table_of_methods(images, capsys):
    assert main(["cost", "--data", str(images), "--methods", "linear,vpt-deep", *QUICK, "--train.epochs", "30"]) == 0
    captured = capsys.readouterr()
    first, head, linear, deep, *_ = captured.out.splitlines()
    assert first == "vit_pico, 2 classes, images: 32 train, 8 val, 0 test; batches of 4 on cpu"
    assert head.split() == ["method", "trained", "tuned", "delta", "memory", "epoch", "30", "epochs"]
    assert linear.split()[:2] == ["linear", "258"]
    assert deep.split()[0] == "vpt-deep"
    assert captured.err.splitlines() == ["probing linear", "probing vpt-deep"]


def test_a_hypothetical_task_and_one_method_with_its_options(capsys):
    arguments = ["cost", "--task.train", "5000", "--task.classes", "7", "--method", "vpt-deep", "--method.length", "3"]
    assert main([*arguments, *QUICK, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert found["trained_parameters"] == 6 * 3 * 128 + 7 * 129
    assert found["probe"]["whole"] == {"classes": 7, "train": 5000, "val": 200, "test": 0}
    assert found["epoch_seconds"] > 100 * found["probe"]["step_seconds"] > 0


def test_a_runs_config_file(images, tmp_path, capsys):
    content = {"data": str(images), "method": {"name": "vpt-deep", "length": 2}, "backbone": {"image_size": 16}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    arguments = ["cost", "--config", str(tmp_path / "run.yaml"), *QUICK, "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["vpt-deep"]["trained_parameters"] == 6 * 2 * 128 + 2 * 129
    assert main([*arguments, "--methods", "linear"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["linear"]


def test_what_a_backbone_cannot_have_is_a_line_among_others(capsys):
    resnet = ["--backbone", "resnet18", "--backbone.pretrained", "false", "--task.train", "8", "--task.val", "4"]
    assert main(["cost", *resnet, *QUICK, "--methods", "vpt-deep,linear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("vpt-deep  VPT on a resnet backbone: prompts need tokens")
    assert lines[3].split()[0] == "linear"
    assert main(["cost", *resnet, *QUICK, "--method", "vpt-deep"]) == 2
    assert "prompts need tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--methods", "linear,vpt-deap"], "unknown method 'vpt-deap'"),
        (["--methods", "linear", "--method.length", "3"], "--methods with --method; expected several by name, or one"),
        (["--task.train", "9", "--data", "digits"], "--task with --data; expected one of the two"),
        (["--task.train", "0"], "train=0: expected at least 1"),
        (["--trian.epochs", "3"], "unknown option --trian.epochs"),
    ],
)
def test_wrong_usage(arguments, reason, capsys):
    assert main(["cost", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_a_folder_without_images(tmp_path, capsys):
    assert main(["cost", "--data", str(tmp_path), "--methods", "linear"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
