"""VPT-deep with key-value prompts, with pruning, and with both: `python -m benchmarks.e2vpt`.

Five small tasks on `vit_pico`, one recipe, last epoch. Pruned rows go on from the run above them: at most three
trainings, chosen on validation, test images looked at for the chosen one alone. What is done is not repeated, and what
was killed goes on. Writes `docs/results/e2vpt.md` and `.json`; an early stop leaves seeds, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit, machine
from benchmarks.mini_vtab import ROOT, TASKS, means, one_thread, spread

RESULTS = ROOT / "docs" / "results"
LENGTH, KEY_VALUE = 10, 5
VISUAL = {"name": "vpt", "length": LENGTH}
METHODS: dict[str, dict[str, Any]] = {
    "VPT-deep": {"name": "vpt-deep", "length": LENGTH},
    "key-value": {"name": "e2vpt", "prompts": VISUAL, "kv": {"length": KEY_VALUE}},
}
ROWS = {
    "VPT-deep": ("VPT-deep", False),
    "VPT-deep + key-value": ("key-value", False),
    "VPT-deep + pruning": ("VPT-deep", True),
    "VPT-deep + key-value + pruning": ("key-value", True),
}
"""What is trained, and whether it is pruned."""
BUDGET = 3


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run, or one search that goes on from it."""

    task: str
    method: str
    pruned: bool
    seed: int

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return "-".join([self.task, self.method, str(self.seed), *(["pruned"] if self.pruned else [])])


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description="Key-value prompts and pruning on small tasks.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "e2vpt")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--table", action="store_true", help="only write the table of what is done")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(options.workers, initializer=one_thread) as pool:
            for seed in range(options.seeds):
                for pruned in (False, True):  # a search needs the run
                    jobs = [
                        (Cell(task=task, method=method, pruned=pruned, seed=seed), options)
                        for task in options.tasks
                        for method in METHODS
                    ]
                    for cell, summary in pool.imap_unordered(run, jobs):
                        print(cell.folder, f"val {100 * summary['result']['val']['top1']:.1f}", flush=True)
    write_results(options)


def run(job: tuple[Cell, argparse.Namespace]) -> tuple[Cell, dict[str, Any]]:
    """Train or prune one cell, or read it."""
    from promptvit.backbones.source import BackboneSource
    from promptvit.data.config import DataConfig
    from promptvit.pruning.config import PruneConfig
    from promptvit.pruning.search import prune_run
    from promptvit.train.config import RunConfig, TrainConfig
    from promptvit.train.loop import fit

    cell, options = job
    folder = options.out / cell.folder
    origin = options.out / f"{cell.folder}.json"
    if not origin.exists():
        origin.write_text(json.dumps({"commit": commit(), "machine": machine(torch.device("cpu"), threads=1)}))
    if cell.pruned:
        source = options.out / replace(cell, pruned=False).folder
        command = f"promptvit prune {source.name} --budget {BUDGET}"
        config = PruneConfig(budget=BUDGET)
        return cell, prune_run(source, folder, config, resume=folder.exists(), command=command)
    config = RunConfig(
        data=DataConfig(source=str(options.data / "mini-vtab" / cell.task)),
        backbone=BackboneSource(name="vit_pico"),
        method=METHODS[cell.method],
        train=TrainConfig(seed=cell.seed, device="cpu", epochs=options.epochs),
    )
    typed = {"data": f"mini-vtab/{cell.task}", "backbone": "vit_pico", "method": config.method["name"]}
    typed |= {f"method.{name}": value for name, value in flat(METHODS[cell.method]).items() if name != "name"}
    typed |= {"train.seed": cell.seed, "train.epochs": options.epochs}
    command = " ".join(["promptvit train", *(f"--{name} {value}" for name, value in typed.items())])
    return cell, fit(config, folder, resume=True, command=command)


def flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Nested fields by dotted names."""
    plain = {}
    for name, value in fields.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        plain |= {f"{name}.{key}".rstrip("."): each for key, each in inner.items()}
    return plain


def read(options: argparse.Namespace, cell: Cell) -> dict[str, Any] | None:
    """The summary of a cell, if it is done."""
    path = options.out / cell.folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_results(options: argparse.Namespace) -> None:
    """The page and the record, from what is done."""
    cells = [
        (name, Cell(task=task, method=method, pruned=pruned, seed=seed))
        for name, (method, pruned) in ROWS.items()
        for task in options.tasks
        for seed in range(options.seeds)
    ]
    rows = [row(options, name, cell, summary) for name, cell in cells if (summary := read(options, cell))]
    (RESULTS / "e2vpt.json").write_text(json.dumps({"epochs": options.epochs, "runs": rows}, indent=1) + "\n")
    (RESULTS / "e2vpt.md").write_text(markdown(rows, options))


def row(options: argparse.Namespace, name: str, cell: Cell, summary: dict[str, Any]) -> dict[str, Any]:
    """One cell in the record."""
    pruning = summary.get("pruning")
    if pruning is None:
        sizes = {"trained_parameters": summary["cost"]["trained_parameters"], "trainings": 0, "kept": 1.0}
    else:
        chosen, whole = pruning["chosen"], pruning["unpruned"]
        sizes = {
            "trained_parameters": chosen["trained_parameters"],
            "trainings": pruning["trainings"],
            "kept": chosen["prompt_parameters"] / whole["prompt_parameters"],
            "chosen": chosen,
            "tried": pruning["trained"],
        }
    return {
        "row": name,
        "task": cell.task,
        "seed": cell.seed,
        **{f"{split}_top1": summary["result"][split]["top1"] for split in ("val", "test")},
        **sizes,
        "command": summary["command"],
        **json.loads((options.out / f"{cell.folder}.json").read_text()),
    }


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table as a page; the reading of it is kept from the page that is there."""
    page = RESULTS / "e2vpt.md"
    _, mark, reading = page.read_text().partition("## Reading\n") if page.exists() else ("", "", "")
    kinds = rows[0]["machine"] if rows else {}
    known = ", ".join(f"{name} {value}" for name, value in kinds.items() if name not in ("load_average", "threads"))
    return "\n".join(
        [
            "# Key-value prompts and pruning",
            "",
            "Test accuracy in %, mean ± standard deviation over seeds (number of seeds). `vit_pico`, 800 training",
            f"images per task, {options.epochs} epochs of the [default recipe](../guides/recipe.md), last epoch;",
            f"{LENGTH} prompts at each block and {KEY_VALUE} key-value prompts. Pruned rows go on from the run without",
            f"pruning, with the same seed: `promptvit prune RUN --budget {BUDGET}`. Kept: share of the values of",
            "visual prompts, mean over tasks and seeds. Trainings: those after the first, per task and seed.",
            "",
            f"| | {' | '.join(options.tasks)} | mean of tasks | kept | trained parameters | trainings |",
            f"|---|{'---|' * (len(options.tasks) + 4)}",
            *(line for name in ROWS if (line := table_row(rows, name, options))),
            "",
            *lost(rows),
            f"{len(rows)} of {len(ROWS) * len(options.tasks) * options.seeds} cells stand here: one thread each,",
            "beside other work on a shared machine.",
            "",
            "- Command: `python -m benchmarks.e2vpt`; every cell's own command is in [e2vpt.json](e2vpt.json)",
            f"- Commits: {', '.join(sorted({row['commit'][:7] for row in rows}))}",
            f"- Machine: {known}, one thread",
            "",
            f"{mark}{reading}" if mark else "## Reading\n",
        ]
    )


def table_row(rows: list[dict[str, Any]], name: str, options: argparse.Namespace) -> str:
    """A line of the table; empty if nothing of it was run."""
    own = [row for row in rows if row["row"] == name]
    if not own:
        return ""
    by_task = {task: [100 * row["test_top1"] for row in own if row["task"] == task] for task in options.tasks}
    counts = sorted(row["trained_parameters"] for row in own)
    size = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
    trainings, kept = (statistics.mean(row[key] for row in own) for key in ("trainings", "kept"))
    cells = [*map(spread, by_task.values()), means(by_task), f"{100 * kept:.0f} %", size, f"{trainings:.0f}"]
    return f"| {' | '.join([name, *cells])} |"


def lost(rows: list[dict[str, Any]]) -> list[str]:
    """What pruning cost, over the pairs that are there."""
    lines = []
    for whole, pruned in (list(ROWS)[::2], list(ROWS)[1::2]):
        before = {(row["task"], row["seed"]): row["test_top1"] for row in rows if row["row"] == whole}
        after = {(row["task"], row["seed"]): row["test_top1"] for row in rows if row["row"] == pruned}
        changes = [100 * (after[key] - before[key]) for key in after if key in before]
        if changes:
            lines += [
                f"Pruning {whole}: {statistics.mean(changes):+.2f} points on average over {len(changes)} pairs "
                f"({min(changes):+.1f} to {max(changes):+.1f}).",
                "",
            ]
    return lines


if __name__ == "__main__":
    main()
