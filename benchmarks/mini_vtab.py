"""Five small tasks, three methods, the default recipe: `python -m benchmarks.mini_vtab`.

Every cell is what `promptvit train --data TASK --method METHOD --train.seed SEED` gives. Runs that are done are not
repeated, a killed one goes on; seeds come one after the other, so that an early stop leaves whole columns. Writes
`docs/results/mini-vtab.md` and `.json` from the runs that are done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit, machine

TASKS = ("cifar10", "grocery", "pneumonia", "bccd_cells", "sprites")
METHODS = ("linear", "vpt-deep", "full")
ROOT = Path(__file__).parents[1]
Cell = tuple[str, str, int]


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description="Five small tasks, three methods, the default recipe.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mini-vtab")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, with one thread each")
    options = parser.parse_args()
    cells = [(task, method, seed) for seed in range(options.seeds) for method in METHODS for task in TASKS]
    started = options.out / "started.json"
    if not started.exists():
        started.parent.mkdir(parents=True, exist_ok=True)
        started.write_text(json.dumps({"commit": commit(), "machine": machine(torch.device("cpu"), threads=1)}))
    jobs = [(cell, options.data / "mini-vtab" / cell[0], folder_of(options.out, cell)) for cell in cells]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, initializer=one_thread) as pool:
        for cell, top1 in pool.imap_unordered(run, jobs):
            print(*cell, f"{100 * top1:.1f} %", flush=True)
            write_table(options.out, cells, json.loads(started.read_text()))


def one_thread() -> None:
    """Runs side by side do not share a core."""
    torch.set_num_threads(1)


def folder_of(out: Path, cell: Cell) -> Path:
    """The run's folder."""
    return out / "-".join(map(str, cell))


def run(job: tuple[Cell, Path, Path]) -> tuple[Cell, float]:
    """Train one cell, or read it; returns its test accuracy."""
    from promptvit.data.config import DataConfig
    from promptvit.train.config import RunConfig, TrainConfig
    from promptvit.train.loop import fit

    cell, data, folder = job
    _, method, seed = cell
    config = RunConfig(
        data=DataConfig(source=str(data)), method={"name": method}, train=TrainConfig(seed=seed, device="cpu")
    )
    command = f"promptvit train --data mini-vtab/{cell[0]} --method {method} --train.seed {seed}"
    summary = fit(config, folder, resume=True, command=command)
    return cell, summary["result"]["test"]["top1"]


def write_table(out: Path, cells: list[Cell], started: dict[str, Any]) -> None:
    """`mini-vtab.md` and `.json` from the runs that are done."""
    done = {
        cell: json.loads((folder_of(out, cell) / "summary.json").read_text())
        for cell in cells
        if (folder_of(out, cell) / "summary.json").exists()
    }
    results = ROOT / "docs" / "results"
    rows = [
        {
            "task": task,
            "method": method,
            "seed": seed,
            "test_top1": summary["result"]["test"]["top1"],
            "test_balanced": summary["result"]["test"]["balanced"],
            "val_top1": summary["result"]["val"]["top1"],
            "trained_parameters": summary["cost"]["trained_parameters"],
            "delta_bytes": summary["cost"]["delta_bytes"],
            "seconds": summary["cost"]["seconds"],
            "command": summary["command"],
        }
        for (task, method, seed), summary in done.items()
    ]
    (results / "mini-vtab.json").write_text(json.dumps({**started, "runs": rows}, indent=1) + "\n")
    (results / "mini-vtab.md").write_text(markdown(rows, started, len(cells)))


def markdown(rows: list[dict[str, Any]], started: dict[str, Any], planned: int) -> str:
    """The table as a page."""
    lines = [
        "# Five small tasks, the default recipe",
        "",
        "Test accuracy in %, mean ± standard deviation over seeds (number of seeds); bundled backbone `vit_pico`, 800",
        "training images per task, last epoch, test images read once. Nothing was tuned per task.",
        "",
        f"| method | {' | '.join(TASKS)} | mean of tasks | trained parameters | delta, KiB | seconds |",
        f"|---|{'---|' * (len(TASKS) + 4)}",
    ]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        by_task = {task: [100 * row["test_top1"] for row in own if row["task"] == task] for task in TASKS}
        if own:
            lines.append(
                f"| {method} | {' | '.join(map(spread, by_task.values()))} | {means(by_task)} | {costs(own)} |"
            )
    kind = started["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"{len(rows)} of {planned} runs are done. Parameters and delta: smallest to largest task.",
            "Seconds: mean per run, one thread each, several runs at a time on a shared machine.",
            "",
            "- Command: `python -m benchmarks.mini_vtab`; each cell is `promptvit train --data mini-vtab/TASK",
            "  --method METHOD --train.seed SEED`",
            f"- Commit: {started['commit']}",
            f"- Machine: {', '.join(f'{name} {value}' for name, value in kind.items())}",
            "- Every run: [mini-vtab.json](mini-vtab.json)",
            "",
        ]
    )


def spread(values: list[float]) -> str:
    """Mean, deviation and number."""
    if not values:
        return "not run"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation} ({len(values)})"


def means(by_task: dict[str, list[float]]) -> str:
    """The unweighted mean over tasks, if all have a run."""
    return f"{statistics.mean(map(statistics.mean, by_task.values())):.1f}" if all(by_task.values()) else "not all run"


def costs(rows: list[dict[str, Any]]) -> str:
    """Parameters, delta and time."""
    parameters = [row["trained_parameters"] for row in rows]
    sizes = [row["delta_bytes"] / 1024 for row in rows]
    seconds = statistics.mean(row["seconds"] for row in rows)
    return f"{min(parameters):,} to {max(parameters):,} | {min(sizes):,.0f} to {max(sizes):,.0f} | {seconds:.0f}"


if __name__ == "__main__":
    main()
