"""Runs and studies of invented figures, as the files and values that reports are made of."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptvit.analysis.preservation import Kept, Preservation, Similarity
from promptvit.report.maps import KeptMaps, MapsOf
from promptvit.report.pictures import small
from promptvit.search.results import Cell, Final, Point, Results

NAMES = (
    "cat",
    "דג זהב",
    "🦊 fox",
    "<script>alert(1)</script>",
    "a name that is far too long for the margin of a picture",
)
GROUPS = {"caltech": "natural", "flowers": "natural", "eurosat": "specialized", "dsprites": "structured"}


def class_names(count: int) -> list[str]:
    """As many different names, the odd ones first."""
    return [*NAMES, *(f"class {number}" for number in range(len(NAMES), count))][:count]


@pytest.fixture
def make_run(tmp_path):
    """Writes a run's folder; returns its path."""

    def make(
        name: str = "run",
        *,
        classes: int = 5,
        epochs: int = 3,
        right: float = 0.7,
        per_class: int = 6,
        test: bool = True,
    ) -> Path:
        folder, chance = tmp_path / name, random.Random(0)
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(images / "small.png")
        Image.fromarray(np.full((300, 400, 3), 90, np.uint8)).save(images / "large.jpg")
        names, split = class_names(classes), "test" if test else "val"
        labels = [label for label in range(classes) for _ in range(per_class)]
        predicted = [label if chance.random() < right else chance.randrange(classes) for label in labels]
        files = [("small.png", "large.jpg", "gone <b>.png")[place % 3] for place in range(len(labels))]
        shares = [round(0.5 + chance.random() / 2, 4) for _ in labels]
        hits = [label == guess for label, guess in zip(labels, predicted, strict=True)]
        tops = [sum(hits[label * per_class : (label + 1) * per_class]) / per_class for label in range(classes)]
        metrics = {
            "images": len(labels),
            "loss": 0.5,
            "top1": sum(hits) / len(hits),
            "top5": 1.0,
            "balanced": sum(tops) / classes,
            "per_class": tops,
            "auroc": 0.9 if classes == 2 else None,
        }
        train = {
            "epochs": epochs,
            "batch_size": 32,
            "accumulate": 1,
            "optimizer": "adamw",
            "schedule": "cosine",
            "warmup_epochs": 1.0,
            "seed": 0,
        }
        reading = {"size": [32, 32], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "geometry": "squash"}
        summary = {
            "result": {"val": metrics, "test": metrics if test else None},
            "train_loss": 0.4,
            "task": {"name": "pets & <co>", "classes": names, "images": {"train": 60, split: len(labels)}},
            "method": {"name": "vpt", "length": 10},
            "backbone": {"name": "vit_pico", "fingerprint": "0" * 64, "parameters": 1_204_608},
            "protocol": {
                "selection": "last epoch",
                "test": "evaluated once, after the last epoch",
                "train_on": "train",
                "learning_rate": 0.005,
                "preprocessing": reading,
            },
            "config": {"data": {"source": str(images), "augment": "none", "seed": 0}, "train": train},
            "skipped_images": ["broken <i>.png: truncated"],
            "cost": {
                "trained_parameters": 13_450,
                "trained_percent": 1.1,
                "delta_bytes": 32_500,
                "seconds": 12.0,
                "peak_memory_bytes": 10**9,
            },
            "machine": {"device": "cpu", "processor": "x86_64", "threads": 1, "processes": 1},
            "versions": {"python": "3.11", "promptvit": "0.1.0"},
            "command": "promptvit train --data '<b>&'",
        }
        rows = [
            {
                "epoch": epoch,
                "learning_rate": 0.005 / epoch,
                "train_loss": 2 / epoch,
                "train_top1": 1 - 0.5 / epoch,
                "val_loss": 2.2 / epoch,
                "val_top1": 0.9 - 0.5 / epoch,
                "seconds": 4.0,
            }
            for epoch in range(1, epochs + 1)
        ]
        predictions = {
            "source": str(images),
            "split": split,
            "images": files,
            "labels": labels,
            "predicted": predicted,
            "confidence": shares,
            "of_label": [share if hit else round(1 - share, 4) for share, hit in zip(shares, hits, strict=True)],
        }
        folder.mkdir()
        (folder / "config.yaml").write_text("data: {}\n")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "predictions.json").write_text(json.dumps(predictions))
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


