"""`promptvit demo`: the bundled backbone on handwritten digits, four ways; needs no network and no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from promptvit.cli.options import command_line, make_parser, note, parse
from promptvit.cli.train import Bars, free_folder
from promptvit.data.config import DataConfig
from promptvit.errors import OutputError
from promptvit.train.config import Device, RunConfig, TrainConfig

METHODS = ("linear", "vpt-shallow", "vpt-deep", "full")
SHOWN = 5


def run(arguments: list[str]) -> None:
    """Parse, train four times, compare, classify a few images."""
    parser = make_parser(
        "demo", "Tune the bundled backbone on scikit-learn's handwritten digits, four ways, and compare."
    )
    parser.add_argument("--out", type=str | None, default=None, help="the folder of the runs; runs/demo by default")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the 1,078 training images")
    parser.add_argument("--device", type=Device, default="auto", help="where to compute")
    parser.add_argument("--json", action="store_true", help="print the summaries as one JSON object")
    values = parse(parser, arguments)
    config = TrainConfig(epochs=values["epochs"], device=values["device"])
    folder = Path(values["out"]) if values["out"] else free_folder("demo")
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is in use", expected="a new or empty folder", fix="Choose another --out")

    from promptvit.train.loop import fit  # after parsing: help and wrong usage need no torch

    note(f"Tuning vit_pico (trained on CIFAR-100) on handwritten digits: {', '.join(METHODS)}. About two minutes.")
    summaries = {}
    for method in METHODS:
        with Bars(f"{method:<11}") as bars:
            summaries[method] = fit(
                RunConfig(data=DataConfig(source="digits"), method={"name": method}, train=config),
                folder / method,
                listener=bars.listener(),
                command=command_line("demo", arguments),
            )
    if values["json"]:
        print(json.dumps(summaries, ensure_ascii=False))
        return
    print_table(summaries)
    examples = write_examples(folder / "images")
    print_predictions(folder / "vpt-deep", examples)
    print(
        f"\nSaved in {folder}. Next:\n"
        f"  promptvit predict {folder}/vpt-deep {folder}/images\n"
        "  promptvit train --data YOUR_IMAGES     (a folder with one subfolder per class)\n"
        "  promptvit train --help"
    )


def print_table(summaries: dict[str, dict[str, Any]]) -> None:
    """Accuracy, size and time of every method."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Handwritten digits, test images")
    for column in ("method", "accuracy", "trained parameters", "of backbone", "delta", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, summary in summaries.items():
        cost = summary["cost"]
        table.add_row(
            method,
            f"{100 * summary['result']['test']['top1']:.1f} %",
            f"{cost['trained_parameters']:,}",
            f"{100 * cost['trained_parameters'] / summary['backbone']['parameters']:.2f} %",
            f"{cost['delta_bytes'] / 1024:,.0f} KiB",
            f"{cost['seconds']:.0f}",
        )
    Console().print(table)


def write_examples(folder: Path) -> list[Path]:
    """A few test images as files, each named after its digit."""
    import numpy as np
    from PIL import Image

    from promptvit.data.load import load_task

    test = load_task(DataConfig(source="digits")).test
    assert test is not None
    assert isinstance(test.images, np.ndarray)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(SHOWN):
        paths.append(folder / f"{number}-is-a-{test.labels[number]}.png")
        Image.fromarray(test.images[number]).save(paths[-1])
    return paths


def print_predictions(run: Path, images: list[Path]) -> None:
    """What the tuned model says of each image."""
    from promptvit.checkpoint import load

    print("\nvpt-deep on images that it has not seen:")
    for path, prediction in zip(images, load(run / "delta").predict(images), strict=True):
        print(f"  {path.name:<14} -> {prediction.name}  ({100 * prediction.probabilities[0]:.0f} % sure)")
