"""Predicted against measured cost of vpt-deep, full and linear on three backbones: `python -m benchmarks.cost`.

In every round a probe and a real `promptvit train` run one after the other, each in a process of its own with one
thread. Medians over rounds; an epoch of a run is the median of its epochs. Writes `docs/results/cost.md` and `.json`;
exits 1 if peak memory is off by more than 15 % or the time of an epoch by more than 25 %.

On a machine with other work, wall time says little of either: `--clock cpu` gives probe and run a clock that counts
their own processor time, which is the time of one thread on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.machine import ROOT
from benchmarks.sweep import without_test
from promptvit.analysis.cost import Cost, estimate_cost
from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.search.origin import origin
from promptvit.train.config import RunConfig, TrainConfig

RESULTS = ROOT / "docs" / "results"
METHODS = ("linear", "vpt-deep", "full")
BACKBONES = {
    "vit_pico, 32 px": BackboneSource(),
    "deit_tiny_patch16_224, 64 px": BackboneSource(name="deit_tiny_patch16_224", image_size=64, pretrained=False),
    "deit_small_patch16_224, 64 px": BackboneSource(name="deit_small_patch16_224", image_size=64, pretrained=False),
}
BUDGETS = {"peak_memory_bytes": 0.15, "epoch_seconds": 0.25}
EXACT = ("trained_parameters", "delta_bytes")
CLOCKS = {"wall": "", "cpu": "import time\ntime.perf_counter = time.process_time\n"}
"""What a process does at its start."""
UNITS = {"peak_memory_bytes": (2**20, 0), "epoch_seconds": (1, 3), "run_seconds": (1, 1)}
Figures = dict[str, float]


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--task", default="cifar10")
    parser.add_argument("--images", type=int, default=500, help="training and validation images together")
    parser.add_argument("--epochs", type=int, default=3, help="of a real run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(CLOCKS[options.clock])
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": folder}  # of the processes that are started
        task = without_test(options.data.resolve() / "mini-vtab" / options.task, Path(folder))
        rows = []
        for label, source in BACKBONES.items():
            for method in METHODS:
                rounds = options.rounds * (3 if method == "linear" else 1)  # its epochs are milliseconds
                config = RunConfig(
                    data=DataConfig(source=str(task), images=options.images),
                    backbone=source,
                    method={"name": method},
                    train=TrainConfig(epochs=options.epochs, device="cpu"),
                )
                rows.append({"backbone": label, "method": method, **compared(config, rounds)})
                print(line(rows[-1], shown(options.clock)), flush=True)
    about = {name: getattr(options, name) for name in ("task", "images", "epochs", "rounds", "clock")}
    command = " ".join(["python -m benchmarks.cost", *(f"--{name} {value}" for name, value in about.items())])
    record = {"rows": rows, **about, "seed": 0, "command": command, "load_average": os.getloadavg()[0], **origin()}
    record["machine"] = {**record["machine"], "threads": 1}  # of the processes that were measured
    (RESULTS / "cost.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "cost.md").write_text(page(record))
    return int(any(row["missed"] for row in rows))


def compared(config: RunConfig, rounds: int) -> dict[str, Any]:
    """Medians of what was predicted and of what was measured, the errors, and which budgets they miss."""
    predicted, measured = [], []
    for _ in range(rounds):
        predicted.append(figures(estimate_cost(config)))
        measured.append(real(config))
    guess, truth = middle(predicted), middle(measured)
    assert all(guess[name] == truth[name] for name in EXACT), (guess, truth)
    errors = {name: guess[name] / truth[name] - 1 for name in guess}
    missed = [name for name, budget in BUDGETS.items() if abs(errors[name]) > budget]
    rows = {"predicted": guess, "measured": truth, "errors": errors, "missed": missed}
    return {**rows, "rounds": {"predicted": predicted, "measured": measured}}


def figures(cost: Cost) -> Figures:
    """Those that a run measures too."""
    values = dataclasses.asdict(cost)
    return {name: values[name] for name in (*EXACT, *BUDGETS, "run_seconds")}


def real(config: RunConfig) -> Figures:
    """A run of `promptvit train`."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "config.yaml"), Path(folder, "run")
        path.write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))
        command = [sys.executable, "-P", "-m", "promptvit.cli", "train", "--config", str(path), "--out", str(out)]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        cost = json.loads((out / "summary.json").read_text())["cost"]
        epochs = [json.loads(row)["seconds"] for row in (out / "metrics.jsonl").read_text().splitlines()]
    names = (*EXACT, "peak_memory_bytes")
    return {**{name: cost[name] for name in names}, "epoch_seconds": median(epochs), "run_seconds": seconds}


def middle(rounds: list[Figures]) -> Figures:
    """Medians over rounds."""
    return {name: median(each[name] for each in rounds) for name in rounds[0]}


def shown(clock: str) -> tuple[str, ...]:
    """What the table compares; a run's own time is that of a clock on the wall."""
    return (*BUDGETS, "run_seconds") if clock == "wall" else tuple(BUDGETS)


def line(row: dict[str, Any], names: tuple[str, ...]) -> str:
    """A row of the table."""
    guess, truth, errors = row["predicted"], row["measured"], row["errors"]
    cells = [row["backbone"], row["method"], f"{truth['trained_parameters']:,}", f"{truth['delta_bytes']:,}"]
    for name in names:
        unit, digits = UNITS[name]
        cells += [f"{each[name] / unit:,.{digits}f}" for each in (guess, truth)]
        cells.append(f"{100 * errors[name]:+.1f} %" + (" **missed**" if name in row["missed"] else ""))
    return f"| {' | '.join(cells)} |"


def page(record: dict[str, Any]) -> str:
    """The figures as a page."""
    machine = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    names = shown(record["clock"])
    worst = {name: f"{100 * max(abs(row['errors'][name]) for row in record['rows']):.1f} %" for name in names}
    heads = {"peak_memory_bytes": "memory, MiB", "epoch_seconds": "epoch, s", "run_seconds": "run, s"}
    columns = ["backbone", "method", "trained", "delta, bytes"]
    for name in names:
        columns += [f"{heads[name]}: predicted", "measured", "error"]
    clock = {
        "wall": "Times are wall time, with whatever else the machine did.",
        "cpu": "Times are processor time of probe and run, since the machine had other work: with one thread, that "
        "is about the time on a machine with nothing else to do.",
    }
    return "\n".join(
        [
            "# Predicted and measured cost",
            "",
            f"`promptvit cost` against `promptvit train`: {record['task']}, {record['images']} training and validation "
            f"images, batches of 32, {record['epochs']} epochs, one thread. Medians of {record['rounds']} rounds, of "
            "`linear` three times as many, in which probe and run take turns. "
            f"{clock[record['clock']]} Trained parameters and delta bytes are predicted exactly. Largest errors: peak "
            f"memory {worst['peak_memory_bytes']} (budget 15 %), epoch {worst['epoch_seconds']} (budget 25 %).",
            "",
            f"| {' | '.join(columns)} |",
            f"|{'---|' * len(columns)}",
            *(line(row, names) for row in record["rows"]),
            "",
            "An epoch of `linear` is one of its head on features, which are computed once, before the first. Most of "
            "the memory is torch and what else a run imports: every process of a run has that. All rounds are in the "
            "file of figures.",
            "",
            f"- Command: `{record['command']}`",
            f"- Commit: {record['commit']}, seed {record['seed']}",
            f"- Machine: {machine}, load average {record['load_average']:.1f}",
            "- All figures: [cost.json](cost.json)",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
