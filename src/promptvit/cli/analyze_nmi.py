"""`promptvit analyze nmi`: NMI of prompts and patches, by block and by epoch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from promptvit.analysis.config import Variant
from promptvit.analysis.figures import Curve, draw_curves
from promptvit.cli.analyze import figure_path, labelled, make_analysis_parser, opened
from promptvit.cli.options import expand, note, parse
from promptvit.errors import ConfigError
from promptvit.train.config import TrainConfig

if TYPE_CHECKING:
    import jsonargparse

Result = dict[str, Any]


def run(arguments: list[str]) -> None:
    """Measure, print, and draw the curves if asked to."""
    parser, expanded = make_nmi_parser(), expand(arguments)
    values = parse(parser, expanded)
    figure = figure_path(values)

    from promptvit.analysis.nmi import mean_nmi, read_curve, task_nmi  # after parsing: help needs no torch
    from promptvit.checkpoint import load
    from promptvit.train.device import make_accelerator

    variant, folders = values["variant"], labelled(values["runs"])
    deltas, data = opened(folders, parser, expanded)
    rows = {
        label: [row for row in read_curve(folder) if row["variant"] == variant] for label, folder in folders.items()
    }
    curves = {} if figure is None else known_curves(rows, variant)
    device = make_accelerator(TrainConfig(device=values["device"])).device
    results = {}
    for label, folder in folders.items():
        blocks = task_nmi(load(deltas[label]).to(device), data[label], variant, values["images"])
        results[label] = {"run": str(folder), "variant": variant, "blocks": blocks, "mean": mean_nmi(blocks)}
        results[label]["epochs"] = rows[label]
    print(json.dumps({"runs": list(results.values())}) if values["json"] else describe(results))
    if figure is not None:
        draw_curves(figure, curves, f"NMI of prompts and patches ({variant})")


def make_nmi_parser() -> jsonargparse.ArgumentParser:
    """The options of `analyze nmi`."""
    parser = make_analysis_parser(
        "nmi",
        "Normalised mutual information of prompts and patches: of tuned models by block, and by epoch where a run was "
        "trained with --nmi. On the validation images of each run, or of --data.",
        "draw NMI against epoch",
    )
    parser.add_argument("--variant", type=Variant, default="attention", help="how prompts and patches are compared")
    parser.add_argument(
        "--images", type=int | None, default=None, help="validation images, at most; null is 64, or 8 for clustering"
    )
    return parser


def known_curves(curves: dict[str, list[Result]], variant: Variant) -> dict[str, Curve]:
    """The mean NMI against the epoch of each run that has it; raises ConfigError if none has."""
    known: dict[str, Curve] = {
        label: [(row["epoch"], row["mean"]) for row in rows] for label, rows in curves.items() if rows
    }
    missing = [label for label in curves if label not in known]
    if not known:
        raise ConfigError(
            f"no NMI ({variant}) by epoch in {', '.join(missing)}",
            expected="runs trained with it",
            where="--figure",
            fix=f"promptvit train --nmi {variant}, or another --variant",
        )
    if missing:
        note(f"not in the figure, without NMI ({variant}) by epoch: {', '.join(missing)}")
    return known


def describe(results: dict[str, Result]) -> str:
    """A few lines for each run."""
    lines = []
    for label, result in results.items():
        blocks = " ".join("-" if value is None else f"{value:.4f}" for value in result["blocks"])
        lines += [f"{label}: NMI {result['mean']:.4f} ({result['variant']})", f"  by block  {blocks}"]
        if result["epochs"]:
            first, last = result["epochs"][0], result["epochs"][-1]
            lines.append(
                f"  by epoch  {first['mean']:.4f} after {first['epoch']} to {last['mean']:.4f} after {last['epoch']}"
            )
    return "\n".join(lines)
