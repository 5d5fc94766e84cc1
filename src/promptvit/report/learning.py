"""How the runs of a study learn: whether they overfit, and how large the gap is, by task and row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from promptvit.analysis.curves import Curves, EpochRow, overfitting, read_rows
from promptvit.errors import PromptvitError
from promptvit.report.charts import SERIES, Line, figure, legend, line_chart, style_of, value_axis, whole_axis
from promptvit.report.markup import Child, Markup, join, tag
from promptvit.report.numbers import points
from promptvit.report.origin import counted
from promptvit.report.tables import Entry, fold, number, table
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.results import Cell, Results
from promptvit.search.statistics import Row

PICTURES = 24
"""Of no more tasks; of the first ones."""
LISTED = 30
"""A longer table is folded."""


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """The runs of a cell that have left validation images out of training: their epochs, and what these come to."""

    cell: Cell
    rows: Sequence[Sequence[EpochRow]]
    curves: Sequence[Curves]

    @property
    def row(self) -> Row:
        """Backbone and method."""
        return self.cell.backbone, self.cell.method

    @property
    def overfitting(self) -> int:
        """How many runs do."""
        return sum(each.overfits is True for each in self.curves)


def learning(results: Results, name: Mapping[Row, str], folder: Path) -> Child:
    """Validation losses by task, and a table of all cells; nothing where no run has kept its epochs."""
    found = list(learnt(results, folder))
    if not found:
        return []
    rows = list(dict.fromkeys(each.row for each in found))
    styles = {row: style_of(place) for place, row in enumerate(rows)}  # the same in every picture
    pictures = [
        _losses(task, [each for each in found if each.cell.task == task], name, styles) for task in results.tasks
    ]
    shown = [each for each in pictures if each] if len(rows) <= SERIES else []
    listed = table(
        "Means over runs, of the last epoch but for the rise and 95 %", HEAD, [_cells(each, name) for each in found]
    )
    return join(
        [
            tag("p", {}, " ".join(_said(row, found, name) for row in rows)),
            tag("div", {"class": "three" if len(shown) > 2 else "pair"}, shown[:PICTURES]),
            fold(f"All {len(found)} cells", listed) if len(found) > LISTED else listed,
            tag("p", {"class": "note"}, NOTE),
        ]
    )


HEAD = ["task", "row", "overfit", "rise, %", "gap of loss", "gap of accuracy, points", "95 % after epoch"]
NOTE = (
    "A run overfits if its validation loss, smoothed, has its minimum before 80 % of the epochs and ends more than 5 % "
    "above. Gap: validation minus training loss, training minus validation accuracy. 95 %: of its best validation "
    "accuracy. Final runs, or, where these are trained on validation images too, the search's run of the chosen point."
)


def learnt(results: Results, folder: Path) -> Iterator[Learnt]:
    """The cells whose runs are there and have a verdict."""
    for cell in results.cells:
        rows = [rows for run in _held_out(cell, results) if (rows := _rows(folder / run))]
        curves = [overfitting(each) for each in rows]
        if any(each.overfits is not None for each in curves):
            yield Learnt(cell=cell, rows=rows, curves=curves)


def _held_out(cell: Cell, results: Results) -> list[str]:
    """Folders of runs that were not trained on validation images."""
    if _retrain(cell, results.protocol) == "train":
        return [final.folder for final in cell.finals]
    chosen = [point for point in cell.points if point.state == "complete" and point.settings == cell.chosen]
    return [point.folder for point in chosen[:1] if point.folder]


def _retrain(cell: Cell, protocol: Mapping[str, Any]) -> str | None:
    """What its final runs are trained on; FGVC tasks may have a protocol of their own."""
    own = protocol.get("fgvc") if cell.group == "fgvc" else None
    changed = protocol.get("changed", {}).get("retrain")
    return protocol.get("retrain") if own is None else changed or PROTOCOLS[own].retrain


def _rows(folder: Path) -> list[EpochRow]:
    """None of a run that is gone, has a damaged file, or of which masks alone were chosen."""
    try:
        rows = read_rows(folder)
        overfitting(rows)
    except PromptvitError:
        return []
    return rows


def _said(row: Row, found: Sequence[Learnt], name: Mapping[Row, str]) -> str:
    cells = [each for each in found if each.row == row]
    runs, bad = sum(len(each.curves) for each in cells), sum(each.overfitting for each in cells)
    return f"{name[row]}: {bad or 'none'} of {counted(runs, 'run')} overfit{'s' if bad == 1 else ''}."


def _cells(each: Learnt, name: Mapping[Row, str]) -> list[Entry]:
    count = len(each.curves)
    means = {
        field: fmean(getattr(curves, field) for curves in each.curves)
        for field in ("rise", "gap", "accuracy_gap", "reached")
    }
    return [
        each.cell.task,
        name[each.row],
        number(f"{each.overfitting} of {count}", each.overfitting / count),
        number(points(means["rise"], 1), means["rise"]),
        number(f"{means['gap']:.3f}", means["gap"]),
        number(points(means["accuracy_gap"], 1), means["accuracy_gap"]),
        number(f"{means['reached']:.3g}", means["reached"]),
    ]


def _losses(task: str, found: Sequence[Learnt], name: Mapping[Row, str], styles: Mapping[Row, str]) -> Markup | None:
    """The validation loss of each row by epoch, the mean over its runs, with rings at the minima."""
    lines = [Line(name=name[each.row], points=_mean_losses(each), style=styles[each.row]) for each in found]
    if not lines:
        return None
    losses = [loss for line in lines for _, loss in line.points]
    marked = [min(line.points, key=lambda point: point[1]) for line in lines]
    x = whole_axis("epoch", [epoch for line in lines for epoch, _ in line.points])
    chart = line_chart(f"Validation loss, {task}", lines, x, value_axis("loss", losses, "{:.3g}".format), marked=marked)
    return figure(
        f"Validation loss, {task}",
        chart,
        legend=legend([line.name for line in lines], [line.style for line in lines]),
        note="Rings: minima.",
    )


def _mean_losses(each: Learnt) -> list[tuple[int, float]]:
    epochs = min(map(len, each.rows))
    return [(at + 1, fmean(rows[at]["val_loss"] for rows in each.rows)) for at in range(epochs)]
