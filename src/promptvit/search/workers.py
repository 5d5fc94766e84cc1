"""Who does the work: this process, processes of this machine, or Ray actors; all keep what they have loaded.

A worker does one job at a time, epoch by epoch: `begin` and `go_on` each give one message. Between them the study can
stop it, and nobody else's numbers depend on when.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import torch

from promptvit.errors import ConfigError, PromptvitError
from promptvit.search.jobs import Job, Message, Progress, run_job
from promptvit.train.stock import Stock

Call = Literal["begin", "go_on", "stop"]
READY = "ready"
"""The first message of a worker process."""
STILLBORN = 3
"""So many worker processes in a row that end before it, and there will be none."""
LOCAL = re.compile(r"local:([1-9]\d*)")
RAY = re.compile(r"(ray://[^#]+|ray:(?:auto|local|[^#/]+:\d+))(?:#([1-9]\d*))?")


class Worker:
    """Does jobs, one at a time, and keeps backbones and images between them."""

    def __init__(self) -> None:
        self.stock = Stock()
        self.steps: Iterator[Message] | None = None

    def do(self, call: Call, job: Job | None = None) -> Message | None:
        """Begin `job`, go on with it, or stop it; the next message, and none after a stop."""
        if call == "stop":
            assert self.steps is not None
            self.steps.close()  # type: ignore[attr-defined]  # a generator
            self.steps = None
            return None
        if call == "begin":
            assert job is not None
            self.steps = run_job(job, self.stock)
        assert self.steps is not None
        return next(self.steps)


@dataclass(frozen=True, kw_only=True)
class Died:
    """A worker is gone, and why; another takes its place."""

    reason: str


class Pool(ABC):
    """Workers by number; a context manager."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many there are."""

    @abstractmethod
    def free(self) -> list[int]:
        """Those that can begin a job."""

    @abstractmethod
    def send(self, worker: int, call: Call, job: Job | None = None) -> None:
        """Tell a worker what to do next; `stop` frees it."""

    @abstractmethod
    def receive(self, seconds: float) -> list[tuple[int, Message | Died]]:
        """Messages of workers that have some, after waiting for the first at most `seconds`. A worker that has sent an
        outcome, a failure or `Died` is free again."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InOrder(Pool):
    """This process: jobs are done one after the other."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.asked: tuple[Call, Job | None] | None = None
        self.busy = False

    @property
    def size(self) -> int:
        return 1

    def free(self) -> list[int]:
        return [] if self.busy else [0]

    def send(self, worker: int, call: Call, job: Job | None = None) -> None:
        if call == "stop":
            self.worker.do("stop")
            self.busy = False
            return
        self.asked = (call, job)
        self.busy = True

    def receive(self, seconds: float) -> list[tuple[int, Message | Died]]:
        if self.asked is None:
            return []
        (call, job), self.asked = self.asked, None
        message = self.worker.do(call, job)
        assert message is not None
        self.busy = not is_last(message)
        return [(0, message)]

    def close(self) -> None:
        return


class Processes(Pool):
    """Processes of this machine, which share its cores."""

    def __init__(self, count: int) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.threads = max(1, (os.cpu_count() or 1) // count)
        self.workers = [self._start() for _ in range(count)]
        self.busy = [False] * count
        self.stillborn = 0

    def _start(self) -> tuple[Any, Connection]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.threads), daemon=False)
        with _interrupts_later():
            process.start()
        theirs.close()
        return process, ours

    @property
    def size(self) -> int:
        return len(self.workers)

    def free(self) -> list[int]:
        return [number for number, busy in enumerate(self.busy) if not busy]

    def send(self, worker: int, call: Call, job: Job | None = None) -> None:
        with suppress(OSError):  # it is dead: `receive` will find out
            self.workers[worker][1].send((call, job))
        self.busy[worker] = call != "stop"

    def receive(self, seconds: float) -> list[tuple[int, Message | Died]]:
        waiting = {self.workers[number][1]: number for number, busy in enumerate(self.busy) if busy}
        messages: list[tuple[int, Message | Died]] = []
        for connection in wait(list(waiting), seconds):
            number = waiting[connection]  # type: ignore[index]
            try:
                message = connection.recv()  # type: ignore[union-attr]
            except (EOFError, OSError):
                process, ours = self.workers[number]
                ours.close()
                process.join()
                message = Died(reason=f"worker process {process.pid} ended with code {process.exitcode}")
                self.stillborn += 1
                if self.stillborn == STILLBORN:
                    raise RuntimeError(f"{message.reason}, as {STILLBORN - 1} before it, without a beginning") from None
                self.workers[number] = self._start()
            if message == READY:
                self.stillborn = 0
                continue
            if isinstance(message, Exception):
                raise message
            self.busy[number] = not is_last(message)
            messages.append((number, message))
        return messages

    def close(self) -> None:
        for _, connection in self.workers:
            connection.close()  # the end of its loop
        for (process, _), busy in zip(self.workers, self.busy, strict=True):
            if busy:
                process.terminate()
        for process, _ in self.workers:
            process.join()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """What is started here is deaf to Ctrl-C from its first moment on: it inherits the mask."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, threads: int) -> None:
    """A worker process: answers calls until nobody is left to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study's process is interrupted, and ends this one
    torch.set_num_threads(threads)
    worker = Worker()
    with suppress(OSError):
        connection.send(READY)
    while True:
        try:
            call, job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            message = worker.do(call, job)
        except (PromptvitError, OSError, MemoryError) as error:  # no run would fare better
            message = error
        except Exception:  # a fault of ours: the study must not go on
            message = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
        try:
            if message is not None:
                connection.send(message)
        except OSError:
            return


def is_last(message: Message | Died) -> bool:
    """Whether the worker is free after it."""
    return not isinstance(message, Progress)


def check_workers(workers: str) -> None:
    """Raise ConfigError for what `make_pool` does not know."""
    if workers != "in-order" and not LOCAL.fullmatch(workers) and not RAY.fullmatch(workers):
        raise ConfigError(f"workers={workers!r}", expected="in-order, local:N, ray:auto, or ray://HOST:PORT#N")


def make_pool(workers: str) -> Pool:
    """`in-order`; `local:N` processes; or `ray://HOST:PORT`, `ray:auto`, `ray:local`, each with `#N` actors if given.

    Raises ConfigError for another word or a cluster that is not there.
    """
    check_workers(workers)
    if match := LOCAL.fullmatch(workers):
        return Processes(int(match[1]))
    if match := RAY.fullmatch(workers):
        from promptvit.search.ray_workers import RayActors

        address = match[1] if match[1].startswith("ray://") else match[1].removeprefix("ray:")
        return RayActors(address, int(match[2]) if match[2] else None)
    return InOrder()
