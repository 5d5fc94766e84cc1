"""What the searches of a study have found: a picture for each cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from promptvit.report.bars import Tile, heat_map
from promptvit.report.charts import Line, figure, line_chart, log_axis, value_axis
from promptvit.report.markup import Child, Markup, isolated, tag
from promptvit.report.numbers import MISSING, Number, percent, plain
from promptvit.report.tables import Cell, Entry, fold, number, table
from promptvit.search.results import Cell as Result
from promptvit.search.results import Point, Results
from promptvit.search.statistics import Row

WIDE = 8
"""An axis whose values span such a factor is logarithmic."""
OPEN_CELLS = 12
STRONGEST = 0.95


def searches(results: Results, name: Mapping[Row, str]) -> Child:
    """Cells with more than one point, by task."""
    searched = [cell for cell in results.cells if len(cell.points) > 1]
    is_open = len(searched) <= OPEN_CELLS
    parts = []
    for task in dict.fromkeys(cell.task for cell in searched):
        pictures = [_picture(cell, name[cell.backbone, cell.method]) for cell in searched if cell.task == task]
        parts.append(fold(isolated(task), tag("div", {"class": "pair"}, pictures), is_open=is_open))
    return parts


def setting_texts(settings: Mapping[str, Any]) -> str:
    """`learning_rate 0.01, length 10`."""
    return ", ".join(f"{_short(setting)} {plain(value)}" for setting, value in settings.items()) or "as they are"


def _picture(cell: Result, row: str) -> Markup:
    title = f"{row} on {cell.task}"
    varied = _varied(cell.points)
    done = [point for point in cell.points if point.state == "complete" and point.val_top1 is not None]
    numbers = _point_table(cell, title)
    if not done:
        return figure(title, tag("p", {}, "No point is done yet."), numbers=numbers)
    values = varied[0][1] if varied else []
    is_numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    chosen = "" if cell.chosen is None else f" Chosen: {setting_texts(cell.chosen)}."
    if len(varied) == 1 and is_numeric:
        return figure(
            title,
            _line(cell, varied[0][0], done, title),
            numbers=numbers,
            note=f"{chosen} The ring marks it." if chosen else "",
        )
    rest = [_short(setting) for setting, _ in varied[2:]]
    note = f"Colour: validation accuracy, from {percent(_worst(done))} to {percent(_best(done))}."
    if rest:
        note += f" The best over {', '.join(rest)}."
    return figure(title, _map(cell, varied, done, title), numbers=numbers, note=f"{note}{chosen}")


def _varied(points: Sequence[Point]) -> list[tuple[str, list[Any]]]:
    """Settings with more than one value, and their values in order; those with the most values first."""
    found: dict[str, dict[str, Any]] = {}
    for point in points:
        for setting, value in point.settings.items():
            found.setdefault(setting, {})[_key(value)] = value
    varied = [(setting, _ordered(list(values.values()))) for setting, values in found.items() if len(values) > 1]
    return sorted(varied, key=lambda each: -len(each[1]))


def _ordered(values: list[Any]) -> list[Any]:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return [*(value for value in values if value not in numbers or isinstance(value, bool)), *sorted(numbers)]


def _line(cell: Result, setting: str, done: Sequence[Point], title: str) -> Markup:
    spots = sorted((float(point.settings[setting]), point.val_top1 or 0.0) for point in done)
    across = [at for at, _ in spots]
    is_wide = across[0] > 0 and across[-1] / across[0] >= WIDE
    label = _short(setting)
    x = log_axis(f"{label} (log)", across, plain) if is_wide else value_axis(label, across, plain)
    y = value_axis("validation accuracy", [value for _, value in spots], lambda share: f"{100 * share:.4g} %")
    at = None if cell.chosen is None else cell.chosen.get(setting)
    marked = [spot for spot in spots if at is not None and spot[0] == float(at)]
    return line_chart(title, [Line(name=title, points=spots)], x, y, marked=marked)


def _map(cell: Result, varied: Sequence[tuple[str, list[Any]]], done: Sequence[Point], title: str) -> Markup:
    (across, columns), (down, rows) = varied[0], varied[1] if len(varied) > 1 else ("", [None])
    low, high = _worst(done), _best(done)
    at = {(_key(value), _key(other)): (i, k) for i, value in enumerate(rows) for k, other in enumerate(columns)}
    here: dict[tuple[int, int], list[Point]] = {}
    for point in cell.points:
        if across in point.settings and (not down or down in point.settings):
            here.setdefault(at[_place(point.settings, down, across)], []).append(point)
    chosen = None if cell.chosen is None else at.get(_place(cell.chosen, down, across))
    tiles = {place: _tile(found, low, high, place == chosen) for place, found in here.items()}
    names = [plain(value) for value in rows] if down else [""]
    said = f"Validation accuracy from {percent(low)} to {percent(high)}. {setting_texts(cell.chosen or {})} is chosen."
    return heat_map(
        title,
        said,
        names,
        [plain(value) for value in columns],
        tiles,
        row_label=_short(down) or "",
        column_label=_short(across),
    )


def _tile(here: Sequence[Point], low: Number, high: Number, is_chosen: bool) -> Tile:
    done = [point for point in here if point.state == "complete" and point.val_top1 is not None]
    if not done:
        states = dict.fromkeys(point.state for point in here)
        text = "failed" if "failed" in states else "cut" if "pruned" in states else ""
        return Tile(strength=None, text=text, hint=f"{setting_texts(here[0].settings)}: {', '.join(states)}")
    best = max(done, key=lambda point: point.val_top1 or 0.0)
    share = best.val_top1 or 0.0
    strength = STRONGEST * ((share - low) / (high - low) if high > low else 1.0)
    hint = f"{setting_texts(best.settings)}: {percent(share)}"
    return Tile(strength=strength, text=f"{100 * share:.1f}", hint=hint, is_marked=is_chosen)


def _point_table(cell: Result, title: str) -> Markup:
    settings = list(dict.fromkeys(setting for point in cell.points for setting in point.settings))
    rows: list[list[Entry]] = []
    for place, point in enumerate(cell.points):
        style = "chosen" if cell.chosen is not None and point.settings == cell.chosen else ""
        own = [_setting_cell(point.settings.get(setting, MISSING), style) for setting in settings]
        top = number(percent(point.val_top1), point.val_top1, style)
        state = Cell(content="complete, chosen" if style else point.state, style=style)
        rows.append([number(str(place + 1), place + 1, style), *own, top, state])
    return table(title, ["point", *map(_short, settings), "validation", "state"], rows)


def _setting_cell(value: Any, style: str) -> Cell:
    known = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return number(plain(value), known, style)


def _place(settings: Mapping[str, Any], down: str, across: str) -> tuple[str, str]:
    return _key(settings.get(down)), _key(settings.get(across))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(setting: str) -> str:
    """Without the part that it belongs to."""
    return setting.partition(".")[2] or setting


def _best(done: Sequence[Point]) -> Number:
    return max(point.val_top1 or 0.0 for point in done)


def _worst(done: Sequence[Point]) -> Number:
    return min(point.val_top1 or 0.0 for point in done)
