import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from torch.utils.data import TensorDataset

import promptvit as pv
from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.data.load import load_task
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import BrokenImageError, ConfigError, DeltaError, OutputError, TrainingError
from promptvit.methods import METHODS
from promptvit.methods.prototypes import class_means
from promptvit.methods.samples import DatasetSamples
from promptvit.train.config import RunConfig, TrainConfig
from promptvit.train.folder import RunFolder
from promptvit.train.loop import Listener, fit


def make_config(source, method="vpt-deep", data=None, **settings):
    settings = {"epochs": 2, "batch_size": 16, "device": "cpu", "warmup_epochs": 0.5} | settings
    fields = {"length": 2} if METHODS[method].method is pv.VPT else {}
    if method == "side":
        fields = {"weights": "random"}  # no download
    return RunConfig(
        data=DataConfig(source=str(source), **(data or {})),
        backbone=BackboneSource(name="vit_pico", image_size=16),  # 17 tokens in place of 65
        method={"name": method, **fields},
        train=TrainConfig(**settings),
    )


def figures(summary):
    return summary["result"], summary["train_loss"]


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_leaves_a_whole_folder(digits_folder, tmp_path, method):
    rows = []
    config = make_config(digits_folder, method)
    summary = fit(config, tmp_path / "run", listener=Listener(epoch=rows.append), command="promptvit train")
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == rows
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert summary["result"]["test"]["images"] == 20
    tuned, cost = pv.load(folder / "delta"), summary["cost"]
    assert cost["trained_parameters"] == tuned.trained_parameters()
    assert cost["trained_percent"] == pytest.approx(100 * tuned.trained_parameters() / tuned.total_parameters())
    assert summary["command"] == "promptvit train"


def test_prompts_start_at_the_class_means_of_the_training_images(digits_folder, tmp_path):
    read = []
    listener = Listener(read=lambda split, done, total: read.append(split))
    config = make_config(digits_folder, data={"augment": "crop+flip"}, epochs=1, learning_rate=1e-12)
    config = dataclasses.replace(config, method={"name": "vpt-deep", "length": 3, "init": "cls-nolastl"})
    fit(config, tmp_path / "run", listener=listener)
    model = pv.load(tmp_path / "run" / "delta")
    task = load_task(config.data)
    pixels = torch.stack([prepare(image, model.preprocessing) for image in task.train.images])
    labels = torch.from_numpy(task.train.labels)
    samples = DatasetSamples(TensorDataset(normalise(pixels, model.preprocessing), labels))
    expected = class_means(model.backbone, samples, 3)[:-1]
    torch.testing.assert_close(model.delta.prompts[0].detach().double(), expected, rtol=0, atol=1e-5)
    assert read.count("train") == len(task.train)  # once, although images are needed before the first epoch


def test_a_method_that_the_backbone_cannot_have_is_refused_before_images_are_read(digits_folder, tmp_path):
    read = []
    config = dataclasses.replace(make_config(digits_folder), method={"name": "vpt-deep", "blocks": 99})
    with pytest.raises(ConfigError, match="blocks=99: it has 6"):
        fit(config, tmp_path / "run", listener=Listener(read=lambda *what: read.append(what)))
    assert not read


def test_the_config_file_gives_the_same_run(digits_folder, tmp_path):
    first = fit(make_config(digits_folder), tmp_path / "a")
    values = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert figures(fit(RunConfig.from_dict(values), tmp_path / "b")) == figures(first)


def test_a_run_stopped_between_epochs_goes_on_with_the_same_numbers(digits_folder, tmp_path):
    config = make_config(digits_folder, epochs=3, data={"augment": "crop+flip"})
    unbroken = fit(config, tmp_path / "a")

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "b", listener=Listener(epoch=stop))
    begun = []
    listener = Listener(begin=lambda total, done: begun.append((total, done)))
    assert figures(fit(config, tmp_path / "b", resume=True, listener=listener)) == figures(unbroken)
    assert begun == [(12, 8)]


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_goes_on_with_the_same_numbers(digits_folder, tmp_path):
    options = ["--train.epochs", "2", "--train.batch_size", "1", "--train.device", "cpu", "--backbone.image_size", "16"]
    command = [
        sys.executable,
        "-m",
        "promptvit.cli",
        "train",
        "--data",
        digits_folder,
        "--method.length",
        "2",
        *options,
    ]
    subprocess.run([*command, "--out", tmp_path / "whole"], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--out", tmp_path / "killed"], stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "metrics.jsonl").exists():
        time.sleep(0.01)
        assert process.poll() is None
    time.sleep(0.1)  # some of the sixty batches of the second epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    subprocess.run([*command, "--out", tmp_path / "killed", "--resume"], check=True, capture_output=True)
    whole, killed = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed"))
    assert figures(killed) == figures(whole)
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "killed" / "metrics.jsonl")
    ]
    assert rows[0] == rows[1]


