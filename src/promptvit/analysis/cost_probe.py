"""The probe of `promptvit.analysis.cost`: a short real run, and what it took.

Run as a module, it reads what to do from stdin and leaves what it found, or the PromptvitError that it met, in a file.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import sys
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from promptvit.analysis.cost import ANSWER, Probe, TaskSize, cache_bytes
from promptvit.data.task import Split, Task
from promptvit.errors import PromptvitError
from promptvit.methods.base import Method
from promptvit.model import class_names
from promptvit.train.config import RunConfig
from promptvit.train.folder import RunFolder
from promptvit.train.loop import Listener, Run, epochs, make_method
from promptvit.train.stock import BATCH, Stock, frozen_features

EPOCHS, HEAD_EPOCHS = 4, 25
"""The first is not counted. Those of a head on features take milliseconds."""
LEARNING_RATE = 1e-5
"""Whatever the run's own: on noise, that might break the weights."""


def probe(config: RunConfig, size: TaskSize | None, steps: int, folder: Path, started: float) -> Probe:
    """A run of `config` on `steps` full batches of a split, in `folder`; `started`: when the process did (Unix time).

    `size`: of a hypothetical task; None reads the task of `config.data`.
    """
    method, stock = make_method(config), Stock()
    task = None if size is not None else stock.task(config.data)
    whole = size or size_of(task)
    height, width = config.data.preprocessing(stock.backbone(config.backbone).preprocessing).stored_size
    image_bytes = 3 * height * width
    cached = whole.train * image_bytes <= cache_bytes(config)
    on_features = method.only_head and config.data.augment == "none"  # as `Run` has it
    part = part_of(whole, config.train.batch_size, enough(method, on_features, whole, config.train.batch_size, steps))
    short = shortened(config, HEAD_EPOCHS if on_features else EPOCHS, cached)
    stock.put_task(short.data, noise(part, height, width) if task is None else reduced(task, part))

    watch = Stopwatch(config.train.batch_size)
    rows, ends = [], []
    for row in epochs(short, folder / "run", listener=watch.listener(), stock=stock, keep_seconds=math.inf):
        rows.append(row)
        ends.append(time.perf_counter())
    finish_seconds = time.perf_counter() - ends[-1]
    summary = RunFolder(folder / "run").read_summary()
    cost = summary["cost"]
    return Probe(
        device=summary["machine"]["device"],
        trained_parameters=cost["trained_parameters"],
        trained_percent=cost["trained_percent"],
        delta_bytes=cost["delta_bytes"],
        peak_memory_bytes=cost["peak_memory_bytes"],
        whole=whole,
        part=part,
        image_bytes=image_bytes,
        cached=cached,
        feature_bytes=watch.feature_bytes,
        setup_seconds=watch.ready - started,
        image_seconds=watch.read_seconds + watch.feature_seconds,
        epoch_seconds=median(row["seconds"] for row in rows[1:]),
        step_seconds=watch.lap_seconds(training=True),
        batch_seconds=watch.lap_seconds(training=False),
        # Written once, after the last epoch.
        state_seconds=max(0.0, ends[-1] - ends[-2] - rows[-1]["seconds"]),
        finish_seconds=finish_seconds,
    )


