"""SPT against VPT, linear and full fine-tuning, with labels and without in pre-training: `python -m benchmarks.spt`.

Two bundled backbones, five small tasks, one recipe. `vit_pico` is read at its CLS token; `vit_pico_mae` as the paper
reads MAE: the mean of all rows, prompts included, through the pretrained norm. Runs that are done are not repeated, a
killed one goes on. Waves: every method at its own learning rate, then at others, of which the last epoch's
validation accuracy chooses (test figures of other rates are not used); then fixed prompts; then other seeds. An early
stop leaves whole waves, and the table says what was run. Writes `docs/results/spt.md`, `.json` and pictures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit, machine
from benchmarks.mini_vtab import ROOT, TASKS, means, one_thread, spread
from promptvit.analysis.figures import draw_curves
from promptvit.analysis.nmi import read_curve

FACTORS = (1.0, 3.0, 10.0, 1 / 3)
"""Learning rates in units of the method's own, in the order in which they are tried."""
RESULTS = ROOT / "docs" / "results"
LENGTH = 20
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear"},
    "full": {"name": "full"},
    "vpt-deep": {"name": "vpt-deep", "length": LENGTH},
    "spt random": {"name": "spt-deep", "length": LENGTH, "source": "random"},
    "spt mean": {"name": "spt-deep", "length": LENGTH, "source": "mean"},
    "spt max": {"name": "spt-deep", "length": LENGTH, "source": "max"},
    "spt kmeans": {"name": "spt-deep", "length": LENGTH, "source": "kmeans"},
}
FIXED: dict[str, dict[str, Any]] = {
    "vpt fixed": {"name": "vpt-fixed", "length": LENGTH},
    **{
        f"spt {source} fixed": {"name": "spt-deep", "length": LENGTH, "source": source, "fixed": True}
        for source in ("random", "kmeans")
    },
}
"""Prompts stay as they start (Table 1a)."""
ROWS = METHODS | FIXED
BACKBONES = {"vit_pico": {"name": "vit_pico"}, "vit_pico_mae": {"name": "vit_pico_mae", "pool": "avg-pretrained"}}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: what is trained on what."""

    backbone: str
    task: str
    method: str
    factor: float = 1.0
    seed: int = 0

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return "-".join([self.backbone, self.task, self.method, f"{self.factor:.2f}", str(self.seed)]).replace(" ", "_")


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description="SPT against VPT, linear and full fine-tuning on small tasks.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "spt")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--factors", nargs="+", type=float, default=FACTORS, help="learning rates over the method's own"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--table", action="store_true", help="only write the tables of what is done")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(options.workers, initializer=one_thread) as pool:
            for wave in waves(options):
                for cell, summary in pool.imap_unordered(run, [(cell, options) for cell in wave]):
                    print(cell.folder, f"val {100 * summary['result']['val']['top1']:.1f}", flush=True)
    write_results(options)


def waves(options: argparse.Namespace) -> Iterator[list[Cell]]:
    """What to run, in the order of what is learnt from it; a wave may depend on those before."""
    for factor in options.factors:
        yield [replace(cell, factor=factor) for cell in cells(options, METHODS)]
    yield cells(options, FIXED)
    for seed in range(1, options.seeds):
        yield [replace(cell, factor=chosen(options, cell), seed=seed) for cell in cells(options, METHODS)]


def cells(options: argparse.Namespace, names: dict[str, Any]) -> list[Cell]:
    """All that was asked for, at the method's own rate and with seed 0."""
    methods = [method for method in names if method in options.methods]
    return [
        Cell(backbone=backbone, task=task, method=method)
        for backbone in options.backbones
        for method in methods
        for task in options.tasks
    ]


def tried(options: argparse.Namespace, cell: Cell) -> dict[float, float]:
    """Validation accuracy by factor, of the rates that were run."""
    runs = {factor: read(options, replace(cell, factor=factor)) for factor in FACTORS}
    return {factor: summary["result"]["val"]["top1"] for factor, summary in runs.items() if summary}


def chosen(options: argparse.Namespace, cell: Cell) -> float:
    """The factor with the best validation accuracy; the smaller one in a tie."""
    done = tried(options, cell)
    return min(done, key=lambda factor: (-done[factor], factor))


