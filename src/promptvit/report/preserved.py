"""What tuning kept of the pretrained backbone, in the reports of runs and studies: what `analyze preservation` left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from promptvit.report.bars import Tile, heat_map
from promptvit.report.charts import Axis, Line, figure, legend, line_chart, value_axis, whole_axis
from promptvit.report.markup import Child, Markup, join, tag
from promptvit.report.numbers import MISSING, Number, percent
from promptvit.report.record import delta_digest
from promptvit.report.tables import Cell, Entry, number, table
from promptvit.search.results import Results
from promptvit.search.statistics import Row

if TYPE_CHECKING:
    from promptvit.analysis.preservation import Kept, Preservation

DEPTHS = 32
"""The CKA of all depths with all others is drawn up to these."""
Values = Sequence[float | None]
"""One at each depth; None where there is none."""


def read_kept(folder: Path) -> Kept | None:
    """What was measured of the run in `folder`; None if nothing was, or of another delta than it has now."""
    path = folder / "preservation.json"
    if not path.is_file():
        return None
    from promptvit.analysis.preservation import Kept  # PEFT takes its time

    kept = Kept.read(path)
    return kept if kept is not None and kept.asked.get("delta") == delta_digest(folder) else None


def preserved(kept: Kept) -> Child:
    """Of a run: a reading, probes and CKA by depth, weights by block."""
    from promptvit.analysis.preservation import reading

    found, other = kept.found, kept.asked.get("other")
    row = found.read
    before, after = found.probes["before"][row], found.probes["after"][row]
    pictures = [
        _by_depth("Linear probe", {"pretrained": before["linear"], "tuned": after["linear"]}, "accuracy"),
        _by_depth("kNN probe", {"pretrained": before["knn"], "tuned": after["knn"]}, "accuracy"),
    ]
    same = {"the task's images": found.own.same_depth(row)}
    if found.other is not None:
        same[f"images of {Path(str(other)).name}"] = found.other.same_depth(row)
    pictures.append(_by_depth("CKA with the pretrained features", same, "CKA"))
    if len(found.weights) < DEPTHS:
        pictures.append(_all_depths(found))
    if any(found.weights):
        pictures.append(_by_depth("Weights moved", {"weights": found.weights}, "share of their norm", across="block"))
    images = f"On {found.own.images} validation images" + (
        "" if found.other is None else f", and {found.other.images} of {Path(str(other)).name}, which nobody tuned for"
    )
    where = {"cls": "the CLS row", "patch": "the mean of the patches"}[row]
    note = f"{images}. Of {where}, as it enters each block, and behind the last."
    return join(
        [
            tag("p", {}, reading(found)),
            tag("div", {"class": "pair"}, pictures),
            tag("p", {"class": "note"}, note),
        ]
    )


def _by_depth(title: str, lines: Mapping[str, Values], label: str, across: str = "depth") -> Markup:
    """A line for each name, over depths from 0, or blocks from 1."""
    start = int(across == "block")
    drawn = [Line(name=name, points=_known(values, start)) for name, values in lines.items()]
    heights = [value for line in drawn for _, value in line.points]
    places = [at for line in drawn for at, _ in line.points]
    y = _shares(label, heights, zero=across == "block")
    chart = line_chart(title, drawn, whole_axis(across, places), y)
    count = max(map(len, lines.values()))
    rows: list[list[Entry]] = [
        [str(at + start), *(_number(values[at]) for values in lines.values())] for at in range(count)
    ]
    return figure(title, chart, legend=legend(list(lines)), numbers=table(title, [across, *lines], rows))


def _shares(label: str, values: Sequence[Number], *, zero: bool = False) -> Axis:
    return value_axis(
        label, values, lambda value: f"{value:.3g}" if label == "CKA" else f"{100 * value:.3g} %", zero=zero
    )


def _known(values: Values, start: int = 0) -> list[tuple[Number, Number]]:
    return [(at, value) for at, value in enumerate(values, start=start) if value is not None]


def _number(value: float | None) -> Cell:
    return number(MISSING if value is None else f"{value:.3f}", value)


def _all_depths(found: Preservation) -> Markup:
    """CKA of each depth of the pretrained backbone with each of the tuned model."""
    title, values = "CKA of all depths", found.own.cka[found.read]
    names = [str(depth) for depth in range(len(values))]
    tiles = {
        (row, column): Tile(
            strength=None if value is None else min(1.0, max(0.0, value)),
            text="" if value is None else f"{value:.2f}",
            hint=f"pretrained {row}, tuned {column}: {MISSING if value is None else f'{value:.3f}'}",
        )
        for row, line in enumerate(values)
        for column, value in enumerate(line)
    }
    said = f"CKA between {len(names)} depths before and {len(names)} after tuning."
    chart = heat_map(title, said, names, names, tiles, row_label="pretrained", column_label="tuned")
    rows: list[list[Entry]] = [[name, *map(_number, line)] for name, line in zip(names, values, strict=True)]
    return figure(title, chart, numbers=table(title, ["pretrained \\ tuned", *names], rows))


def preserved_by_rows(results: Results, name: Mapping[Row, str], folder: Path) -> Child:
    """Of a study: means over the final runs of each row that were measured; nothing if none was."""
    found: dict[Row, list[Preservation]] = {}
    for cell in results.cells:
        kept = [read_kept(folder / final.folder) for final in cell.finals]
        found.setdefault((cell.backbone, cell.method), []).extend(each.found for each in kept if each is not None)
    measured = {row: runs for row, runs in found.items() if runs}
    if not measured:
        return []
    lines = {
        name[row]: _mean_by_depth([run.own.same_depth(run.read) for run in runs]) for row, runs in measured.items()
    }
    head = ["row", "runs", "probe before, %", "probe after, %", "CKA", "CKA, other images", "weights moved, %"]
    rows: list[list[Entry]] = [[name[row], *_means(runs)] for row, runs in measured.items()]
    caption = "Means over final runs; probe (linear) and CKA with the pretrained features at the last depth"
    picture = _by_depth("CKA with the pretrained features, by depth", lines, "CKA")
    return join(
        [tag("p", {}, _said(measured, name)), tag("div", {"class": "single"}, picture), table(caption, head, rows)]
    )


def _said(measured: Mapping[Row, Sequence[Preservation]], name: Mapping[Row, str]) -> str:
    """Which rows are nearest to the pretrained features, and farthest."""
    known = {row: _mean([run.own.same_depth(run.read)[-1] for run in runs]) for row, runs in measured.items()}
    order = sorted(((value, row) for row, value in known.items() if value is not None), reverse=True)
    if not order:
        return "No CKA could be measured at the last depth."
    (most, nearest), (least, farthest) = order[0], order[-1]
    said = f"At the last depth {name[nearest]} has a mean CKA of {most:.2f} with the pretrained features"
    return f"{said}." if nearest == farthest else f"{said}, {name[farthest]} one of {least:.2f}."


def _means(runs: Sequence[Preservation]) -> list[Entry]:
    before = _mean([run.probes["before"][run.read]["linear"][-1] for run in runs])
    after = _mean([run.probes["after"][run.read]["linear"][-1] for run in runs])
    own = _mean([run.own.same_depth(run.read)[-1] for run in runs])
    other = _mean([None if run.other is None else run.other.same_depth(run.read)[-1] for run in runs])
    moved = fmean(fmean(run.weights) for run in runs)
    return [
        number(str(len(runs)), len(runs)),
        number(percent(before).removesuffix(" %"), before),
        number(percent(after).removesuffix(" %"), after),
        _number(own),
        _number(other),
        number(f"{100 * moved:.2g}", moved),
    ]


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean_by_depth(runs: Sequence[Values]) -> list[float | None]:
    return [_mean(values) for values in zip(*runs, strict=True)]
