"""Measures the performance budget (design, section 9) and prints it: `python -m benchmarks.run --help`.

Every ratio is taken between things that run next to one another in the same round, and is the median over rounds.
Exits with 1 if a line misses its budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure, steps
from benchmarks.machine import changed, commit, machine
from benchmarks.measure import Clock, MiB, Times

LENGTHS = {50: 1.35, 100: 1.6, 200: 1.9}
MAX_DIFFERENCE = 1e-4
CLOCK = "cpu: this process's own CPU time; with --threads 1 the measure that other load on the machine disturbs least"
NOTES = (
    "spread: quartiles over rounds; fastest: ratio of each side's fastest call, the least disturbed by other load",
    "P=0: prompts of zero rows that still ask for a gradient, so that the backward pass goes through the trunk",
    "peak: what a training step holds at once beyond weights, prompts and images (activations and gradients)",
    f"mixed tasks: {steps.TASKS} tasks in one batch, kept keys and values and heads gathered by task id in the call",
    "inference compares with timm's own forward and a linear layer; one set of backbone weights for everything",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measured figure and, if the design gives one, its budget: a least value, or a most."""

    what: str
    value: float
    unit: str = "x"
    least: float | None = None
    most: float | None = None
    low: float | None = None
    high: float | None = None
    fastest: float | None = None

    @property
    def missed_by(self) -> float:
        """How far the value is on the wrong side of its budget; 0 if it is met or there is none."""
        below = 0.0 if self.least is None else self.least - self.value
        above = 0.0 if self.most is None else self.value - self.most
        return max(below, above, 0.0)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Lines with the seconds they come from."""

    lines: tuple[Line, ...]
    seconds: dict[str, list[float]]


def main() -> int:
    """Measure, print, write; 1 if a budget is missed."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports on itself otherwise
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    on = steps.bench(options.batch, device, options.seed)
    if options.profile:
        print(profiled(on))
        return 0
    measure.check_peak(device)
    start = time.perf_counter()
    clock = time.process_time if options.clock == "cpu" else measure.wall_clock(device)
    timed = [train_lines(on, options.rounds, clock), infer_lines(on, options.rounds, clock)]
    results = [*timed, memory_lines(on), help_lines()]
    record = describe(options, device, results, time.perf_counter() - start)
    page = table(record, [line for result in results for line in result.lines])
    print(page)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")
        options.json.with_suffix(".md").write_text(f"# Speed and memory\n\n```\n{page}\n```\n")
    return int(any(line.missed_by for result in results for line in result.lines))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, help="calls of everything that is timed (default 5)")
    parser.add_argument("--batch", type=int, help="images per step (default 32, as in the default recipe)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=CLOCK)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything measured, and the table beside it as .md"
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 images: does it run at all?")
    parser.add_argument("--profile", action="store_true", help="only show where the time of our P=50 step goes")
    options = parser.parse_args()
    if options.clock == "cpu" and torch.cuda.is_available():
        parser.error("--clock cpu does not see what a CUDA device does")
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.batch = options.batch or (2 if options.quick else 32)
    return options


def train_lines(on: steps.Bench, rounds: int, clock: Clock) -> Result:
    """Training steps against the literal formulation, and against none."""
    models = {length: steps.ours(on, length) for length in LENGTHS}
    literals = {length: steps.literal(on, model) for length, model in models.items()}
    shallow = steps.ours(on, 50, "shallow")
    agree = tuple(
        agreement(f"P={length}", steps.difference(on, models[length], literals[length])) for length in LENGTHS
    )
    timed = {"step P=0": steps.training(on, steps.NoPrompts(on.backbone))}
    for length in LENGTHS:
        timed[f"step P={length}"] = steps.training(on, models[length])
        timed[f"literal step P={length}"] = steps.training(on, literals[length])
    timed["shallow step P=50"] = steps.training(on, shallow)
    timed["literal shallow step P=50"] = steps.training(on, steps.literal(on, shallow))
    times = measure.interleaved(timed, rounds, clock)
    lines = [
        compare(
            times, f"VPT-deep step, literal / ours, P={length}", f"literal step P={length}", f"step P={length}", least
        )
        for length, least in LENGTHS.items()
    ]
    lines.append(
        compare(times, "VPT-shallow step, literal / ours, P=50", "literal shallow step P=50", "shallow step P=50")
    )
    lines.append(compare(times, "VPT-deep step, P=50 / P=0", "step P=50", "step P=0", most=1.10))
    return Result(lines=(*lines, *agree), seconds=times)


def agreement(which: str, difference: float) -> Line:
    """The check that the two formulations are one function."""
    return Line(what=f"logits, literal - ours, {which}", value=difference, unit="", most=MAX_DIFFERENCE)


def infer_lines(on: steps.Bench, rounds: int, clock: Clock) -> Result:
    """Throughput with kept prompt keys and values, one task and many."""
    bare, kept, mixed = steps.bare(on), steps.ours(on, 50).fold(), steps.MixedTasks(on, 50)
    batch = len(on.images)
    timed = {
        "bare": steps.inference(on, bare, batch),
        "kept P=50": steps.inference(on, kept, batch),
        "mixed tasks P=50": steps.inference(on, mixed, batch),
    }
    single = {"bare, 1 image": steps.inference(on, bare, 1), "kept P=50, 1 image": steps.inference(on, kept, 1)}
    times = measure.interleaved(timed, 2 * rounds, clock) | measure.interleaved(single, 6 * rounds, clock)
    lines = (
        compare(times, f"inference throughput, kept P=50 / bare, batch {batch}", "bare", "kept P=50", least=0.93),
        compare(times, "inference throughput, kept P=50 / bare, batch 1", "bare, 1 image", "kept P=50, 1 image"),
        compare(times, "inference throughput, mixed / one task, P=50", "kept P=50", "mixed tasks P=50", least=0.95),
    )
    return Result(lines=lines, seconds=times)


def compare(
    times: Times, what: str, above: str, below: str, least: float | None = None, most: float | None = None
) -> Line:
    """The time of `above` in units of `below`."""
    ratio = measure.ratio(times, above, below)
    fastest = min(times[above]) / min(times[below])
    return Line(what=what, value=ratio.median, low=ratio.low, high=ratio.high, fastest=fastest, least=least, most=most)


def memory_lines(on: steps.Bench) -> Result:
    """The peak of a training step."""
    models = {length: steps.ours(on, length) for length in (50, 200)}
    peaks = {"P=0": peak(on, steps.NoPrompts(on.backbone))}
    for length, model in models.items():
        peaks[f"P={length}"] = peak(on, model)
        peaks[f"literal P={length}"] = peak(on, steps.literal(on, model))
    lines = [Line(what=f"peak of a step, {name}", value=peaks[name] / MiB, unit=" MiB") for name in peaks]
    for length, most in ((50, None), (200, 1.2)):
        ratio = peaks[f"P={length}"] / peaks["P=0"]
        lines.append(Line(what=f"peak of a step, P={length} / P=0", value=ratio, most=most))
    lines.append(Line(what="peak of a step, literal / ours, P=200", value=peaks["literal P=200"] / peaks["P=200"]))
    return Result(lines=tuple(lines), seconds={})


def peak(on: steps.Bench, model: torch.nn.Module) -> int:
    """Peak bytes of a training step after a first one."""
    step = steps.training(on, model)
    step()
    return measure.peak_bytes(step, on.device)


def help_lines(times: int = 7) -> Result:
    """`promptvit --help` in fresh processes, after a first one, and whether it imports torch."""
    seconds = [help_seconds() for _ in range(times + 1)][1:]
    took = measure.spread(seconds)
    lines = (
        Line(what="promptvit --help", value=took.median, low=took.low, high=took.high, unit=" s", most=0.4),
        Line(what="promptvit --help imports torch (0: no)", value=help_imports_torch(), unit="", most=0),
    )
    return Result(lines=lines, seconds={"promptvit --help": seconds})


def help_seconds() -> float:
    """Wall time of one call; infinite if it fails."""
    start = time.perf_counter()
    done = subprocess.run([Path(sys.executable).with_name("promptvit"), "--help"], capture_output=True, check=False)
    return time.perf_counter() - start if done.returncode == 0 else float("inf")


def help_imports_torch() -> float:
    """0 or 1; infinite if the call fails."""
    code = """import sys
from promptvit.cli.main import main
sys.argv = ["promptvit", "--help"]
try:
    sys.exit(main())
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    answer = done.stderr.split()[-1:] if done.returncode == 0 else []
    return 0 if answer == ["False"] else 1 if answer == ["True"] else float("inf")


def describe(
    options: argparse.Namespace, device: torch.device, results: list[Result], took: float
) -> dict[str, object]:
    """Everything measured and what it was measured on, as the JSON file has it."""
    return {
        "command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]),
        "commit": commit(),
        "uncommitted_changes": changed(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round(took / 60, 1),
        "machine": machine(device, torch.get_num_threads()),
        "seed": options.seed,
        "backbone": f"{steps.BACKBONE}, random weights, {steps.CLASSES} classes",
        "batch": options.batch,
        "rounds": options.rounds,
        "clock": options.clock,
        "lines": [asdict(line) | {"missed_by": line.missed_by} for result in results for line in result.lines],
        "seconds": {name: values for result in results for name, values in result.seconds.items()},
        "notes": NOTES,
    }


def table(record: dict[str, object], lines: list[Line]) -> str:
    """The lines with the machine above and the notes below."""
    shown = [f"{name}: {record[name]}" for name in ("command", "commit", "uncommitted_changes", "date", "minutes")]
    shown += [f"{name}: {record[name]}" for name in ("machine", "seed", "backbone", "batch", "rounds", "clock")]
    shown += ["", f"{'what':54}{'measured':>12}{'budget':>12}{'spread':>16}{'fastest':>9}"]
    shown += [row(line) for line in lines]
    return "\n".join([*shown, "", *NOTES])


def row(line: Line) -> str:
    """One line of the table."""
    digits = ".1e" if line.unit == "" and line.value else ".1f" if "MiB" in line.unit else ".2f"
    budget = "" if line.least is None else f">= {line.least:g}"
    budget = budget if line.most is None else f"<= {line.most:g}"
    spread = "" if line.low is None else f"{line.low:.2f} to {line.high:.2f}"
    fastest = "" if line.fastest is None else f"{line.fastest:.2f}"
    verdict = f"  MISSED by {line.missed_by:.2g}" if line.missed_by else ""
    return f"{line.what:54}{line.value:>12{digits}}{budget:>12}{spread:>16}{fastest:>9}{verdict}"


def profiled(on: steps.Bench) -> str:
    """Where the time of our P=50 training step goes."""
    step = steps.training(on, steps.ours(on, 50))
    step()
    with profile(activities=list(activities(on.device))) as profiler:
        step()
    return profiler.key_averages().table(
        sort_by=f"self_{on.device.type}_time_total", row_limit=20, max_name_column_width=48
    )


def activities(device: torch.device) -> Iterator[ProfilerActivity]:
    """What to record."""
    yield ProfilerActivity.CPU
    if device.type == "cuda":
        yield ProfilerActivity.CUDA


if __name__ == "__main__":
    sys.exit(main())
