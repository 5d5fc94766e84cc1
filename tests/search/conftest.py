"""Small tasks, and work that costs nothing."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from promptvit.search.jobs import Job, Outcome, Progress, TrainingJob
from promptvit.search.plan import StudyPlan
from promptvit.search.protocol import Protocol, Recipe
from promptvit.search.row import Row
from promptvit.train.stock import Stock

SIZES = {"train800": 40, "val200": 20, "test": 24}


def write_task(folder: Path, classes: tuple[int, ...]) -> None:
    """A task with list files: handwritten digits of these classes."""
    grey, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(labels, classes)))
    start = 0
    for split, count in SIZES.items():
        lines = []
        (folder / "images" / split).mkdir(parents=True)
        for number, index in enumerate(order[start : start + count]):
            name = f"images/{split}/{number:06}.png"
            Image.fromarray((grey[index].reshape(8, 8) * (255 / 16)).round().astype(np.uint8)).save(folder / name)
            lines.append(f"{name} {classes.index(labels[index])}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
        start += count


@pytest.fixture(scope="session")
def two_tasks(tmp_path_factory) -> Path:
    """A folder with the tasks `high` and `low`, four digits each."""
    root = tmp_path_factory.mktemp("tasks")
    write_task(root / "low", (0, 1, 2, 3))
    write_task(root / "high", (5, 6, 7, 8))
    return root


@pytest.fixture
def small_protocol() -> Protocol:
    """Six points for prompts, three for linear heads, two final runs."""
    rates = (0.02, 0.05)
    return Protocol(
        name="small",
        source="for tests",
        settings={"train.epochs": 2, "train.warmup_epochs": 0.0, "train.batch_size": 16},
        recipes=(
            Recipe(methods=("vpt-*",), grids=({"method.length": (1, 2), "train.learning_rate": rates},)),
            Recipe(grids=({"train.learning_rate": rates},)),
        ),
        retrain="train+val",
        seeds=(3, 5),
    )


@pytest.fixture
def small_plan(two_tasks, small_protocol) -> StudyPlan:
    """Two methods on two tasks."""
    return StudyPlan(
        name="small",
        data=(str(two_tasks),),
        rows=(Row(label="Linear", fields={"name": "linear"}), Row(label="VPT-deep", fields={"name": "vpt-deep"})),
        protocol=small_protocol,
        device="cpu",
    )


@dataclass(frozen=True, kw_only=True)
class Toy(Job):
    """Work whose score follows from its settings; every execution adds a line to a log.

    - `kill`: a file; the first worker that finds none there makes it, and dies.
    """

    real: TrainingJob
    log: str
    seconds: float = 0.0
    epochs: int = 2
    kill: str = ""

    def steps(self, stock: Stock) -> Iterator[Progress | Outcome]:
        with open(self.log, "a") as file:
            file.write(f"{self.real.folder} {os.getpid()}\n")
        score = score_of(self.real)
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.seconds / self.epochs)
            yield Progress(epoch=epoch, score=score * epoch / self.epochs)
            if self.kill and not os.path.exists(self.kill):
                Path(self.kill).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        yield Outcome(score=score, val_top1=score, test_top1=score / 2, folder=self.real.folder)


def score_of(job: TrainingJob) -> float:
    """Highest at a learning rate of 0.05; two points are equal."""
    rate = job.config.train.learning_rate or 0.0
    return round(1 - abs(rate - 0.05) - 0.001 * job.config.train.seed, 6)
