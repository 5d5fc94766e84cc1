"""The record of a study: Optuna studies in a database, one for each search and one for its final runs.

A trial is added as waiting, with its settings; whoever claims it changes its state to running in one transaction, which
succeeds once; then it is complete, pruned, or failed with a reason. A trial whose process died has failed without a
reason: it is lost, and its place is taken by a new one. Of several trials with one key, which two processes may add at
the same time, the first counts.

SQLite is for one process at a time, which a lock file ensures; any other database (PostgreSQL) for many, whose
heartbeats tell which running trials are lost.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from promptvit.errors import ConfigError, OutputError
from promptvit.search.jobs import Outcome
from promptvit.search.plan import Pruner, SearchConfig
from promptvit.search.protocol import Scalar, Settings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 10
CONNECT_SECONDS = (0.5, 1.0, 2.0)
"""Waits between attempts to create the tables."""
GRACE_SECONDS = 60
"""A trial whose process has not been heard of for so long is lost."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial as the record has it; `key` is what it is about, `settings` None until a sampler has drawn them."""

    key: str
    number: int
    state: str
    settings: Settings | None
    outcome: Outcome | None
    reason: str


class Record:
    """The database at `url` (`sqlite:///FILE`, `postgresql+psycopg://...`); a context manager.

    Raises ConfigError if Optuna is missing or the database cannot be reached, and OutputError if another process is at
    work on an SQLite file.
    """

    def __init__(self, url: str) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError("studies need Optuna", fix="pip install 'promptvit[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._open = ExitStack()
        self.optuna = optuna
        self.shared = not url.startswith("sqlite")
        if not self.shared:
            self._open.enter_context(_locked(Path(url.removeprefix("sqlite:///"))))
        try:
            storage = self._connect(url)
        except Exception as error:  # of SQLAlchemy and of the database's own driver
            self._open.close()
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"the record {_without_password(url)} cannot be opened: {reason}") from error
        self._open.callback(storage.engine.dispose)
        self._open.callback(storage.remove_session)
        self.storage = optuna.storages.get_storage(storage)
        self.names = frozenset(optuna.get_all_study_names(storage))
        self._heart = _Heart(storage)
        if self.shared:
            self._heart.start()
            self._open.callback(self._heart.stop)

    def _connect(self, url: str) -> Any:
        """Optuna's storage; several processes may be about to create the same tables, and all but one then fail."""
        from sqlalchemy.exc import IntegrityError, ProgrammingError

        for wait in (*CONNECT_SECONDS, None):
            try:
                with _experiments():
                    return self.optuna.storages.RDBStorage(
                        url,
                        heartbeat_interval=HEARTBEAT_SECONDS if self.shared else None,
                        grace_period=GRACE_SECONDS if self.shared else None,
                    )
            except (IntegrityError, ProgrammingError):
                if wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def keep_alive(self, trial_id: int) -> None:
        """From now on tell other processes that we have it in our hands."""
        if self.shared:
            self._heart.beat(trial_id)

    def let_go(self, trial_id: int) -> None:
        """No longer."""
        self._heart.running.discard(trial_id)

    def trials(self, name: str, search: SearchConfig | None = None, seed: int = 0) -> Trials:
        """Those of a search, or (without `search`) of final runs."""
        return Trials(self, name, search or SearchConfig(), seed)