def analyse(folder: Path) -> Path:
    """Puts invented results of analyses into the folder of a run."""
    (folder / "delta").mkdir()
    (folder / "delta" / "delta.json").write_text(json.dumps({"format": 1, "sha256": "abc"}))
    cka = [[None if 0 in (row, column) else 1 / (1 + abs(row - column)) for column in range(13)] for row in range(13)]
    similarity = Similarity(images=200, cka={"cls": cka}, cosine={"cls": [0.1] * 13})
    probe = {"cls": {"linear": [None, *(place / 20 for place in range(12))], "knn": [None, *(0.3,) * 12]}}
    probes = {"before": probe, "after": probe}
    weights = [place / 100 for place in range(12)]
    found = Preservation(read="cls", probes=probes, own=similarity, other=similarity, weights=weights)
    asked = {"format": 1, "delta": "abc", "data": {"source": "pets <b>"}, "other": "other <b>"}
    Kept(asked=asked, found=found).write(folder / "preservation.json")
    pictures = [small(Image.fromarray(np.full((128, 128, 3), shade, np.uint8))).address for shade in (0, 100, 200)]
    runs = [MapsOf(run=name, predicted=["cat", *NAMES[3:]], pictures=pictures) for name in ("run", "<i>other</i>")]
    scores = {name: {"maps": 0.3, "random": 0.4, "p": 1e-9} for name in ("deletion", "insertion")}
    known = {"delta": "abc", "kind": "grad-cam", "source": "pets <b>", "images": 200, "accuracy": 0.5, "scores": scores}
    KeptMaps(**known, labels=NAMES[2:], pictures=pictures, runs=runs).write(folder)
    return folder


@pytest.fixture
def make_study():
    """Results of a study; `done`: the share of its cells that are."""

    def make(
        *, tasks: int = 4, methods: int = 3, done: float = 1.0, settings: int = 2, seeds: int = 2, backbones: int = 1
    ) -> Results:
        chance = random.Random(1)
        names = [*GROUPS, *(f"task {number}" for number in range(4, tasks))][:tasks]
        labels = ["linear", "VPT-deep <b>", "شبكة", *(f"method {number}" for number in range(3, methods))][:methods]
        grid = {
            "train.learning_rate": [0.001, 0.01, 0.1],
            "method.length": [1, 10],
            "train.optimizer": ["sgd", "adamw"],
        }
        varied = dict(list(grid.items())[:settings])
        cells = []
        order = [(task, method, place) for task in names for method in labels for place in range(backbones)]
        for position, (task, method, place) in enumerate(order):
            is_done = position < done * len(order)
            points = _points(varied, chance, is_done)
            complete = [point for point in points if point.state == "complete"]
            best = max(complete, key=lambda point: point.val_top1, default=None)
            finals = (
                [_final(task, labels.index(method), place, seed, chance) for seed in range(seeds)] if is_done else []
            )
            cells.append(
                Cell(
                    task=task,
                    group=GROUPS.get(task, ""),
                    backbone=f"vit_{place}",
                    method=method,
                    fields={"name": "vpt"},
                    chosen=best.settings if best and is_done else None,
                    points=tuple(points),
                    finals=tuple(finals),
                    planned_finals=seeds,
                )
            )
        return Results(
            name="study <&>",
            protocol={"name": "quick", "source": "ours", "seeds": list(range(seeds)), "recipes": [{"methods": ["*"]}]},
            flags=("compat_peek",),
            cells=tuple(cells),
            command="promptvit bench data/ --methods linear,vpt-deep",
            origins=({"commit": "abc123+", "machine": {"device": "cpu"}, "versions": {"python": "3.11"}},),
        )

    return make


def _points(varied, chance, is_done):
    settings = [{}]
    for name, values in varied.items():
        settings = [{**each, name: value} for each in settings for value in values]
    points = []
    for place, each in enumerate(settings):
        state = "complete" if is_done else ("complete", "waiting", "running")[place % 3]
        if is_done and place == len(settings) - 1 > 0:
            state = "failed"
        top1 = round(0.5 + chance.random() / 3, 3) if state == "complete" else None
        reason = "the loss is nan <at> epoch 2" if state == "failed" else ""
        points.append(Point(settings=each, state=state, val_top1=top1, seconds=3.0, reason=reason))
    return points


def _final(task, method, place, seed, chance):
    size = 1000 * math.floor(3 ** (method % 8)) * (place + 1)
    top1 = round(0.5 + 0.02 * (method % 5) + 0.05 * chance.random(), 4)
    return Final(
        seed=seed,
        val_top1=top1,
        test_top1=top1,
        trained_parameters=size,
        trained_percent=1.0,
        delta_bytes=4 * size,
        seconds=10.0 * (1 + method),
        folder=f"runs/{task}/{method}-{place}/seed {seed}",
    )
