"""A study: every cell's search and final runs, by many workers, in an order that does not matter to the numbers."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from promptvit.errors import ConfigError
from promptvit.files import digest, write_json, write_text
from promptvit.search.jobs import PRUNED, Failure, Job, Outcome, Progress, TrainingJob, drop_weights, read_outcome
from promptvit.search.plan import CellPlan, StudyPlan, run_key, slug
from promptvit.search.protocol import RATE, Settings
from promptvit.search.record import Record, Trial, Trials
from promptvit.search.results import Cell, Final, Point, Results, State
from promptvit.search.workers import Died, Pool, make_pool
from promptvit.train.config import RunConfig
from promptvit.train.folder import RunFolder

TRIES = 3
"""A run that takes so many workers with it is not tried again."""
POLL_SECONDS = 2.0
TELL_SECONDS = 0.5
"""How often somebody is told how far a study is while no trial ends: heads have hundreds of epochs a second."""
STATES: dict[str, State] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclass(frozen=True, kw_only=True)
class StudyState:
    """How far a study is: trials done and in all, those running, and seconds left (None: not known yet)."""

    done: int
    total: int
    running: tuple[str, ...]
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A trial in the hands of a worker."""

    cell: StudyCell
    trials: Trials
    trial: Trial
    job: TrainingJob
    started: float


class Study:
    """A study in `folder`, with its record there (SQLite) or at `storage`; a context manager.

    - `workers`: see `make_pool`.
    - `adopt`: folders with finished runs, of any study or none: a run that is planned and found there is not repeated.
    - `follow`: is told how far it is, after every message.
    - `work`: what a worker is given for a run; the run itself, unless the machinery around it is to be measured.

    Raises ConfigError if the folder holds a study with another protocol.
    """

    def __init__(
        self,
        plan: StudyPlan,
        folder: Path,
        *,
        storage: str | None = None,
        adopt: Sequence[Path] = (),
        follow: Callable[[StudyState], None] = lambda state: None,
        command: str = "",
        work: Callable[[TrainingJob], Job] = lambda job: job,
    ) -> None:
        self.plan, self.folder, self.follow, self.command = plan, folder.absolute(), follow, command
        self.work = work
        self.adopted = adoptable(adopt)
        self.cells = [StudyCell(cell, self) for cell in plan.cells()]
        with ExitStack() as opened:
            self.record = opened.enter_context(Record(storage or f"sqlite:///{self.folder / 'study.db'}"))
            self._take_folder()
            opened.pop_all()
        self.running: dict[int, Assignment] = {}
        self.again: list[Assignment] = []
        self.deaths: dict[str, int] = {}
        self.took: dict[str, list[float]] = {}
        self.told_at = 0.0

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.record.__exit__()

    def _take_folder(self) -> None:
        path = self.folder / "study.yaml"
        values = self.plan.to_dict()
        if path.exists():
            try:
                known = yaml.safe_load(path.read_text())
            except yaml.YAMLError as error:
                raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
            if not isinstance(known, dict) or known.get("protocol") != values["protocol"]:
                raise ConfigError(
                    f"{self.folder} holds a study with another protocol",
                    expected="the same: its figures stand in one table",
                    fix="Choose another --out",
                )
        write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def run(self, workers: str = "in-order") -> Results:
        """Do what is missing; returns the results, which are also in `results.json`."""
        self.write()  # a report of it can be made from now on
        try:
            with make_pool(workers) as pool:
                self._work(pool)
        finally:  # the workers have ended: nobody writes where another process may go on
            for assignment in [*self.running.values(), *self.again]:
                assignment.trials.release(assignment.trial)
            results = self.write()
        return results

    def take_over(self) -> Results:
        """Run nothing: take over what was done elsewhere, and write the results."""
        for cell in self.cells:
            while (assignment := cell.claim(self.adopted)) is not None:
                done = self._done_elsewhere(assignment)
                if done is None:
                    assignment.trials.release(assignment.trial)
                    break
                assignment.trials.complete(assignment.trial, done)
        return self.write()

    def _work(self, pool: Pool) -> None:
        while True:
            for worker in pool.free():
                assignment = self.again.pop() if self.again else self._next()
                if assignment is None:
                    break
                self.running[worker] = assignment
                pool.send(worker, "begin", self.work(assignment.job))
            if not self.running:
                if not self.again and all(cell.finished for cell in self.cells):
                    return
                self.follow(self.state(pool.size))
                time.sleep(POLL_SECONDS)  # other processes are at work, or actors have no place yet
                continue
            messages = pool.receive(POLL_SECONDS)
            for worker, message in messages:
                self._handle(pool, worker, message)
            if not all(isinstance(message, Progress) for _, message in messages) or time.monotonic() >= self.told_at:
                self.follow(self.state(pool.size))
                self.told_at = time.monotonic() + TELL_SECONDS

    def _next(self) -> Assignment | None:
        """The first trial that can be begun; those that were done elsewhere are taken over."""
        for cell in self.cells:
            while (assignment := cell.claim()) is not None:
                done = self._done_elsewhere(assignment)
                if done is None:
                    return assignment
                cell.ended()
                assignment.trials.complete(assignment.trial, done)
        return None

    def _done_elsewhere(self, assignment: Assignment) -> Outcome | None:
        job = assignment.job
        if (outcome := assignment.cell.done_before(assignment)) is not None:
            return outcome
        folder = self.adopted.get(run_key(job.config))
        if folder is None:
            return None
        if job.prune is not None and job.final:
            folder = folder.with_name(folder.name + PRUNED)
            if not (folder / "summary.json").exists():
                return None
        outcome = read_outcome(folder, job.epoch)
        return None if job.final and outcome.test_top1 is None else outcome

    def _handle(self, pool: Pool, worker: int, message: Progress | Outcome | Failure | Died) -> None:
        assignment = self.running[worker]
        trials, trial = assignment.trials, assignment.trial
        if isinstance(message, Progress):
            if trials.should_stop(trial, message.epoch, message.score):
                pool.send(worker, "stop")
                assignment.cell.ended()
                trials.prune(trial, message.epoch)
                drop_weights(self.folder / assignment.job.folder)
                del self.running[worker]
            else:
                pool.send(worker, "go_on")
            return
        del self.running[worker]
        if isinstance(message, Died):
            self._mourn(assignment, message)
            return
        assignment.cell.ended()
        if isinstance(message, Failure):
            trials.fail(trial, message.reason)
        else:
            trials.complete(trial, message)
            self.took.setdefault(assignment.cell.plan.row.label, []).append(time.monotonic() - assignment.started)

    def _mourn(self, assignment: Assignment, death: Died) -> None:
        """Begin its run again with another worker, unless it has had several."""
        folder = assignment.job.folder
        self.deaths[folder] = self.deaths.get(folder, 0) + 1
        if self.deaths[folder] < TRIES:
            self.again.append(dataclasses.replace(assignment, started=time.monotonic()))
        else:
            assignment.cell.ended()
            assignment.trials.fail(assignment.trial, f"{TRIES} workers died of it: {death.reason}")

    def state(self, workers: int) -> StudyState:
        """How far it is."""
        left: dict[str, int] = {}
        done = 0
        for cell in self.cells:
            finished, total = cell.count()
            done += finished
            left[cell.plan.row.label] = left.get(cell.plan.row.label, 0) + total - finished
        every = [seconds for times in self.took.values() for seconds in times]
        seconds_left = None
        if every:
            usual = sum(every) / len(every)
            expected = {label: sum(times) / len(times) for label, times in self.took.items()}
            seconds_left = sum(count * expected.get(label, usual) for label, count in left.items()) / workers
        return StudyState(
            done=done,
            total=done + sum(left.values()),
            running=tuple(f"{each.cell.plan.task.name} {each.cell.plan.row.label}" for each in self.running.values()),
            seconds_left=seconds_left,
        )

    def results(self) -> Results:
        """What is known so far."""
        cells = tuple(cell.results() for cell in self.cells)
        origins = [outcome.origin for cell in self.cells for outcome in cell.outcomes()]
        return Results(
            name=self.plan.name,
            protocol=self.plan.to_dict()["protocol"],
            flags=self.plan.protocol.flags,
            cells=cells,
            command=self.command,
            origins=tuple({json.dumps(origin, sort_keys=True): origin for origin in origins}.values()),
        )

    def write(self) -> Results:
        """`results.json`, from the record."""
        results = self.results()
        write_json(self.folder / "results.json", results.to_dict())
        return results


