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
from promptvit.search.protocol import Grid, Settings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 10
CONNECT_SECONDS = (0.5, 1.0, 2.0)
"""Waits between attempts to create the tables."""
SQLITE_SECONDS = 60
"""How long to wait for somebody who reads the file, such as a dashboard."""
GRACE_SECONDS = 60
"""A trial whose process has not been heard of for so long is lost."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial as the record has it; `key` is what it is about, `settings` None until a sampler has drawn them."""

    key: str
    id: int
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
                        engine_kwargs={} if self.shared else {"connect_args": {"timeout": SQLITE_SECONDS}},
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
        self._waiting: list[Trial] = []  # as last read: to read all of them for each claim would take long
        optuna = record.optuna
        self.study: Study = optuna.create_study(
            storage=record.storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(search.pruner),
        )
        if not self.record.shared:  # whoever was running these is dead: we have the lock
            state = self.record.optuna.trial.TrialState
            for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
                self.record.storage.set_trial_state_values(trial._trial_id, state.FAIL)

    def refresh(self) -> None:
        """Mark what other processes have lost."""
        if self.record.shared:
            with _experiments():
                self.record.optuna.storages.fail_stale_trials(self.study)

    def add(self, points: Mapping[str, Settings | None]) -> None:
        """Add those that are not there, by key; one that was lost with what had been drawn for it."""
        optuna = self.record.optuna
        there = {trial.key for trial in self.all()}
        lost = {trial.user_attrs["key"]: trial for trial in self.study.get_trials(deepcopy=False) if _is_lost(trial)}
        for key, settings in points.items():
            if key not in there:
                drawn = lost.get(key)
                if drawn is None or drawn.user_attrs["settings"] is None:
                    parts: dict[str, Any] = {"user_attrs": {"key": key, "settings": settings}}
                else:
                    parts = {name: getattr(drawn, name) for name in ("params", "distributions")}
                    parts["user_attrs"] = {"key": key, "settings": drawn.user_attrs["settings"]}
                self.study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, **parts))

    def all(self) -> list[Trial]:
        """What counts: the first trial of each key that is not lost, by number."""
        found: dict[str, Trial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            seen = _read(trial)
            if seen is not None:
                found.setdefault(seen.key, seen)
        return list(found.values())

    def claim(self, wanted: Container[str]) -> Trial | None:
        """A waiting trial with one of the keys `wanted`, now running and ours; None if there is none."""
        state = self.record.optuna.trial.TrialState
        if not any(trial.key in wanted for trial in self._waiting):
            self._waiting = [trial for trial in self.all() if trial.state == "WAITING"]
            if self.record.shared:  # so that processes seldom want the same
                random.shuffle(self._waiting)
        for trial in [trial for trial in self._waiting if trial.key in wanted]:
            self._waiting.remove(trial)
            # Before it is running: one without a heartbeat is never found to be lost.
            self.record.keep_alive(trial.id)
            with suppress(RuntimeError):  # another process has claimed and finished it since
                if self.record.storage.set_trial_state_values(trial.id, state.RUNNING):
                    return trial
            self.record.let_go(trial.id)
        return None

    def draw(
        self, trial: Trial, grids: Sequence[Grid], ranges: Mapping[str, tuple[float, float] | tuple[int, int]]
    ) -> Trial:
        """Settings for a claimed trial that has none, from the union of `grids` and between the two numbers of each of
        the `ranges`, integers between integers.

        What is drawn depends on the seed, the trial's key and, with tpe, on the trials that are complete.
        """
        self.study.sampler = self._sampler(trial.key)
        live = self.record.optuna.trial.Trial(self.study, trial.id)
        place = live.suggest_categorical("grid", list(range(len(grids)))) if len(grids) > 1 else 0
        settings: Settings = {}
        for name, values in {**grids[place], **dict.fromkeys(ranges, ())}.items():
            if name in ranges:
                low, high = ranges[name]
                if isinstance(low, int) and isinstance(high, int):
                    settings[name] = live.suggest_int(name, low, high, log=True)
                else:
                    settings[name] = live.suggest_float(name, low, high, log=True)
            else:
                # The values of a setting may differ between grids, and Optuna wants one set for one name.
                settings[name] = live.suggest_categorical(
                    f"{name} of {place}" if len(grids) > 1 else name, list(values)
                )
        live.set_user_attr("settings", settings)
        return dataclasses.replace(trial, settings=settings)

    def _sampler(self, key: str) -> BaseSampler:
        samplers = self.record.optuna.samplers
        seed = random.Random(f"{self.seed} {key}").randrange(2**32)
        if self.search.sampler == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=False)
        return samplers.RandomSampler(seed=seed)

    def should_stop(self, trial: Trial, epoch: int, score: float) -> bool:
        """Write down an epoch's score, if there is a pruner, and ask it."""
        if self.search.pruner == "none":
            return False
        try:
            self.record.storage.set_trial_intermediate_value(trial.id, epoch, score)  # again, if a worker died since
        except RuntimeError:
            return False  # others took us for dead
        return bool(self.study.pruner.prune(self.study, self.record.storage.get_trial(trial.id)))

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
        self.record.let_go(trial.id)
        with suppress(RuntimeError):
            self.record.storage.set_trial_state_values(trial.id, self.record.optuna.trial.TrialState.FAIL)

    def _end(self, trial: Trial, state: str, attribute: str, value: Any, values: list[float] | None) -> None:
        storage, states = self.record.storage, self.record.optuna.trial.TrialState
        self.record.let_go(trial.id)
        try:
            storage.set_trial_user_attr(trial.id, attribute, value)
            storage.set_trial_state_values(trial.id, states[state], values)
        except RuntimeError:
            return  # others took us for dead, and have the trial in their hands


def _is_lost(trial: FrozenTrial) -> bool:
    return trial.state.name == "FAIL" and "reason" not in trial.user_attrs


def _read(trial: FrozenTrial) -> Trial | None:
    """The trial, or None if it is lost."""
    attributes = trial.user_attrs
    if _is_lost(trial):
        return None
    outcome = attributes.get("outcome")
    return Trial(
        key=attributes["key"],
        id=trial._trial_id,
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
                with suppress(Exception):  # the database may be away for a moment: the next beat tells
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
