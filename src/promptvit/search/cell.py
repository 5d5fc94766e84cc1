"""A cell of a study at work: which trial is next, which settings are chosen, and what is known of it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from promptvit.files import digest
from promptvit.search.jobs import Outcome, TrainingJob
from promptvit.search.keys import run_key
from promptvit.search.plan import CellPlan, slug
from promptvit.search.protocol import RATE, Settings
from promptvit.search.record import Record, Trial, Trials
from promptvit.search.results import Cell, Final, Point, State
from promptvit.train.config import RunConfig

STATES: dict[str, State] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A trial in the hands of a worker."""

    cell: StudyCell
    trials: Trials
    trial: Trial
    job: TrainingJob
    started: float


class StudyCell:
    """A cell at work: its search, then the choice, then its final runs; `root` is the study's folder."""

    def __init__(self, plan: CellPlan, record: Record, root: Path) -> None:
        self.plan, self.record, self.root = plan, record, root
        self.finished = False
        self.points = plan.points()
        self._protocol = plan.protocol.to_dict()
        self._filled = False
        self._count: tuple[int, int] | None = None

    @cached_property
    def keyed(self) -> dict[str, Settings | None]:
        """What the search tries by key: points of a grid, or trials whose settings are to be drawn."""
        if self.sampled:
            return {f"trial-{number}": None for number in range(self.plan.study.search.trials)}
        return {run_key(self.config(point, final=False)): point for point in self.points}

    def config(self, settings: Settings, *, final: bool, seed: int | None = None) -> RunConfig:
        """The run with these settings."""
        return self.plan.config(settings, seed=self.plan.protocol.search_seed if seed is None else seed, final=final)

    @cached_property
    def search(self) -> Trials:
        """The trials of the search."""
        return self.record.trials(self._search_name, self.plan.study.search, self.plan.protocol.search_seed)

    @property
    def _search_name(self) -> str:
        if not self.sampled:
            return f"{self.plan.name}/search"
        # Trials that are drawn from something else are another search; the keys of a grid's points say it themselves.
        first = run_key(self.config(self.points[0], final=False))
        source = [first, self.plan.grids, self.plan.ranges, self.plan.study.search.sampler]
        return f"{self.plan.name}/search/{digest(json.dumps(source).encode())[:8]}"

    @property
    def _final_name(self) -> str:
        return f"{self.plan.name}/final"

    def _fill(self) -> None:
        """Add the trials of the search, the first time that somebody wants one and when some were lost."""
        if not self._filled:
            self.search.add(self.keyed)
            self._filled = True

    @property
    def sampled(self) -> bool:
        """Whether a sampler draws the points."""
        return self.plan.study.search.sampler != "grid"

    @property
    def searches(self) -> bool:
        """Whether there is anything to choose."""
        return self.sampled or len(self.points) > 1

    @cached_property
    def finals(self) -> Trials:
        """The final runs' trials."""
        return self.record.trials(self._final_name)

    def planned(self, chosen: Settings) -> dict[str, Settings | None]:
        """The final runs with the `chosen` settings, by key."""
        seeds = self.plan.protocol.seeds
        return {run_key(self.config(chosen, final=True, seed=seed)): {**chosen, "train.seed": seed} for seed in seeds}

    def claim(self, only: Container[str] | None = None) -> Assignment | None:
        """A trial that nobody has begun; None if there is none now (with one of the keys `only`)."""
        if self.finished:
            return None
        if self.searches:
            self._fill()
            trial = self.search.claim(_among(self.keyed, only))
            if trial is not None:
                if trial.settings is None:
                    trial = self.search.draw(trial, self.plan.grids, self.plan.ranges)
                return self._assign(self.search, trial, final=False)
            if self._waits_for(self.search, self.keyed):
                return None
        chosen = self.chosen()
        if chosen is None:
            self.finished, self._count = True, None
            return None
        planned = self.planned(chosen)
        self.finals.add(planned)
        trial = self.finals.claim(_among(planned, only))
        if trial is not None:
            return self._assign(self.finals, trial, final=True)
        self.finished = not self._waits_for(self.finals, planned)
        return None

    def _waits_for(self, trials: Trials, planned: Mapping[str, Settings | None]) -> bool:
        """Whether others are at work on some of the `planned` trials, or have lost them."""
        trials.refresh()
        self._count = None  # others may have done something
        states = [trial.state for trial in trials.all() if trial.key in planned]
        lost = len(states) < len(planned)
        self._filled = self._filled and not lost
        return lost or not {"WAITING", "RUNNING"}.isdisjoint(states)

    def done_before(self, assignment: Assignment) -> Outcome | None:
        """What came of another trial of the search for which the same settings were drawn."""
        if assignment.job.final or not self.sampled:
            return None
        same = (trial for trial in self._searched() if trial.settings == assignment.trial.settings)
        return next((trial.outcome for trial in same if trial.outcome is not None), None)

    def _assign(self, trials: Trials, trial: Trial, *, final: bool) -> Assignment:
        assert trial.settings is not None
        settings = {name: value for name, value in trial.settings.items() if name != "train.seed"}
        seed = trial.settings.get("train.seed")
        config = self.config(settings, final=final, seed=seed if isinstance(seed, int) else None)
        name = trial.key if final or not self.sampled else f"{trial.key}-{run_key(config)[:8]}"
        folder = self.folder / ("final" if final else "search") / name
        job = TrainingJob(
            config=config,
            first=self.plan.first(seed=config.train.seed, final=final),
            root=str(self.root),
            folder=str(folder),
            final=final,
            epoch=self.plan.protocol.epoch,
            study={
                "name": self.plan.study.name,
                "task": self.plan.task.name,
                "row": self.plan.row.label,
                "stage": "final" if final else "search",
                "settings": trial.settings,
                "protocol": self._protocol,
            },
            prune=self.plan.row.prune,
            command=f"promptvit train --config {folder}/config.yaml --out NEW",
        )
        return Assignment(cell=self, trials=trials, trial=trial, job=job, started=time.monotonic())

    @property
    def folder(self) -> Path:
        """Of its runs, relative to the study's."""
        backbone = slug(self.plan.backbone_label) if len(self.plan.study.backbones) > 1 else ""
        return Path("runs", slug(self.plan.task.name), backbone, slug(self.plan.row.label))

    def chosen(self) -> Settings | None:
        """The settings with the best score; of equals those with the smaller learning rate, then the first of the grid.

        None until all trials of the search are done, or if all failed.
        """
        return self._choice(self._searched())

    def _choice(self, trials: Sequence[Trial]) -> Settings | None:
        if not self.searches:
            return self.points[0]
        if not trials or len(trials) < len(self.keyed):
            return None
        if any(trial.state in ("WAITING", "RUNNING") for trial in trials):
            return None
        ranked = [
            (-trial.outcome.score, trial.settings.get(RATE) or 0.0, place, trial.settings)
            for place, trial in enumerate(trials)
            if trial.outcome is not None and trial.settings is not None
        ]
        return min(ranked, key=lambda each: each[:3])[3] if ranked else None

    def _searched(self) -> list[Trial]:
        """The planned trials of the search, in the order of the grid."""
        if not self.searches or not self._begun("search", self._search_name):
            return []
        by_key = {trial.key: trial for trial in self.search.all()}
        return [by_key[key] for key in self.keyed if key in by_key]

    def _begun(self, part: str, name: str) -> bool:
        """Whether the record has that part."""
        return part in self.__dict__ or name in self.record.names

    def _counted(self) -> tuple[list[Trial], list[Trial]]:
        """The trials of the search that are planned, and of the final runs, in order."""
        search = self._searched()  # every unfinished trial is read anew from the database
        chosen = self._choice(search)
        if chosen is None or not self._begun("finals", self._final_name):
            return search, []
        by_key = {trial.key: trial for trial in self.finals.all()}
        return search, [by_key[key] for key in self.planned(chosen) if key in by_key]

    def count(self) -> tuple[int, int]:
        """Trials done, and in all."""
        if self._count is None:
            points = (self.plan.study.search.trials if self.sampled else len(self.points)) if self.searches else 0
            done = sum(trial.state not in ("WAITING", "RUNNING") for part in self._counted() for trial in part)
            self._count = done, done if self.finished else points + len(self.plan.protocol.seeds)
        return self._count

    def ended(self) -> None:
        """A trial of ours is done, and about to be written down."""
        done, total = self.count()
        self._count = done + 1, total

    def outcomes(self) -> Iterator[Outcome]:
        """Of all trials that are done."""
        for trials in self._counted():
            yield from (trial.outcome for trial in trials if trial.outcome is not None)

    def results(self) -> Cell:
        """What is known so far."""
        search, finals = self._counted()
        row = self.plan.row.to_dict()
        return Cell(
            task=self.plan.task.name,
            group=self.plan.task.group,
            backbone=self.plan.backbone_label,
            method=self.plan.row.label,
            fields=self.plan.fields
            if self.plan.row.prune is None
            else {**self.plan.fields, "prune": self.plan.row.prune},
            settings=self.plan.row.settings,
            grid=row.get("grid", {}),
            first=row.get("first", {}),
            chosen=self.chosen(),
            points=tuple(_point(trial) for trial in search),
            finals=tuple(_final(trial, trial.outcome) for trial in finals if trial.outcome is not None),
            planned_finals=len(self.plan.protocol.seeds),
            failures=tuple(trial.reason for trial in finals if trial.state == "FAIL"),
        )


def _among(planned: Mapping[str, Settings | None], only: Container[str] | None) -> Container[str]:
    return planned if only is None else {key for key in planned if key in only}


def _point(trial: Trial) -> Point:
    outcome = trial.outcome
    return Point(
        settings=trial.settings or {},
        state=STATES[trial.state],
        val_top1=None if outcome is None else outcome.score,
        seconds=0.0 if outcome is None else outcome.seconds,
        reason=trial.reason,
        folder="" if outcome is None else outcome.folder,
    )


def _final(trial: Trial, outcome: Outcome) -> Final:
    names = {field.name for field in dataclasses.fields(Final)} - {"seed"}
    seed = (trial.settings or {})["train.seed"]
    assert isinstance(seed, int)
    return Final(seed=seed, **{name: getattr(outcome, name) for name in names})
