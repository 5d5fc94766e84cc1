"""Every verb as a person calls it, on real images."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from promptvit.cli.main import main

QUICK = ["--backbone.image_size", "16", "--train.epochs", "1", "--train.device", "cpu"]


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "zero-or-one"
    assert main(["train", "--data", str(images), "--out", str(folder), *QUICK]) == 0
    return folder


def test_train_prints_one_json_object(images, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "--data", str(images), "--method", "linear", "--out", out, "--json", *QUICK]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["method"] == {"name": "linear"}
    assert summary["command"].startswith(f"promptvit train --data {images}")
    assert summary["result"]["test"] is None


def test_a_runs_config_repeats_it(finished, tmp_path, capsys):
    out = str(tmp_path / "again")
    assert main(["train", "--config", str(finished / "config.yaml"), "--out", out, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["result"] == json.loads((finished / "summary.json").read_text())["result"]


def test_options_win_over_the_config_file(tmp_path, capsys, images):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": str(images), "method": {"name": "vpt-deep", "length": 9}}))
    arguments = ["--config", str(tmp_path / "c.yaml"), "--method.length", "3", "--out", str(tmp_path / "run"), "--json"]
    assert main(["train", *arguments, *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["method"]["length"] == 3


def test_another_method_leaves_the_files_method_options_behind(images, finished, tmp_path, capsys):
    arguments = [
        "--config",
        str(finished / "config.yaml"),
        "--method",
        "linear",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    assert main(["train", *arguments]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["method"] == {"name": "linear"}
    assert "leaving out what the config file says of its method: --method.name=vpt" in captured.err


def test_a_second_run_gets_its_own_folder(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "--data", str(images), "--method", "linear", *QUICK]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [f"{images.name}-linear", f"{images.name}-linear-2"]
    assert f"saved in runs/{images.name}-linear-2" in capsys.readouterr().out


def test_evaluate_gives_the_runs_own_figures(finished, capsys):
    assert main(["evaluate", str(finished), "--split", "val", "--device", "cpu", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    known = json.loads((finished / "summary.json").read_text())["result"]["val"]
    assert metrics["top1"] == known["top1"]
    assert metrics["loss"] == pytest.approx(known["loss"], rel=1e-5)


def test_evaluate_reads_like_a_table(finished, images, capsys):
    arguments = ["evaluate", str(finished / "delta"), "--data", str(images), "--split", "val", "--device", "cpu"]
    assert main(arguments) == 0
    assert re.search(r"top1 +[01]\.\d{4}", capsys.readouterr().out)


def test_evaluate_takes_the_runs_data_with_what_is_typed_on_top(finished, capsys):
    arguments = ["evaluate", str(finished), "--split", "val", "--device", "cpu", "--json"]
    assert main([*arguments, "--data.validation_fraction", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20


def test_an_oblong_run_can_be_evaluated(images, tmp_path, capsys):
    options = [
        "--train.epochs",
        "1",
        "--train.device",
        "cpu",
        "--backbone.image_size",
        "[16, 24]",
        "--method",
        "linear",
    ]
    assert main(["train", "--data", str(images), "--out", str(tmp_path / "run"), *options]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--split", "val", "--device", "cpu"]) == 0


def test_predict_on_files_and_folders(finished, images, capsys):
    first = sorted((images / "zero").iterdir())[0]
    assert main(["predict", str(finished), str(first), str(images / "one"), "--device", "cpu", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert predictions[0]["image"] == str(first)
    assert len(predictions) == 1 + len(list((images / "one").iterdir()))
    assert {found["name"] for found in predictions[0]["classes"]} == {"zero", "one"}
    assert sum(found["probability"] for found in predictions[0]["classes"]) == pytest.approx(1)


def test_methods_lists_options(capsys):
    assert main(["methods", "vpt-deep"]) == 0
    out = capsys.readouterr().out
    assert "--method.length" in out
    assert "--method.depth" not in out  # the name fixes it
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vpt-shallow"]["fixed"] == {"depth": "shallow"}


def test_methods_counts_what_each_would_train(capsys):
    assert main(["methods", "--backbone", "vit_pico", "--classes", "10", "--tasks", "3", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["vpt-deep"]["trained"] == 6 * 10 * 128 + 129 * 10
    assert counts["linear"]["ratio"] == pytest.approx(1 + 3 * 1290 / 1_204_608)
    assert main(["methods", "vpt-deep", "--backbone", "resnet18"]) == 0
    assert "prompts need tokens" in capsys.readouterr().out
    for wrong in (
        ["--backbone", "vit_pico", "--classes", "1"],
        ["--classes", "7"],
        ["--backbone", "vit_pico", "--tasks", "0"],
    ):
        assert main(["methods", *wrong]) == 2
    capsys.readouterr()
    assert main(["methods", "--backbone", "vit_picco"]) == 2
    assert "Did you mean vit_pico" in capsys.readouterr().err


def test_two_runs_are_evaluated_as_an_ensemble(finished, capsys):
    alone, twice = (
        ["evaluate", str(finished), "--split", "val", "--device", "cpu", "--json", *more]
        for more in ([], ["--with", str(finished)])
    )
    assert main(alone) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert main(twice) == 0
    together = json.loads(capsys.readouterr().out)
    assert together["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert together["top1"] == metrics["top1"]


def test_backbones_filters_names(capsys):
    assert main(["backbones", "*dinov2*", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["backbones"]
    assert names
    assert all("dinov2" in name for name in names)
    assert main(["backbones", "vit_pico"]) == 0
    assert "bundled" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_compares_four_methods(tmp_path, capsys):
    assert main(["demo", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert all(method in out for method in ("linear", "vpt-shallow", "vpt-deep", "full"))
    assert out.count("% sure") == 5
    assert (tmp_path / "demo" / "vpt-deep" / "delta" / "delta.safetensors").exists()


def broken_jpeg(images, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    (root / "zero" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return root


def lists(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"images/a.png 0\nimages/b.png 1\n{line}")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def one_class(images, tmp_path):
    shutil.copytree(images / "zero", tmp_path / "one-class" / "zero")
    return tmp_path / "one-class"


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda images, tmp: tmp, 1, "0 class folders; expected at least 2"),
        (one_class, 1, "1 class folders; expected at least 2"),
        (broken_jpeg, 1, "broken.jpg cannot be decoded"),
        (lambda images, tmp: lists(tmp, "images/a.png 2\n"), 1, "train.txt:3"),
        (lambda images, tmp: lists(tmp, "images/c.png 1\n"), 1, "c.png"),
        (lambda images, tmp: tmp / "nowhere", 1, "nowhere"),
    ],
    ids=["no images", "one class", "corrupt JPEG", "label out of range", "missing image", "no folder"],
)
def test_data_that_cannot_be_used(images, tmp_path, capsys, make, code, message):
    out = tmp_path.parent / f"{tmp_path.name}-run"
    assert main(["train", "--data", str(make(images, tmp_path)), "--out", str(out), *QUICK]) == code
    assert_one_message(capsys, message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--method", "vpt-dep"], 2, "unknown method 'vpt-dep'. Did you mean vpt-deep"),
        (["--backbone", "vit_bas_patch16_224"], 2, "Did you mean vit_base_patch16_224"),
        (["--method.length", "0"], 2, "length=0: expected at least 1 prompt"),
        (["--method.length", "many"], 2, "--method.length many; expected int"),
        (["--method", "vpt-deep", "--method.depth", "shallow"], 2, "unknown option --method.depth"),
        (["--train.epohcs", "3"], 2, "did you mean --train.epochs?"),
        (["--train.optimizer", "adam"], 2, "--train.optimizer adam; expected adamw, sgd"),
        (["--train.epoch", "3"], 2, "unknown option --train.epoch"),
        (["--resume"], 2, "--resume with --out"),
        (["--backbone.image_size", "2"], 2, "expected at least one patch"),
        (["--backbone", "mixer_b16_224"], 1, "MlpMixer is not a supported architecture"),
        (["--backbone", "vit_base_patch16_rpn_224.sw_in1k"], 1, "blocks.0 is a ResPostBlock"),
        (["--train.epochs", "0"], 2, "epochs=0: expected at least 1"),
        (["--train.device", "cuda"], 2, "no CUDA device is visible"),
        (["--backbone", "mixer_b16_224", "--backbone.pretrained", "false"], 1, "MlpMixer is not a supported"),
        (["--backbone", "vit_base_patch16_224.orig_in21k"], 1, "could not be loaded"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(images, tmp_path, capsys, arguments, code, message):
    rest = [option for option in QUICK if "--backbone" not in arguments or option not in QUICK[:2]]
    assert main(["train", "--data", str(images), "--out", str(tmp_path / "run"), *rest, *arguments]) == code
    assert_one_message(capsys, message)
    assert not (tmp_path / "run").exists()


def test_a_broken_image_can_be_skipped(images, tmp_path, capsys):
    root = broken_jpeg(images, tmp_path)
    out = tmp_path / "run"
    assert main(["train", "--data", str(root), "--data.broken", "skip", "--out", str(out), *QUICK]) == 0
    assert "skipped 1 broken image" in capsys.readouterr().out
    assert "broken.jpg" in json.loads((out / "summary.json").read_text())["skipped_images"][0]


def test_a_delta_for_another_backbone_is_refused(finished, images, tmp_path, capsys):
    folder = tmp_path / "delta"
    shutil.copytree(finished / "delta", folder)
    description = json.loads((folder / "delta.json").read_text())
    description["backbone"]["source"]["image_size"] = 24
    (folder / "delta.json").write_text(json.dumps(description))
    assert main(["predict", str(folder), str(images), "--device", "cpu"]) == 1
    assert_one_message(capsys, "fingerprint")


@pytest.mark.parametrize("option", ["--top", "--batch_size"])
def test_predict_refuses_numbers_below_one(finished, images, capsys, option):
    assert main(["predict", str(finished), str(images), "--device", "cpu", option, "0"]) == 2
    assert_one_message(capsys, "expected at least 1")


def test_a_demo_leaves_a_folder_in_use_alone(finished, capsys):
    assert main(["demo", "--out", str(finished)]) == 1
    assert_one_message(capsys, "is in use")


def test_a_folder_without_a_delta_is_refused(images, tmp_path, capsys):
    assert main(["predict", str(tmp_path), str(images), "--device", "cpu"]) == 1
    assert_one_message(capsys, "holds no delta")


def test_a_full_disk_is_one_message(images, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        command = [sys.executable, "-m", "promptvit.cli", "train", "--data", images, "--out", disk / "run", *QUICK]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.returncode == 1
    assert "cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def assert_one_message(capsys, message):
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert "Traceback" not in captured.err + captured.out
    assert captured.out == ""