class StudyCell:
    """A cell at work: its search, then the choice, then its final runs."""

    def __init__(self, plan: CellPlan, study: Study) -> None:
        self.plan, self.study = plan, study
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
        return self.study.record.trials(self._search_name, self.plan.study.search, self.plan.protocol.search_seed)

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
        return self.study.record.trials(self._final_name)

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
            root=str(self.study.folder),
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
        return part in self.__dict__ or name in self.study.record.names

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
        return Cell(
            task=self.plan.task.name,
            group=self.plan.task.group,
            backbone=self.plan.backbone_label,
            method=self.plan.row.label,
            fields=self.plan.fields
            if self.plan.row.prune is None
            else {**self.plan.fields, "prune": self.plan.row.prune},
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


def adoptable(folders: Sequence[Path]) -> dict[str, Path]:
    """Finished runs below `folders`, by their key; raises ConfigError for a folder that is not there.

    Of several with one key the first, or the last that was pruned: a pruned row wants what lies beside it.
    """
    found: dict[str, Path] = {}
    for root in folders:
        if not root.is_dir():
            raise ConfigError(f"--adopt {root}", expected="a folder with finished runs")
        for summary in sorted(root.rglob("summary.json")):
            folder = RunFolder(summary.parent.absolute())
            if folder.config.exists() and "pruning" not in folder.read_summary():
                with suppress(ConfigError):  # what this version cannot read is none of its runs
                    key = run_key(folder.read_config())
                    if key not in found or folder.root.with_name(folder.root.name + PRUNED).exists():
                        found[key] = folder.root
    return found
