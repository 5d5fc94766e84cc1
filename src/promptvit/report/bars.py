"""Horizontal bars and heat maps, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from promptvit.report.charts import FONT, WIDTH, svg
from promptvit.report.markup import Markup, tag
from promptvit.report.numbers import Number, fitted, width

DARK = 0.66
"""From this share of the heat's colour on, its text is that of the page's ground, in both themes."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A name, a value, how it is written, and the ends of its interval if it has one."""

    name: str
    value: Number
    text: str
    interval: tuple[Number, Number] | None = None


def bar_chart(title: str, description: str, bars: Sequence[Bar], *, most: Number | None = None) -> Markup:
    """Bars from zero, one below the other; `most`: the value at the right end, by default the largest."""
    most = most or max(bar.value for bar in bars) or 1.0
    room = min(150.0, FONT * max(width(bar.name) for bar in bars) + 10)
    after = FONT * max(width(bar.text) for bar in bars) + 8
    across = WIDTH - room - 8 - after
    parts = []
    for place, bar in enumerate(bars):
        top, length = 22.0 * place, max(1.0, across * bar.value / most)
        left, end = room + 8, room + 8 + length
        parts.append(tag("text", {"class": "end name", "x": room, "y": top + 15}, fitted(bar.name, (room - 8) / FONT)))
        hint = tag("title", {}, f"{bar.name}: {bar.text}")
        parts.append(
            tag("rect", {"class": "bar", "x": left, "y": top + 3, "width": length, "height": 16, "rx": 2}, hint)
        )
        if bar.interval is not None:
            low, high = (left + across * each / most for each in bar.interval)
            d = f"M{low:.1f} {top + 11:.1f}H{high:.1f}M{low:.1f} {top + 8:.1f}v6M{high:.1f} {top + 8:.1f}v6"
            parts.append(tag("path", {"class": "interval", "d": d}))
            end = max(end, high)
        parts.append(tag("text", {"x": end + 6, "y": top + 15}, bar.text))
    return svg(title, description, 22.0 * len(bars) + 2, parts)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A cell of a heat map: how strong it is, in [0, 1], or None where nothing is known; what stands in it; a hint."""

    strength: Number | None
    text: str
    hint: str
    is_marked: bool = False


def heat_map(
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    tiles: Mapping[tuple[int, int], Tile],
    *,
    row_label: str,
    column_label: str,
) -> Markup:
    """Tiles by (row, column), with the names of both; as wide as they need to be."""
    left = min(116.0, FONT * max(map(width, (*rows, f"{row_label} ↓"))) + 14)
    side = min(80.0, max(15.0, (WIDTH - left - 4) / len(columns)))
    tall = min(side, 34.0)
    upright = any(FONT * width(name) > side - 4 for name in columns)
    top = 26 + (min(110.0, FONT * max(map(width, columns)) + 8) if upright else 20)
    parts = [
        tag("text", {"class": "end", "x": left - 6, "y": top - 6}, f"{row_label} ↓" if row_label else ""),
        tag("text", {"x": left, "y": FONT}, f"{column_label} →"),
    ]
    for place, name in enumerate(rows):
        at = top + tall * (place + 0.5) + 4
        parts.append(tag("text", {"class": "end name", "x": left - 6, "y": at}, fitted(name, (left - 12) / FONT)))
    for place, name in enumerate(columns):
        at = left + side * (place + 0.5)
        if upright:
            turned = {"class": "name", "transform": f"translate({at + 4:.1f} {top - 5:.1f}) rotate(-90)"}
            parts.append(tag("text", turned, fitted(name, (top - 32) / FONT)))
        else:
            parts.append(tag("text", {"class": "middle name", "x": at, "y": top - 6}, name))
    grid = {"x": left, "y": top, "width": side * len(columns), "height": tall * len(rows)}
    parts.append(tag("rect", {"class": "grid", **grid}))
    marks = []
    for (row, column), tile in tiles.items():
        place = {"x": left + side * column + 0.5, "y": top + tall * row + 0.5, "width": side - 1, "height": tall - 1}
        strength = {"fill-opacity": 0.0 if tile.strength is None else tile.strength}
        parts.append(tag("rect", {"class": "tile", **place, **strength}, tag("title", {}, tile.hint)))
        if FONT * width(tile.text) <= side - 3 and tall >= 14:
            style = "middle deep" if (tile.strength or 0.0) > DARK else "middle shallow"
            middle = {"x": left + side * (column + 0.5), "y": top + tall * (row + 0.5) + 4}
            parts.append(tag("text", {"class": style, **middle}, tile.text))
        if tile.is_marked:
            marks.append(tag("rect", {"class": "mark", **place, "rx": 2}))
    across = left + side * len(columns) + 4
    return svg(title, description, top + tall * len(rows) + 4, parts, marks, wide=max(across, WIDTH))
