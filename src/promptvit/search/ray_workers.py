"""Workers as actors on a Ray cluster."""

from __future__ import annotations

import os
import socket
from importlib import import_module
from typing import Any

from promptvit.errors import ConfigError
from promptvit.search.jobs import Job, Message
from promptvit.search.workers import Call, Died, Pool, Worker, is_last

CONNECT_SECONDS = 10


class RayActors(Pool):
    """Actors on a Ray cluster, one core each or one GPU; the study's folder must be the same on all nodes."""

    def __init__(self, address: str, count: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise ConfigError(
                "workers on Ray: the package is not installed", fix="pip install 'promptvit[ray]'"
            ) from None
        self.ray = ray
        self.ours = not ray.is_initialized()
        if self.ours:
            try:
                _reach(address)
                ray.init(address=address, log_to_driver=False)
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"no Ray cluster at {address}: {reason}", fix="Start one: ray start --head") from None
        resources = ray.cluster_resources()
        self.gpus = min(1, int(resources.get("GPU", 0)))
        count = count or int(resources.get("GPU" if self.gpus else "CPU", 0))
        if count < 1:
            self._leave()
            raise ConfigError(f"the Ray cluster at {address} has no cores", expected="a node, or #N to wait for some")
        self.actor = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0)(Worker)
        self.actors = [self.actor.remote() for _ in range(count)]
        self.ready = [actor.__ray_ready__.remote() for actor in self.actors]
        self.asked: dict[int, Any] = {}
        self.usable = [False] * count

    @property
    def size(self) -> int:
        return len(self.actors)

    def free(self) -> list[int]:
        """Those that have a place on some node and nothing to do."""
        pending = {ref: number for number, ref in enumerate(self.ready) if not self.usable[number]}
        if pending:
            done, _ = self.ray.wait(list(pending), num_returns=len(pending), timeout=0)
            for ref in done:
                self._become_usable(pending[ref], ref)
        return [number for number, usable in enumerate(self.usable) if usable and number not in self.asked]

    def _become_usable(self, number: int, ref: Any) -> None:
        try:
            self.ray.get(ref)
            self.usable[number] = True
        except self.ray.exceptions.RayActorError as error:
            if error.actor_init_failed:  # its nodes lack promptvit, or something that it needs: the next one will too
                raise RuntimeError(f"Ray cannot start a worker: {error}") from None
            self._replace(number)

    def _replace(self, number: int) -> None:
        self.actors[number] = self.actor.remote()
        self.ready[number] = self.actors[number].__ray_ready__.remote()
        self.usable[number] = False

    def send(self, worker: int, call: Call, job: Job | None = None) -> None:
        answer = self.actors[worker].do.remote(call, job)
        if call == "stop":
            self.asked.pop(worker, None)
        else:
            self.asked[worker] = answer

    def receive(self, seconds: float) -> list[tuple[int, Message | Died]]:
        by_ref = {ref: number for number, ref in self.asked.items()}
        if not by_ref:
            return []
        done, _ = self.ray.wait(list(by_ref), num_returns=1, timeout=seconds)
        messages: list[tuple[int, Message | Died]] = []
        for ref in done:
            number = by_ref[ref]
            try:
                message = self.ray.get(ref)
            except self.ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except self.ray.exceptions.RayError as error:  # the actor, or its node
                message = Died(reason=str(error).splitlines()[0])
                self._replace(number)
            if is_last(message):
                del self.asked[number]
            messages.append((number, message))
        return messages

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self._leave()

    def _leave(self) -> None:
        if self.ours:
            self.ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError if nobody listens there: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
