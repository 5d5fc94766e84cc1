"""What tuning kept of the pretrained backbone, in the reports of runs and studies: what `analyze preservation` left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from promptvit.analysis.config import PRESERVATION
from promptvit.report.bars import Tile, heat_map
from promptvit.report.charts import SERIES, Axis, Line, figure, legend, line_chart, value_axis, whole_axis
from promptvit.report.markup import Child, Markup, join, tag
from promptvit.report.numbers import MISSING, Number, points
from promptvit.report.origin import counted
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
    path = folder / PRESERVATION
    if not path.is_file():
        return None
    from promptvit.analysis.preservation import Kept  # PEFT takes its time

    kept = Kept.read(path)
    now = delta_digest(folder)
    return kept if kept is not None and now is not None and kept.asked.get("delta") == now else None


def preserved(kept: Kept, *, is_tuned: bool = False) -> Child:
    """Of a run: a reading, probes and CKA by depth, weights by block; `is_tuned`: it started from another run."""
    from promptvit.analysis.preservation import reading

    found, other = kept.found, kept.asked.get("other")
    row = found.read
    before, after = found.probes["before"][row], found.probes["after"][row]
    pictures = [
        _by_depth("Linear probe", {"pretrained": before["linear"], "tuned": after["linear"]}, "accuracy"),
        _by_depth("kNN probe", {"pretrained": before["knn"], "tuned": after["knn"]}, "accuracy"),
    ]
    task = _name_of(kept.asked["data"]["source"])
    same = {f"images of {task}": found.own.same_depth(row)}
    images = f"On {found.own.images} validation images of {task}"
    if found.other is not None:
        same[f"images of {_name_of(str(other))}"] = found.other.same_depth(row)
        images += f", and {found.other.images} of {_name_of(str(other))}, which nobody tuned for"
    pictures.append(_by_depth("CKA with the pretrained features", same, "CKA"))
    if len(found.weights) < DEPTHS:
        pictures.append(_all_depths(found))
    if any(found.weights):
        pictures.append(_by_depth("Weights moved", {"weights": found.weights}, "share of their norm", across="block"))
    where = {"cls": "the CLS row", "patch": "the mean of the patches"}[row]
    start = ' "Pretrained" is what the run before has tuned.' if is_tuned else ""
    note = f"{images}. Of {where}, as it enters each block, and behind the last.{start}"
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
    drawn = [Line(name=name, points=known) for name, values in lines.items() if (known := _known(values, start))]
    if not drawn:
        return figure(title, tag("p", {"class": "missing"}, "Nothing could be measured."))
    heights = [value for line in drawn for _, value in line.points]
    places = [at for line in drawn for at, _ in line.points]
    y = _shares(label, heights, zero=across == "block")
    chart = line_chart(title, drawn, whole_axis(across, places), y)
    rows: list[list[Entry]] = [
        [str(at), *map(_number, values)] for at, values in enumerate(zip_longest(*lines.values()), start=start)
    ]
    return figure(
        title, chart, legend=legend([line.name for line in drawn]), numbers=table(title, [across, *lines], rows)
    )


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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A final run of a study, and what was asked and found of it."""

    row: Row
    task: str
    kept: Kept

    @property
    def question(self) -> str:
        """All that was asked but which run and which task."""
        asked = {**self.kept.asked, "data": {**self.kept.asked["data"], "source": ""}, "delta": "", "backbone": ""}
        return json.dumps(asked, sort_keys=True)


def preserved_by_rows(results: Results, name: Mapping[Row, str], folder: Path) -> Child:
    """Of a study: means over the final runs of each row that were measured alike; nothing if none was."""
    found = [
        Measured(row=(cell.backbone, cell.method), task=cell.task, kept=kept)
        for cell in results.cells
        if not cell.first  # its features would be compared with those that the run before has tuned
        for final in cell.finals
        if (kept := read_kept(folder / final.folder)) is not None
    ]
    if not found:
        return []
    question, _ = Counter(each.question for each in found).most_common(1)[0]
    alike = [each for each in found if each.question == question]
    tasks = set.intersection(
        *({each.task for each in alike if each.row == row} for row in {each.row for each in alike})
    )
    runs: dict[Row, list[Preservation]] = {}
    for each in alike:
        if each.task in tasks:
            runs.setdefault(each.row, []).append(each.kept.found)
    if not runs:
        return tag("p", {}, "No task was measured of every row that was measured at all.")
    other = alike[0].kept.asked.get("other")
    lines = {name[row]: _mean_by_depth([run.own.same_depth(run.read) for run in each]) for row, each in runs.items()}
    title = "CKA with the pretrained features, by depth"
    picture = tag("div", {"class": "single"}, _by_depth(title, lines, "CKA")) if len(lines) <= SERIES else []
    elsewhere = "CKA, other images" if other is None else f"CKA, {_name_of(other)}"
    head = ["row", "runs", "probe before, %", "probe after, %", "CKA", elsewhere, "weights moved, %"]
    rows: list[list[Entry]] = [[name[row], *_means(each)] for row, each in runs.items()]
    caption = f"Means over final runs of {counted(len(tasks), 'task')}; probe (linear) and CKA at the last depth"
    left_out = len(found) - sum(map(len, runs.values()))
    note = f"{counted(left_out, 'run')} measured otherwise, or of other tasks, left out." if left_out else ""
    said = [tag("p", {}, _said(runs, name)), picture, table(caption, head, rows)]
    return join([*said, tag("p", {"class": "note"}, note) if note else ""])


def _said(runs: Mapping[Row, Sequence[Preservation]], name: Mapping[Row, str]) -> str:
    """Which rows are nearest to the pretrained features, and farthest."""
    known = {row: _mean([run.own.same_depth(run.read)[-1] for run in each]) for row, each in runs.items()}
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
        number(points(before, 1), before),
        number(points(after, 1), after),
        _number(own),
        _number(other),
        number(f"{100 * moved:.2g}", moved),
    ]


def _name_of(source: str) -> str:
    """Of data, short."""
    return Path(source).name or source


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean_by_depth(runs: Sequence[Values]) -> list[float | None]:
    return [_mean(values) for values in zip(*runs, strict=True)]
