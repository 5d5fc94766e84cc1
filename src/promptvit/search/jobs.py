"""What a worker does: one run of a study, and what it tells of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from promptvit.errors import ConfigError, OutputError, PromptvitError
from promptvit.files import write_text
from promptvit.pruning.config import PruneConfig
from promptvit.search.keys import run_key
from promptvit.search.origin import origin
from promptvit.search.protocol import Epoch
from promptvit.train.config import RunConfig
from promptvit.train.folder import RunFolder
from promptvit.train.stock import Stock

KEEP_SECONDS = 20.0
"""How often a run in a study writes its state: what a killed worker loses at most."""
PRUNED = "-pruned"
FIRST = "first"
"""The folder of runs that others start from."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run.

    - `score`: the accuracy that chooses. `val_top1`, `test_top1`: after the epoch that the protocol's rule names.
    - `folder`: of the run, relative to the study's.
    - `origin`: commit, machine and versions.
    """

    score: float
    val_top1: float | None = None
    test_top1: float | None = None
    trained_parameters: int = 0
    trained_percent: float = 0.0
    delta_bytes: int = 0
    seconds: float = 0.0
    folder: str = ""
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """An epoch is done: its number, and its score."""

    epoch: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that cannot go on, and why."""

    reason: str


Message = Progress | Outcome | Failure


class Job(ABC):
    """Work for a worker; it travels as a pickle."""

    @abstractmethod
    def steps(self, stock: Stock) -> Iterator[Progress | Outcome]:
        """Do it: a `Progress` after every epoch, and an `Outcome` at the end. Closing it early leaves it resumable."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """A run, and perhaps its pruning.

    - `first`: the run that this one starts from, made once for all that do.
    - `root`: the study's folder. `folder`: of the run in it.
    - `final`: its test images are evaluated, and all its files stay; else weights and state go when it is done.
    - `study`: what the summary says of the study.
    """

    config: RunConfig
    root: str
    folder: str
    final: bool
    epoch: Epoch
    study: dict[str, Any]
    first: RunConfig | None = None
    prune: dict[str, Any] | None = None
    command: str = ""

    def steps(self, stock: Stock) -> Iterator[Progress | Outcome]:
        """See `Job`; goes on with what an earlier worker has left in the folder."""
        from promptvit.train.loop import epochs

        folder = Path(self.root, self.folder)
        config = self.config if self.first is None else self._after(self.first, stock)
        _take_up(RunFolder(folder), config)
        for row in epochs(
            config,
            folder,
            resume=True,
            command=self.command,
            test=self.final or self.epoch == "best-test",
            stock=stock,
            keep_seconds=KEEP_SECONDS,
            study={**self.study, "origin": origin()},
        ):
            yield Progress(epoch=row["epoch"], score=row["test_top1" if self.epoch == "best-test" else "val_top1"])
        if self.final and self.prune is not None:
            from promptvit.pruning.search import prune_run

            pruned = folder.with_name(folder.name + PRUNED)
            prune_run(folder, pruned, PruneConfig(**self.prune), resume=True)
            folder = pruned
        outcome = read_outcome(folder, self.epoch, Path(self.root))
        if not self.final:
            drop_weights(folder)
        yield outcome

    def _after(self, first: RunConfig, stock: Stock) -> RunConfig:
        """The configuration that names the finished run before, which is made here unless somebody has."""
        from filelock import FileLock  # of the extra `sweep`

        from promptvit.train.loop import fit

        folder = Path(self.root).absolute() / FIRST / run_key(first)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            _take_up(RunFolder(folder), first)
            fit(first, folder, resume=True, test=False, stock=stock)
        backbone, train = self.config.backbone, self.config.train
        return dataclasses.replace(
            self.config,
            backbone=dataclasses.replace(backbone, tuned=backbone.tuned and str(folder)),
            train=dataclasses.replace(train, head_from=train.head_from and str(folder)),
        )


def _take_up(run: RunFolder, config: RunConfig) -> None:
    """Go on although the data lie elsewhere now, or the device is another: the folder's name says what it is."""
    try:
        run.check(config.to_dict(), resume=True)
    except ConfigError:
        write_text(run.config, yaml.safe_dump(json.loads(json.dumps(config.to_dict())), sort_keys=False))


def drop_weights(folder: Path) -> None:
    """Leave of a run only what its search needs."""
    for part in ("delta", "state"):
        shutil.rmtree(folder / part, ignore_errors=True)


def read_outcome(folder: Path, epoch: Epoch, root: Path | None = None) -> Outcome:
    """What came of the finished run in `folder`."""
    summary = json.loads((folder / "summary.json").read_text())
    result, cost = summary["result"], summary["cost"]
    figures = {
        "val_top1": result["val"]["top1"],
        "test_top1": None if result["test"] is None else result["test"]["top1"],
    }
    if epoch != "last":
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        key = "val_top1" if epoch == "best-val" else "test_top1"
        best = max(rows, key=lambda row: row[key])  # the first of equals
        figures = {"val_top1": best["val_top1"], "test_top1": best.get("test_top1")}
    score = figures["test_top1" if epoch == "best-test" else "val_top1"]
    return Outcome(
        score=score,
        **figures,
        **{name: cost[name] for name in ("trained_parameters", "trained_percent", "delta_bytes", "seconds")},
        folder=str(folder if root is None or not folder.is_relative_to(root) else folder.relative_to(root)),
        origin=_origin(summary, folder),
    )


def _origin(summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the run was made with; of a run outside a study, what its summary says."""
    known = summary.get("study", {}).get("origin")
    return known or {"machine": summary.get("machine", {}), "versions": summary.get("versions", {})}


def run_job(job: Job, stock: Stock) -> Iterator[Message]:
    """The messages of a job; what a user can mend becomes a `Failure`."""
    try:
        yield from job.steps(stock)
    except PromptvitError as error:
        if isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
            raise  # the disk: no run would fare better
        yield Failure(reason=str(error))
