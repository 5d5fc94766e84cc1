"""`promptvit analyze curves`: whether runs overfit, how large the gap is, and how fast they learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.analysis.curves import Curves, EpochRow, overfitting, read_rows, reading
from promptvit.analysis.figures import COLOURS, Chart, Line, draw_charts
from promptvit.cli.analyze import figure_path, labelled
from promptvit.cli.columns import columns
from promptvit.cli.options import make_parser, note, parse
from promptvit.errors import ConfigError

if TYPE_CHECKING:
    import jsonargparse

IN_A_ROW = 3
"""Charts of a figure."""


def run(arguments: list[str]) -> None:
    """Read the epochs, draw them if asked to, and print."""
    values = parse(make_curves_parser(), arguments)
    figure, folders = figure_path(values), labelled(values["runs"])
    if values["log"] and figure is None:
        raise ConfigError("--log without a figure", expected="--figure FILE with it")
    rows = rows_of(folders)
    found = {label: overfitting(rows[label], held_out=is_held_out(folders[label])) for label in rows}
    if figure is not None:
        charts = [chart(label, rows[label], curves, log=values["log"]) for label, curves in found.items()]
        draw_charts(figure, [charts[at : at + IN_A_ROW] for at in range(0, len(charts), IN_A_ROW)], shared=True)
    if values["json"]:
        shown = [
            {"run": str(folders[label]), "reading": reading(each), **each.to_dict()} for label, each in found.items()
        ]
        print(json.dumps({"runs": shown}))
    else:
        print(describe(found))


def make_curves_parser() -> jsonargparse.ArgumentParser:
    """The options of `analyze curves`."""
    parser = make_parser(
        "analyze curves",
        "Loss and accuracy by epoch: whether runs overfit (the validation loss, smoothed, has its minimum before 80 % "
        "of the epochs and ends more than 5 % above), the gap between validation and training, and how fast they "
        "learn.",
        "RUN... ",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders, done or not, or a study's")
    parser.add_argument("--figure", type=str | None, default=None, help="draw the losses: a .png or .svg file")
    parser.add_argument("--log", action="store_true", help="losses of the figure on a logarithmic scale")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def rows_of(folders: dict[str, Path]) -> dict[str, list[EpochRow]]:
    """The epochs of each run; those that were pruned without training are named and left out, if there are others."""
    rows: dict[str, list[EpochRow]] = {}
    refused: list[ConfigError] = []
    for label, folder in folders.items():
        try:
            rows[label] = read_rows(folder)
        except ConfigError as error:
            if not (folder / "summary.json").is_file():
                raise
            refused.append(error)
    for error in refused:
        if not rows:
            raise error
        note(f"left out: {error}")
    return rows


def is_held_out(folder: Path) -> bool:
    """Whether the run in `folder` has left its validation images out of training."""
    from promptvit.train.folder import RunFolder  # after parsing: it needs torch

    return RunFolder(folder).read_config().data.train_on == "train"


def chart(label: str, rows: list[EpochRow], curves: Curves, *, log: bool) -> Chart:
    """Both losses of a run, with a ring at the minimum of the validation loss."""
    best = (curves.best_epoch, rows[curves.best_epoch - 1]["val_loss"])
    lines = [
        Line(
            name=name,
            points=[(place, row[f"{split}_loss"]) for place, row in enumerate(rows, start=1)],
            colour=colour,
            marked=marked,
        )
        for split, name, colour, marked in (
            ("train", "training", COLOURS[0], []),
            ("val", "validation (ring: minimum)", COLOURS[1], [best]),
        )
    ]
    return Chart(title=label, x="epoch", y="loss", lines=lines, log=log, zero=not log)


def describe(found: dict[str, Curves]) -> str:
    """A reading of each run, and a table."""
    head = ("run", "epochs", "minimum", "rise", "gap", "accuracy gap", "best", "95 % at", "area", "overfits")
    rows = [
        (
            label,
            str(each.epochs),
            str(each.best_epoch),
            f"{100 * each.rise:.1f} %",
            f"{each.gap:.3f}",
            f"{100 * each.accuracy_gap:.1f}",
            f"{100 * each.best_top1:.1f} %",
            str(each.reached),
            f"{each.area:.3f}",
            {True: "yes", False: "no", None: "-"}[each.overfits],
        )
        for label, each in found.items()
    ]
    return "\n".join([*(f"{label}: {reading(each)}" for label, each in found.items()), "", columns([head, *rows])])
