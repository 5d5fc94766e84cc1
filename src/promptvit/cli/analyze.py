"""`promptvit analyze WHAT`: what tuned models and their runs look like from inside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptvit.analysis.config import Variant
from promptvit.analysis.figures import Curve, check_format, draw_curves
from promptvit.cli.options import add_fields, expand, flatten, make_parser, note, option_value, parse
from promptvit.cli.runs import delta_folder, run_config
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.registry import unknown
from promptvit.train.config import Device, TrainConfig

if TYPE_CHECKING:
    import jsonargparse

Result = dict[str, Any]
UNUSED = ("geometry", "augment", "train_share", "train_on", "workers")
"""Fields of `DataConfig` that validation images, read as the tuned model wants them, do not depend on."""


def run(arguments: list[str]) -> None:
    """Find the analysis and run it."""
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        print(usage())
        return
    if not name:
        raise ConfigError("nothing to analyze", expected=", ".join(ANALYSES), fix="promptvit analyze --help")
    if name not in ANALYSES:
        raise unknown("analysis", name, ANALYSES, "All: promptvit analyze --help")
    ANALYSES[name](rest)


def usage() -> str:
    """The text of `promptvit analyze --help`."""
    width = max(map(len, ANALYSES))
    lines = "\n".join(f"  {name:<{width}}  {analysis.__doc__}" for name, analysis in ANALYSES.items())
    return f"usage: promptvit analyze WHAT RUN... [OPTIONS]\n\nwhat:\n{lines}\n\nMore: promptvit analyze nmi --help"


def nmi(arguments: list[str]) -> None:
    """NMI of prompts and patches, by block and by epoch"""
    parser, expanded = make_nmi_parser(), expand(arguments)
    values = parse(parser, expanded)
    figure = None if values["figure"] is None else Path(values["figure"])
    if figure is not None:
        check_format(figure)

    from promptvit.analysis.nmi import mean_nmi, read_curve, task_nmi  # after parsing: help needs no torch
    from promptvit.checkpoint import load
    from promptvit.train.device import make_accelerator

    variant, folders = values["variant"], labelled(values["runs"])
    # Every folder is looked at before the first is measured, which may take minutes.
    deltas = {label: delta_folder(folder) for label, folder in folders.items()}
    data = {label: data_of(folder, parser, expanded) for label, folder in folders.items()}
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
    parser = make_parser(
        "analyze nmi",
        "Normalised mutual information of prompts and patches: of tuned models by block, and by epoch where a run was "
        "trained with --nmi. On the validation images of each run, or of --data.",
        "RUN... ",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders")
    parser.add_argument("--variant", type=Variant, default="attention", help="how prompts and patches are compared")
    parser.add_argument(
        "--images", type=int | None, default=None, help="validation images, at most; null is 64, or 8 for clustering"
    )
    parser.add_argument("--figure", type=str | None, default=None, help="draw NMI against epoch: a .png or .svg file")
    parser.add_argument("--device", type=Device, default="auto", help="where to compute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_fields(parser, "data", DataConfig, fixed=UNUSED)
    return parser


ANALYSES = {"nmi": nmi}
"""Names and what they run; the docstrings are their help."""


def labelled(runs: Sequence[str]) -> dict[str, Path]:
    """Folders by their names, or by all that was typed where two have the same name."""
    names = [Path(each).resolve().name for each in runs]
    count = Counter(names)
    return {name if count[name] == 1 else each: Path(each) for name, each in zip(names, runs, strict=True)}


def data_of(folder: Path, parser: jsonargparse.ArgumentParser, expanded: Sequence[str]) -> DataConfig:
    """The data of the run in `folder` with what was typed on top, or all typed."""
    typed = option_value(expanded, "--data.source") is not None
    own = {} if typed else run_config(folder).to_dict()["data"]
    used = {name: value for name, value in own.items() if name not in UNUSED}
    return DataConfig(**parse(parser, [*flatten("--data", used), *expanded])["data"])


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
