"""A study: every cell's search and final runs, by many workers, in an order that does not matter to the numbers."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from promptvit.errors import ConfigError
from promptvit.files import write_json, write_text
from promptvit.search.cell import Assignment, StudyCell
from promptvit.search.jobs import PRUNED, Failure, Job, Outcome, Progress, TrainingJob, drop_weights, read_outcome
from promptvit.search.keys import run_key
from promptvit.search.plan import StudyPlan
from promptvit.search.record import Record
from promptvit.search.results import RESULTS, Results
from promptvit.search.workers import Died, Pool, make_pool
from promptvit.train.folder import RunFolder

TRIES = 3
"""A run that takes so many workers with it is not tried again."""
POLL_SECONDS = 2.0
TELL_SECONDS = 0.5
"""How often somebody is told how far a study is while no trial ends: heads have hundreds of epochs a second."""


@dataclass(frozen=True, kw_only=True)
class StudyState:
    """How far a study is: trials done and in all, those running, and seconds left (None: not known yet)."""

    done: int
    total: int
    running: tuple[str, ...]
    seconds_left: float | None


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
        planned = plan.cells()
        with ExitStack() as opened:
            self.record = opened.enter_context(Record(storage or f"sqlite:///{self.folder / 'study.db'}"))
            self.cells = [StudyCell(cell, self.record, self.folder) for cell in planned]
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
        if (outcome := assignment.cell.done_before(assignment)) is not None or not self.adopted:
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
        write_json(self.folder / RESULTS, results.to_dict())
        return results


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