def read(options: argparse.Namespace, cell: Cell) -> dict[str, Any] | None:
    """The summary of a run, if it is done."""
    path = options.out / cell.folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def fields_of(cell: Cell) -> dict[str, Any]:
    """The method's name and fields; prompts are read with the patches where the paper does so, and drawn by seed."""
    fields = dict(ROWS[cell.method])
    if cell.backbone == "vit_pico_mae" and "length" in fields:
        fields["pooling"] = "all"
    if fields["name"].startswith("spt"):
        fields["seed"] = cell.seed
    return fields


def run(job: tuple[Cell, argparse.Namespace]) -> tuple[Cell, dict[str, Any]]:
    """Train one cell, or read it."""
    from promptvit.analysis.nmi import record
    from promptvit.backbones.source import BackboneSource
    from promptvit.data.config import DataConfig
    from promptvit.methods import METHODS as REGISTERED
    from promptvit.train.config import RunConfig, TrainConfig
    from promptvit.train.loop import Listener, fit

    cell, options = job
    if done := read(options, cell):
        return cell, done
    fields = fields_of(cell)
    rate = REGISTERED[fields["name"]].method.learning_rate * cell.factor
    config = RunConfig(
        data=DataConfig(source=str(options.data / "mini-vtab" / cell.task)),
        backbone=BackboneSource.from_dict(BACKBONES[cell.backbone]),
        method=fields,
        train=TrainConfig(seed=cell.seed, device="cpu", epochs=options.epochs, learning_rate=rate),
    )
    origin = options.out / f"{cell.folder}.json"
    if not origin.exists():
        origin.write_text(json.dumps({"commit": commit(), "machine": machine(torch.device("cpu"), threads=1)}))
    typed = {f"backbone.{name}": value for name, value in BACKBONES[cell.backbone].items()}
    typed |= {f"method.{name}": value for name, value in fields.items()}
    typed |= {"train.seed": cell.seed, "train.epochs": options.epochs, "train.learning_rate": f"{rate:.6g}"}
    command = " ".join([f"promptvit train --data mini-vtab/{cell.task}", *(f"--{k} {v}" for k, v in typed.items())])
    follows = "length" in fields and cell.seed == 0
    listener = Listener(watch=partial(record, variant="attention")) if follows else Listener()
    return cell, fit(config, options.out / cell.folder, resume=True, listener=listener, command=command)


def write_results(options: argparse.Namespace) -> None:
    """The page, the record and the pictures, from the runs that are done."""
    rows = [
        row(options, cell, len(tried(options, own)))
        for own in cells(options, ROWS)
        if tried(options, own)
        for seed in range(options.seeds)
        if read(options, cell := replace(own, factor=chosen(options, own), seed=seed))
    ]
    for backbone in options.backbones:
        if drawn := curves(options, backbone):
            draw_curves(RESULTS / f"spt-{backbone}.svg", drawn, "NMI of prompts and patches, mean of tasks")
    (RESULTS / "spt.json").write_text(json.dumps({"epochs": options.epochs, "runs": rows}, indent=1) + "\n")
    (RESULTS / "spt.md").write_text(markdown(rows, options))


