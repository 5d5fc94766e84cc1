"""Every method on small tasks, one recipe, the learning rate chosen on validation: `python -m benchmarks.methods`.

For each task and method, one run per rate (a third of the method's own, its own, three times that) with seed 0; the
rate with the best last-epoch validation accuracy, the smaller one in a tie, is run again with the other seeds. The test
images of other rates are not looked at. Runs that are done are not repeated and a killed one goes on. An early stop
leaves whole columns: first comes every method at its own rate, then the methods of the paper's main tables at the other
rates and with the other seeds, then the same for the variants. The table says what was run. Writes
`docs/results/methods.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit, machine
from benchmarks.mini_vtab import ROOT, costs, means, one_thread, spread

FACTORS = (1 / 3, 1.0, 3.0)
FIELDS: dict[str, dict[str, Any]] = {
    "side": {"weights": "random"},
    "pixel-pad": {"length": 2},
    "first 3 blocks": {"name": "vpt-deep", "blocks": 3},
    "last 3 blocks": {"name": "vpt-deep", "blocks": 3, "end": "last"},
}
"""What differs from a method's defaults: no download, and sizes that fit 32x32 images and six blocks."""
TABLES = {
    "tables 1 and 4": (
        *("linear", "mlp-3", "partial-1", "side", "bias", "adapter", "vpt-shallow", "vpt-deep", "full"),
        *("lora", "mixed"),
    ),
    "variants": (
        *("vpt-bias", "vpt-shared", "vpt-fixed", "vpt-cls", "cls", "first 3 blocks", "last 3 blocks"),
        *("vpt-add", "vpt-add-1", "pixel-prepend", "pixel-pad", "pixel-below"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: what is trained on what."""

    task: str
    method: str
    factor: float
    seed: int

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.task}-{self.method}-{self.factor:.2f}-{self.seed}".replace(" ", "_")


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description="Every method on small tasks, the learning rate chosen on validation.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--tasks", nargs="+", default=["cifar10", "sprites"])
    parser.add_argument("--methods", nargs="+", default=[name for names in TABLES.values() for name in names])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--table", action="store_true", help="only write the table of what is done")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(options.workers, initializer=one_thread) as pool:
            for wave in waves(options):
                jobs = [(cell, options) for cell in wave]
                for cell, summary in pool.imap_unordered(run, jobs):
                    print(cell.folder, f"val {100 * summary['result']['val']['top1']:.1f}", flush=True)
    write_table(options)


def waves(options: argparse.Namespace) -> Iterator[list[Cell]]:
    """What to run, in the order of what is learnt from it; a wave may depend on those before."""
    yield [Cell(task=t, method=m, factor=1.0, seed=0) for t, m in pairs(options, *TABLES)]
    for table in TABLES:
        own = pairs(options, table)
        yield [Cell(task=t, method=m, factor=factor, seed=0) for t, m in own for factor in FACTORS if factor != 1]
        for seed in range(1, options.seeds):
            yield [Cell(task=t, method=m, factor=chosen(options, t, m), seed=seed) for t, m in own]


def pairs(options: argparse.Namespace, *tables: str) -> list[tuple[str, str]]:
    """Tasks and methods of `tables` that were asked for."""
    methods = [method for table in tables for method in TABLES[table] if method in options.methods]
    return [(task, method) for method in methods for task in options.tasks]


def tried(options: argparse.Namespace, task: str, method: str) -> dict[float, float]:
    """Validation accuracy by factor, of the rates that were run."""
    runs = {factor: read(options, Cell(task=task, method=method, factor=factor, seed=0)) for factor in FACTORS}
    return {factor: summary["result"]["val"]["top1"] for factor, summary in runs.items() if summary}


def chosen(options: argparse.Namespace, task: str, method: str) -> float:
    """The factor with the best validation accuracy; the smaller one in a tie."""
    done = tried(options, task, method)
    return min(done, key=lambda factor: (-done[factor], factor))


def read(options: argparse.Namespace, cell: Cell) -> dict[str, Any] | None:
    """The summary of a run, if it is done."""
    path = options.out / cell.folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def run(job: tuple[Cell, argparse.Namespace]) -> tuple[Cell, dict[str, Any]]:
    """Train one cell, or read it."""
    from promptvit.data.config import DataConfig
    from promptvit.methods import METHODS
    from promptvit.train.config import RunConfig, TrainConfig
    from promptvit.train.loop import fit

    cell, options = job
    if done := read(options, cell):
        return cell, done
    fields = {"name": cell.method, **FIELDS.get(cell.method, {})}
    rate = METHODS[fields["name"]].method.learning_rate * cell.factor
    config = RunConfig(
        data=DataConfig(source=str(options.data / "mini-vtab" / cell.task)),
        method=fields,
        train=TrainConfig(seed=cell.seed, device="cpu", epochs=options.epochs, learning_rate=rate),
    )
    folder = options.out / cell.folder
    origin = options.out / f"{cell.folder}.json"
    if not origin.exists():
        origin.write_text(json.dumps({"commit": commit(), "machine": machine(torch.device("cpu"), threads=1)}))
    typed = " ".join(f"--method.{name} {value}" for name, value in fields.items())
    command = (
        f"promptvit train --data mini-vtab/{cell.task} {typed} --train.seed {cell.seed} "
        f"--train.epochs {options.epochs} --train.learning_rate {rate:.6g}"
    )
    return cell, fit(config, folder, resume=True, command=command)


def write_table(options: argparse.Namespace) -> None:
    """`methods.md` and `.json` from the runs that are done."""
    rows = []
    for method in options.methods:
        for task in options.tasks:
            rates = len(tried(options, task, method))
            if not rates:
                continue
            factor = chosen(options, task, method)
            cells = [Cell(task=task, method=method, factor=factor, seed=seed) for seed in range(options.seeds)]
            rows += [row(options, cell) | {"rates_tried": rates} for cell in cells if read(options, cell)]
    results = ROOT / "docs" / "results"
    (results / "methods.json").write_text(json.dumps({"epochs": options.epochs, "runs": rows}, indent=1) + "\n")
    (results / "methods.md").write_text(markdown(rows, options))


def row(options: argparse.Namespace, cell: Cell) -> dict[str, Any]:
    """One run in the record."""
    summary = read(options, cell) or {}
    result, cost = summary["result"], summary["cost"]
    return {
        "task": cell.task,
        "method": cell.method,
        "seed": cell.seed,
        "learning_rate": summary["protocol"]["learning_rate"],
        "val_top1": result["val"]["top1"],
        "test_top1": result["test"]["top1"],
        **{name: cost[name] for name in ("trained_parameters", "delta_bytes", "seconds")},
        "command": summary["command"],
        **json.loads((options.out / f"{cell.folder}.json").read_text()),
    }


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table as a page; the reading of it is kept from the page that is there."""
    page = ROOT / "docs" / "results" / "methods.md"
    _, mark, reading = page.read_text().partition("## Reading\n") if page.exists() else ("", "", "")
    lines = [
        "# Every method, one recipe",
        "",
        "Test accuracy in %, mean ± standard deviation over seeds (number of seeds); bundled backbone `vit_pico`, 800",
        f"training images per task, {options.epochs} epochs of the [default recipe](../guides/recipe.md), last epoch. "
        "Learning rate: a third of the",
        "method's own, its own, or three times that, chosen per task on the 200 validation images with seed 0;",
        "`0.005 of 3` is the rate chosen and how many were tried.",
        "",
        f"| method | {' | '.join(options.tasks)} | mean of tasks | rates | trained parameters | delta, KiB | seconds |",
        f"|---|{'---|' * (len(options.tasks) + 5)}",
    ]
    for method in options.methods:
        own = [row for row in rows if row["method"] == method]
        if own:
            by_task = {task: [100 * r["test_top1"] for r in own if r["task"] == task] for task in options.tasks}
            rates = {r["task"]: f"{r['learning_rate']:.2g} of {r['rates_tried']}" for r in own}
            rates = ", ".join(rates.get(task, "not run") for task in options.tasks)
            cells = " | ".join(map(spread, by_task.values()))
            lines.append(f"| {method} | {cells} | {means(by_task)} | {rates} | {costs(own)} |")
    missing = [method for method in options.methods if not any(row["method"] == method for row in rows)]
    commits = sorted({row["commit"][:7] for row in rows})
    kind = rows[0]["machine"] if rows else {}
    return "\n".join(
        [
            *lines,
            "",
            f"Not run: {', '.join(missing) or 'nothing'}. {len(rows)} runs stand here, one rate per task and method.",
            *(f"`{name}` has `{', '.join(f'{k}={v}' for k, v in fields.items())}`." for name, fields in FIELDS.items()),
            "Seconds: mean per run, one thread each, beside other work on a shared machine: only orders of magnitude.",
            "",
            "- Command: `python -m benchmarks.methods`; every cell's own command is in [methods.json](methods.json)",
            f"- Commits: {', '.join(commits)}",
            f"- Machine: {', '.join(f'{name} {value}' for name, value in kind.items() if name != 'load_average')}",
            "",
            f"{mark}{reading}" if mark else "## Reading\n",
        ]
    )


if __name__ == "__main__":
    main()