class Stopwatch:
    """Follows a run; from its second epoch on also the head, which every batch passes once.

    - `ready`: when the first step could begin (Unix time).
    - `read_seconds`: to read a training image. `feature_seconds`, `feature_bytes`: of the features of an image.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.ready = 0.0
        self.reads: list[float] = []
        self.feature_seconds, self.feature_bytes = 0.0, 0
        self.laps: list[dict[bool, list[float]]] = []  # of training and of evaluation, epoch by epoch
        self.last: tuple[bool, bool, float] = (False, False, 0.0)
        self.device = torch.device("cpu")

    def listener(self) -> Listener:
        """What the run calls."""
        return Listener(read=self.read, watch=self.watch)

    def read(self, split: str, done: int, total: int) -> None:
        """An image has been read."""
        if split == "train":
            self.reads.append(time.perf_counter())

    def watch(self, epoch: int, run: Run) -> None:
        """Before the first epoch, and after each."""
        if epoch == 0:
            self.ready, self.device = time.time(), run.accelerator.device
            if run.on_features:
                self.time_features(run)
        elif epoch == 1:
            run.model.head.register_forward_hook(self.pass_head)
        self.laps.append({True: [], False: []})

    def time_features(self, run: Run) -> None:
        """Those of the validation images once more, now that everything is warm."""
        began = time.perf_counter()
        features = frozen_features(run.val_set, run.model, run.accelerator)
        self.feature_seconds = (time.perf_counter() - began) / len(features)
        self.feature_bytes = features[0].nbytes

    def pass_head(self, head: nn.Module, inputs: Any, logits: Tensor) -> None:
        """A batch has come to the head: a lap, if it is full, and the one before was of its kind."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, full = time.perf_counter(), len(logits) == self.batch_size
        if full and self.last[:2] == (head.training, full):
            self.laps[-1][head.training].append(now - self.last[2])
        self.last = (head.training, full, now)

    @property
    def read_seconds(self) -> float:
        """To read an image; 0 for a single one."""
        return (self.reads[-1] - self.reads[0]) / (len(self.reads) - 1) if len(self.reads) > 1 else 0.0

    def lap_seconds(self, *, training: bool) -> float:
        """Of a full batch; 0 where no two of them follow one another, and so the whole run has no more of them.

        The mean of an epoch, which is a sum: with `accumulate`, some batches have an update. The median over epochs.
        """
        return median([fmean(laps[training]) for laps in self.laps if laps[training]] or [0.0])


def enough(method: Method, on_features: bool, whole: TaskSize, batch_size: int, steps: int) -> int:
    """`steps`, or more: full batches of features, or an image of every class for a method that starts from them."""
    wanted = max(2 * BATCH if on_features else 0, whole.classes if method.needs_samples else 0)
    return max(steps, math.ceil(wanted / batch_size))


def part_of(whole: TaskSize, batch_size: int, steps: int) -> TaskSize:
    """At most `steps` full batches of each split, and the last batch as it is."""
    train, val, test = (min(images, steps * batch_size + images % batch_size) for images in whole.splits)
    return TaskSize(classes=whole.classes, train=train, val=val, test=test)


def shortened(config: RunConfig, count: int, cached: bool) -> RunConfig:
    """The configuration of the probe's run: whatever decides what a step costs is as in `config`."""
    data = config.data if cached else dataclasses.replace(config.data, cache_gib=0.0)
    train = dataclasses.replace(
        config.train,
        epochs=count,
        warmup_epochs=0.0,
        learning_rate=LEARNING_RATE,
        rate_batch=None,
        final_rate=0.0,
        keep_epoch=None,
    )
    return dataclasses.replace(config, data=data, train=train)


def size_of(task: Task | None) -> TaskSize:
    """Of a task that was read."""
    assert task is not None
    test = 0 if task.test is None else len(task.test)
    return TaskSize(classes=len(task.classes), train=len(task.train), val=len(task.val), test=test)


def reduced(task: Task, part: TaskSize) -> Task:
    """Some of the images of `task`, of all classes alike."""
    train, val = (
        task.train.select(some(task.train.labels, part.train)),
        task.val.select(some(task.val.labels, part.val)),
    )
    test = None if task.test is None else task.test.select(some(task.test.labels, part.test))
    return dataclasses.replace(task, train=train, val=val, test=test)


def some(labels: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " count"]:
    """Places of `count` images, in order: the first of every class, then the second, and so on."""
    turns = np.empty_like(labels)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turns[rows] = np.arange(len(rows))
    return np.sort(np.argsort(turns, kind="stable")[:count])


def noise(part: TaskSize, height: int, width: int) -> Task:
    """A task of noise: one image that stands for all, so that they take no memory beside the run's own."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def split(images: int) -> Split:
        labels = np.arange(images, dtype=np.int64) % part.classes
        return Split(images=np.broadcast_to(image, (images, height, width, 3)), labels=labels)

    return Task(
        name="noise",
        classes=class_names(part.classes),
        train=split(part.train),
        val=split(part.val),
        test=split(part.test) if part.test else None,
    )


def main() -> None:
    """Do what stdin says."""
    config, size, steps, folder, started = pickle.load(sys.stdin.buffer)
    try:
        answer = probe(config, size, steps, folder, started)
    except PromptvitError as error:
        answer = error
    (folder / ANSWER).write_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    main()
