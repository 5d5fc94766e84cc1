"""Time and memory of things to compare, on a machine that others use too."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

MiB = 2**20
Step = Callable[[], object]
Clock = Callable[[], float]
Times = Mapping[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float


def wall_clock(device: torch.device) -> Clock:
    """Seconds, on CUDA once the device is done."""

    def now() -> float:
        _wait(device)
        return time.perf_counter()

    return now


def interleaved(steps: Mapping[str, Step], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every step in every round, after one unmeasured round.

    Round robin, every other round in reverse: what slows the machine for a while slows all of them. Neighbours in
    `steps` run next to one another.
    """
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds):
        for name in list(steps)[:: -1 if i % 2 else 1]:
            times[name].append(seconds(steps[name], clock))
    return times


def seconds(step: Step, clock: Clock) -> float:
    """What one call takes."""
    start = clock()
    step()
    return clock() - start


def ratio(times: Times, above: str, below: str) -> Spread:
    """Time of `above` in units of `below`, by round."""
    return spread([a / b for a, b in zip(times[above], times[below], strict=True)])


def spread(values: list[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Spread(median=median, low=low, high=high)


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most memory that one call holds at once beyond what was there before it: activations and gradients.

    On CUDA by the allocator's own count; on CPU by the profiler's record of every allocation and release. A call
    must release nothing older than itself: a training step drops its gradients at its end, not at its start.
    """
    if device.type == "cuda":
        return _cuda_peak(step, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for change in _allocations(profiler):
        held += change
        peak = max(peak, held)
    return peak


def check_peak(device: torch.device) -> None:
    """Assert that `peak_bytes` is right where it can be counted by hand."""
    block = 4 * MiB  # 2**20 floats

    def by_hand() -> None:  # one block, then two, then three once the first is gone
        first = torch.empty(MiB, device=device)
        second = torch.empty(2 * MiB, device=device)
        del first
        second.new_empty(MiB)

    x = torch.zeros(MiB, device=device, requires_grad=True)

    def backward() -> None:  # both results are kept for the backward pass, and one gradient beside them
        x.exp().exp().sum().backward()
        x.grad = None

    for step in (by_hand, backward):
        measured = peak_bytes(step, device)
        assert abs(measured - 3 * block) <= 4096, f"{step.__name__}: {measured} bytes, by hand {3 * block}"


def _allocations(profiler: profile) -> list[int]:
    """Bytes taken (positive) and released (negative), in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]


def _cuda_peak(step: Step, device: torch.device) -> int:
    _wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