def row(options: argparse.Namespace, cell: Cell, rates: int) -> dict[str, Any]:
    """One run in the record."""
    summary, folder = read(options, cell), options.out / cell.folder
    assert summary is not None
    validation = [json.loads(line)["val_top1"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    nmi = read_curve(folder)
    return {
        "backbone": cell.backbone,
        "task": cell.task,
        "method": cell.method,
        "seed": cell.seed,
        "learning_rate": summary["protocol"]["learning_rate"],
        "rates_tried": rates,
        "val_top1": summary["result"]["val"]["top1"],
        "test_top1": summary["result"]["test"]["top1"],
        "epochs_to_95_percent": 1 + next(i for i, top1 in enumerate(validation) if top1 >= 0.95 * validation[-1]),
        "nmi": [nmi[0]["mean"], nmi[-1]["mean"]] if nmi else None,
        **{name: summary["cost"][name] for name in ("trained_parameters", "seconds")},
        "command": summary["command"],
        **json.loads((options.out / f"{cell.folder}.json").read_text()),
    }


def curves(options: argparse.Namespace, backbone: str) -> dict[str, list[tuple[int, float]]]:
    """NMI by epoch and method with seed 0, the mean over those tasks that have it."""
    found = {}
    for method in METHODS:
        own = [Cell(backbone=backbone, task=task, method=method) for task in options.tasks]
        done = [replace(cell, factor=chosen(options, cell)) for cell in own if tried(options, cell)]
        each = [rows for cell in done if (rows := read_curve(options.out / cell.folder))]
        if each:
            found[method] = [
                (rows[0]["epoch"], statistics.mean(row["mean"] for row in rows)) for rows in zip(*each, strict=True)
            ]
    return found


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The tables as a page; the reading of them is kept from the page that is there."""
    page = RESULTS / "spt.md"
    _, mark, reading = page.read_text().partition("## Reading\n") if page.exists() else ("", "", "")
    kinds = (
        {name: value for name, value in rows[0]["machine"].items() if name not in ("load_average", "threads")}
        if rows
        else {}
    )
    return "\n".join(
        [
            "# Prompts that start from the task's own tokens",
            "",
            "Test accuracy in %, mean ± standard deviation over seeds (number of seeds). 800 training images per task,",
            f"{options.epochs} epochs of the [default recipe](../guides/recipe.md) for all methods, last epoch,",
            f"{LENGTH} prompts at each block: `vpt-deep` starts them uniformly, `spt` from patch tokens of training",
            "images (`mean` and `max` averaged over images). Rates: how many learning rates were tried per task; with",
            "more than one, validation accuracy chose. 95 %: the first epoch with 95 % of the last one's validation",
            "accuracy, mean over tasks. NMI: of prompts and patches (variant `attention`) before the first and after",
            "the last epoch, mean over blocks and tasks. `fixed`: prompts stay as they start,",
            "only the head learns.",
            "",
            *(line for backbone in options.backbones for line in table(rows, options, backbone)),
            f"{len(rows)} runs stand here. One thread each, beside other work on a shared machine.",
            "",
            "- Command: `python -m benchmarks.spt`; every cell's own command is in [spt.json](spt.json)",
            f"- Commits: {', '.join(sorted({row['commit'][:7] for row in rows}))}",
            f"- Machine: {', '.join(f'{name} {value}' for name, value in kinds.items())}, one thread",
            "",
            f"{mark}{reading}" if mark else "## Reading\n",
        ]
    )


def table(rows: list[dict[str, Any]], options: argparse.Namespace, backbone: str) -> list[str]:
    """The lines of one backbone."""
    lines = [
        f"## {backbone}",
        "",
        f"| method | {' | '.join(options.tasks)} | mean of tasks | rates | 95 % | NMI | trained parameters |",
        f"|---|{'---|' * (len(options.tasks) + 5)}",
    ]
    for method in options.methods:
        own = [row for row in rows if (row["backbone"], row["method"]) == (backbone, method)]
        if own:
            by_task = {task: [100 * r["test_top1"] for r in own if r["task"] == task] for task in options.tasks}
            rates = sorted({r["rates_tried"] for r in own})
            epochs = statistics.mean(r["epochs_to_95_percent"] for r in own)
            nmi = [r["nmi"] for r in own if r["nmi"]]
            change = " → ".join(f"{statistics.mean(ends):.3f}" for ends in zip(*nmi, strict=True)) or "none"
            counts = sorted({r["trained_parameters"] for r in own})
            cells = " | ".join(map(spread, by_task.values()))
            lines.append(
                f"| {method} | {cells} | {means(by_task)} | {' or '.join(map(str, rates))} | {epochs:.1f} | {change} | "
                f"{counts[0]:,} to {counts[-1]:,} |"
            )
    done = {row["method"] for row in rows if row["backbone"] == backbone}
    missing = [method for method in options.methods if method not in done]
    picture = f"![NMI against epoch](spt-{backbone}.svg)" if curves(options, backbone) else ""
    return [
        *lines,
        "",
        *([f"Not run: {', '.join(missing)}.", ""] if missing else []),
        *([picture, ""] if picture else []),
    ]


if __name__ == "__main__":
    main()