def test_a_run_goes_on_with_the_weights_it_was_begun_on_alone(digits_folder, tmp_path):
    config = dataclasses.replace(
        make_config(digits_folder, "linear", epochs=3),
        backbone=BackboneSource(name="vit_pico", image_size=16, pretrained=False),
    )

    class StopError(Exception):
        pass

    def stop(row):
        raise StopError

    with pytest.raises(StopError):
        fit(config, tmp_path / "run", listener=Listener(epoch=stop))
    torch.manual_seed(1234)  # other random weights
    with pytest.raises(DeltaError, match="was begun on other weights of vit_pico"):
        fit(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("full", {"checkpointing": True}, "norms would count each batch twice"),
        ("partial-1", {"batch_size": 59}, "the last of 60 training images is alone in a batch"),
        ("pixel-below", {"batch_size": 1}, "one image has no statistics"),
    ],
)
def test_batch_norms_that_are_trained_need_two_images_and_one_pass(method, settings, message, digits_folder, tmp_path):
    config = make_config(digits_folder, method, **settings)
    config = dataclasses.replace(config, backbone=BackboneSource(name="resnet10t", pretrained=False, image_size=32))
    with pytest.raises(ConfigError, match=message):
        fit(config, tmp_path / "run")
    assert fit(make_config(digits_folder, "adapter", checkpointing=True, epochs=1), tmp_path / "other")["result"]


def test_a_finished_run_is_only_read(digits_folder, tmp_path):
    config = make_config(digits_folder, epochs=1)
    summary = fit(config, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert fit(config, tmp_path / "run", resume=True) == summary
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    with pytest.raises(OutputError, match="holds a run already"):
        fit(config, tmp_path / "run")


def test_accumulated_batches_equal_one_large_batch(digits_folder, tmp_path):
    small = fit(make_config(digits_folder, batch_size=10, accumulate=3, epochs=1), tmp_path / "a")
    large = fit(make_config(digits_folder, batch_size=30, epochs=1), tmp_path / "b")
    assert small["result"]["val"]["loss"] == pytest.approx(large["result"]["val"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "momentum": 0.5},
        {"head": "paper"},
        {"head": "truncated"},
        {"learning_rate": 1e-3},
        {"weight_decay": 5.0},
        {"delta_weight_decay": 5.0},
        {"head_weight_decay": 5.0},
        {"warmup_epochs": 2.0},
        {"schedule": "constant"},
        {"label_smoothing": 0.3},
        {"class_weights": "balanced"},
        {"clip_norm": 0.01, "optimizer": "sgd"},
        {"rate_batch": 32},
        {"schedule_steps": "epoch"},
        {"decays": "weights", "weight_decay": 5.0},
        {"decays": "all", "weight_decay": 5.0},
        {"final_rate": 1e-3},
        {"adam_epsilon": 1e-3},
        {"drop_last": True},
        {"precision": "bf16"},
        {"seed": 1},
        {"batch_size": 8},
        {"accumulate": 2},
        {"epochs": 3},
    ],
    ids=str,
)
def test_every_setting_changes_the_numbers(digits_folder, tmp_path, baselines, settings):
    other = fit(make_config(digits_folder, **settings), tmp_path / "run")
    assert figures(other) not in baselines


@pytest.fixture(scope="module")
def baselines(digits_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    return [figures(fit(make_config(digits_folder, optimizer=name), folder / name)) for name in ("adamw", "sgd")]


def test_checkpointing_changes_no_number(digits_folder, tmp_path):
    runs = [
        fit(make_config(digits_folder, epochs=1, checkpointing=flag), tmp_path / str(flag)) for flag in (False, True)
    ]
    assert figures(runs[0]) == figures(runs[1])


def test_decoding_anew_gives_the_same_numbers_as_the_cache(digits_folder, tmp_path):
    cached = fit(make_config(digits_folder, epochs=1), tmp_path / "a")
    config = make_config(digits_folder, epochs=1, data={"cache_gib": 0.0, "workers": 0})
    assert figures(fit(config, tmp_path / "b")) == figures(cached)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(digits_folder, tmp_path):
    config = make_config(digits_folder, learning_rate=1e30, optimizer="sgd", clip_norm=None, epochs=5)
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at epoch \d, step \d+, learning rate .*Try a tenth"
    ):
        fit(config, tmp_path / "run")


def test_the_trunk_and_the_global_settings_stay_as_they_were(digits_folder, tmp_path):
    before = pv.load_backbone().fingerprint
    fit(make_config(digits_folder, "full", epochs=1), tmp_path / "run")
    assert pv.load_backbone().fingerprint == before


def test_tensorboard_writes_curves(digits_folder, tmp_path):
    fit(make_config(digits_folder, epochs=1, tensorboard=True), tmp_path / "run")
    assert list((tmp_path / "run" / "tb").glob("events.*"))