class Trials:
    """The trials of one search, or of the final runs of one cell."""

    def __init__(self, record: Record, name: str, search: SearchConfig, seed: int) -> None:
        self.record, self.search, self.seed = record, search, seed
        optuna = record.optuna
        self.study: Study = optuna.create_study(
            storage=record.storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(search.pruner),
        )
        self._lost_before_us()

    def _lost_before_us(self) -> None:
        """Mark what a dead process was running."""
        if self.record.shared:
            with _experiments():
                self.record.optuna.storages.fail_stale_trials(self.study)
            return
        state = self.record.optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            self.record.storage.set_trial_state_values(trial._trial_id, state.FAIL)

    def refresh(self) -> None:
        """See what other processes lost since."""
        if self.record.shared:
            self._lost_before_us()

    def add(self, points: Mapping[str, Settings | None], choices: Mapping[str, Sequence[Scalar]]) -> None:
        """Add those that are not there, by key; `choices` are all values of each setting."""
        optuna = self.record.optuna
        there = {trial.key for trial in self.all()}
        for key, settings in points.items():
            if key not in there:
                self.study.add_trial(
                    optuna.trial.create_trial(
                        state=optuna.trial.TrialState.WAITING,
                        params=settings or {},
                        distributions={
                            name: optuna.distributions.CategoricalDistribution(tuple(choices[name]))
                            for name in settings or {}
                        },
                        user_attrs={"key": key, "settings": settings},
                    )
                )

    def all(self) -> list[Trial]:
        """What counts: the first trial of each key that is not lost, by number."""
        found: dict[str, Trial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            seen = _read(trial)
            if seen is not None:
                found.setdefault(seen.key, seen)
        return list(found.values())

    def claim(self, only: Container[str] | None = None) -> Trial | None:
        """A waiting trial, now running and ours; None if there is none (with one of the keys `only`)."""
        state = self.record.optuna.trial.TrialState
        for trial in self.all():
            if trial.state == "WAITING" and (only is None or trial.key in only):
                trial_id = self._id(trial)
                with suppress(RuntimeError):  # another process has claimed and finished it since
                    if self.record.storage.set_trial_state_values(trial_id, state.RUNNING):
                        self.record.keep_alive(trial_id)
                        return trial
        return None

    def draw(self, trial: Trial, grids: Sequence[Mapping[str, Sequence[Scalar]]]) -> Trial:
        """Settings for a claimed trial that has none, from the union of `grids` and the ranges of the search.

        What is drawn depends on the seed, the trial's number and, with tpe, on the trials that are complete.
        """
        self.study.sampler = self._sampler(trial.number)
        live = self.record.optuna.trial.Trial(self.study, self._id(trial))
        place = live.suggest_categorical("grid", list(range(len(grids)))) if len(grids) > 1 else 0
        settings: Settings = {}
        for name, values in {**grids[place], **dict.fromkeys(self.search.ranges, ())}.items():
            if name in self.search.ranges:
                settings[name] = live.suggest_float(name, *self.search.ranges[name], log=True)
            else:
                # The values of a setting may differ between grids, and Optuna wants one set for one name.
                settings[name] = live.suggest_categorical(
                    f"{name} of {place}" if len(grids) > 1 else name, list(values)
                )
        live.set_user_attr("settings", settings)
        return dataclasses.replace(trial, settings=settings)

    def _sampler(self, number: int) -> BaseSampler:
        samplers = self.record.optuna.samplers
        seed = random.Random(f"{self.seed} {number}").randrange(2**32)
        if self.search.sampler == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=False)
        return samplers.RandomSampler(seed=seed)

    def should_stop(self, trial: Trial, epoch: int, score: float) -> bool:
        """Write down an epoch's score, if there is a pruner, and ask it."""
        if self.search.pruner == "none":
            return False
        live = self.record.optuna.trial.Trial(self.study, self._id(trial))
        live.report(score, epoch)
        return bool(live.should_prune())

    def complete(self, trial: Trial, outcome: Outcome) -> None:
        """The trial is done."""
        self._end(trial, "COMPLETE", "outcome", dataclasses.asdict(outcome), [outcome.score])

    def prune(self, trial: Trial, epoch: int) -> None:
        """The trial was stopped."""
        self._end(trial, "PRUNED", "reason", f"stopped after epoch {epoch}", None)

    def fail(self, trial: Trial, reason: str) -> None:
        """The trial cannot be done; it is not tried again."""
        self._end(trial, "FAIL", "reason", reason, None)

    def release(self, trial: Trial) -> None:
        """The trial is given up for now: another process, or the next one here, takes it up."""
        trial_id = self._id(trial)
        self.record.let_go(trial_id)
        with suppress(RuntimeError):
            self.record.storage.set_trial_state_values(trial_id, self.record.optuna.trial.TrialState.FAIL)

    def _end(self, trial: Trial, state: str, attribute: str, value: Any, values: list[float] | None) -> None:
        storage, trial_id = self.record.storage, self._id(trial)
        states = self.record.optuna.trial.TrialState
        self.record.let_go(trial_id)
        try:
            storage.set_trial_user_attr(trial_id, attribute, value)
            storage.set_trial_state_values(trial_id, states[state], values)
        except RuntimeError:
            return  # others took us for dead, and have the trial in their hands

    def _id(self, trial: Trial) -> int:
        return self.record.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, trial.number)


def _read(trial: FrozenTrial) -> Trial | None:
    """The trial, or None if it is lost."""
    attributes = trial.user_attrs
    if trial.state.name == "FAIL" and "reason" not in attributes:
        return None
    outcome = attributes.get("outcome")
    return Trial(
        key=attributes["key"],
        number=trial.number,
        state=trial.state.name,
        settings=attributes["settings"],
        outcome=None if outcome is None else Outcome(**outcome),
        reason=attributes.get("reason", ""),
    )


def _pruner(name: Pruner) -> Any:
    from optuna import pruners

    if name == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if name == "asha":
        return pruners.SuccessiveHalvingPruner(reduction_factor=3)
    return pruners.NopPruner()


class _Heart(threading.Thread):
    """Tells the database again and again that running trials are alive."""

    def __init__(self, storage: Any) -> None:
        super().__init__(daemon=True)
        self.storage, self.ended = storage, threading.Event()
        self.running: set[int] = set()

    def beat(self, trial_id: int) -> None:
        """For the first time, and from then on again and again."""
        self.storage.record_heartbeat(trial_id)
        self.running.add(trial_id)

    def run(self) -> None:
        while True:
            for trial_id in list(self.running):
                self.storage.record_heartbeat(trial_id)
            if self.ended.wait(HEARTBEAT_SECONDS):
                return

    def stop(self) -> None:
        """Return when the last beat is over."""
        self.ended.set()
        self.join()


@contextmanager
def _experiments() -> Iterator[None]:
    """Optuna calls its heartbeats experimental, and says so at every call; they are what the record stands on."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _locked(database: Path) -> ExitStack:
    """The lock of an SQLite file, held until the stack is closed."""
    database.parent.mkdir(parents=True, exist_ok=True)
    stack = ExitStack()
    try:
        stack.enter_context(FileLock(f"{database}.lock", timeout=0))
    except Timeout:
        raise OutputError(
            f"another process is at work on {database}",
            fix="Wait for it; for several processes on one study use PostgreSQL (--storage)",
        ) from None
    return stack


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:***@{tail}" if at and head.count(":") > 1 else url