def test_a_device_that_is_not_there_is_refused(digits_folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="device=cuda: no CUDA device is visible"):
        fit(make_config(digits_folder, device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_give_a_whole_result(digits_folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    options = ["--method.length", "2", "--train.epochs", "1", "--train.device", "cpu", "--backbone.image_size", "16"]
    command = [*launch, "promptvit.cli", "train", "--data", digits_folder, "--out", tmp_path / "run", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["machine"]["processes"] == 2
    assert summary["result"]["test"]["images"] == 20


def test_a_broken_test_image_stops_the_run_before_it_starts(digits_folder, tmp_path):
    root = shutil.copytree(digits_folder, tmp_path / "data")
    (root / "test" / "0" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BrokenImageError, match=r"broken.png cannot be decoded"):
        fit(make_config(root), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_skipped_images_are_counted_and_listed_once(digits_folder, tmp_path):
    root = shutil.copytree(digits_folder, tmp_path / "data")
    (root / "val" / "0" / "broken.png").write_bytes(b"no picture")
    data = {"broken": "skip", "train_on": "train+val"}
    summary = fit(make_config(root, epochs=1, data=data), tmp_path / "run")
    assert summary["task"]["images"] == {"train": 80, "val": 20, "test": 20}
    assert len(summary["skipped_images"]) == 1


def test_an_update_that_breaks_the_weights_is_not_kept(digits_folder, tmp_path):
    settings = {"learning_rate": 1e30, "optimizer": "sgd", "clip_norm": None, "batch_size": 60, "epochs": 3}
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at epoch \d, step 1"):
        fit(make_config(digits_folder, **settings), tmp_path / "run")
    state = RunFolder(tmp_path / "run").read_state()
    assert all(tensor.isfinite().all() for tensor in (state["tensors"] if state else {}).values())


def test_a_short_run_is_warm_up_for_half_of_it_at_most(digits_folder, tmp_path):
    rates = []
    config = make_config(digits_folder, epochs=4, warmup_epochs=50.0, learning_rate=1.0)
    fit(config, tmp_path / "run", listener=Listener(epoch=lambda row: rates.append(row["learning_rate"])))
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] > rates[3]


def test_a_rate_per_epoch_is_what_every_update_of_it_has(digits_folder, tmp_path):
    rates = []
    settings = {"epochs": 4, "warmup_epochs": 2.0, "schedule_steps": "epoch", "learning_rate": 8.0, "rate_batch": 64}
    config = make_config(digits_folder, optimizer="sgd", **settings)
    summary = fit(config, tmp_path / "run", listener=Listener(epoch=lambda row: rates.append(row["learning_rate"])))
    assert rates == [0.0, 1.0, 2.0, 1.0]
    assert summary["protocol"]["learning_rate"] == 2.0


def test_an_epoch_at_rate_zero_changes_nothing(digits_folder, tmp_path):
    config = make_config(digits_folder, epochs=2, warmup_epochs=1.0, schedule_steps="epoch", keep_epoch=1)
    fit(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    start, early = folder.read_values("start"), folder.read_values("early")
    assert all(torch.equal(start[name], early[name]) for name in start)


def test_test_images_can_be_looked_at_after_every_epoch_and_change_nothing(digits_folder, tmp_path):
    rows = []
    once = fit(make_config(digits_folder), tmp_path / "a")
    listener = Listener(epoch=rows.append)
    every = fit(make_config(digits_folder, test="every-epoch"), tmp_path / "b", listener=listener)
    assert figures(every) == figures(once)
    assert rows[-1]["test_top1"] == every["result"]["test"]["top1"]
    assert len(rows) == 2
    assert [summary["protocol"]["test"].split(",")[0] for summary in (once, every)] == [
        "evaluated once",
        "evaluated after every epoch; the result is the last one's",
    ]


def test_what_means_nothing_for_the_task_is_refused(digits_folder, tmp_path):
    without = shutil.copytree(digits_folder, tmp_path / "data")
    shutil.rmtree(without / "test")
    with pytest.raises(ConfigError, match="test=every-epoch: the task has no test images; expected once"):
        fit(make_config(without, test="every-epoch"), tmp_path / "run")
    with pytest.raises(ConfigError, match="drop_last=True: 60 training images fill no batch of 64"):
        fit(make_config(digits_folder, batch_size=64, drop_last=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_last_batch_can_be_dropped(digits_folder, tmp_path):
    steps = []
    listener = Listener(step=lambda: steps.append(1))
    config = make_config(digits_folder, batch_size=59, drop_last=True)
    fit(dataclasses.replace(config, method={"name": "mlp"}), tmp_path / "run", listener=listener)
    assert len(steps) == 2


@pytest.mark.parametrize(
    "data",
    [
        {"normalisation": "imagenet"},
        {"normalisation": "none"},
        {"interpolation": "tf1-bilinear"},
        {"geometry": "crop", "crop_fraction": 0.5},
        {"augment": "resized-crop+flip"},
    ],
    ids=str,
)
def test_how_images_are_read_changes_the_numbers_and_stays_with_the_result(digits_folder, tmp_path, baselines, data):
    summary = fit(make_config(digits_folder, data=data), tmp_path / "run")
    assert figures(summary) not in baselines
    wanted = DataConfig(**data).preprocessing(pv.load_backbone(image_size=16).preprocessing)
    assert pv.load(tmp_path / "run" / "delta").preprocessing == wanted
    assert summary["protocol"]["preprocessing"] == wanted.to_dict()
