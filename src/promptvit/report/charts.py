"""Pictures as inline SVG, coloured by the page's style: figures, axes, lines and points.

A picture is 400 units wide, so that text has about its own size on a phone and in a column of a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptvit.report.markup import Child, Markup, isolated, join, tag
from promptvit.report.numbers import Number, log_ticks, ticks, whole_ticks, width
from promptvit.report.tables import fold, scroll

WIDTH = 400.0
FONT = 12.0
SERIES = 6
"""Styles of lines and points: `s1` to `s6`, which differ in colour and in dashes."""
SCATTER_HEIGHT = 280.0
LABEL = 16
"""A name beside a dot is no longer, in units of its font size."""
MARKED = 40
"""A line of no more points has marks."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points (x, y) joined by a line; `style` is a CSS class, by default that of its place."""

    name: str
    points: Sequence[tuple[Number, Number]]
    style: str = ""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point with a name; `title` says more, `style` is a CSS class; a marked one has a ring."""

    name: str
    x: Number
    y: Number
    title: str
    style: str = "s1"
    is_marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is measured along a side, and its ticks; the first and the last are its ends."""

    label: str
    ticks: Sequence[Number]
    show: Callable[[Number], str]
    log: bool = False

    def at(self, value: Number) -> Number:
        """Where a value lies, as a share of the axis."""
        first, last, value = (math.log(each) if self.log else each for each in (self.ticks[0], self.ticks[-1], value))
        return (value - first) / (last - first) if last > first else 0.5


def value_axis(label: str, values: Sequence[Number], show: Callable[[Number], str], *, zero: bool = False) -> Axis:
    """An axis with round ticks around the values, or from zero."""
    return Axis(label=label, ticks=ticks(0.0 if zero else min(values), max(values)), show=show)


def log_axis(label: str, values: Sequence[Number], show: Callable[[Number], str]) -> Axis:
    """A logarithmic axis around the values, all above 0."""
    return Axis(label=label, ticks=log_ticks(min(values), max(values)), show=show, log=True)


def whole_axis(label: str, values: Sequence[Number]) -> Axis:
    """Whole numbers, of epochs, say."""
    low, high = int(min(values)), int(max(values))
    marks = whole_ticks(low, high)
    return Axis(label=label, ticks=marks if marks[-1] == high else [*marks, high], show=lambda tick: f"{tick:.0f}")


def figure(title: str, picture: Child, *, numbers: Child = "", legend: Child = "", note: Child = "") -> Markup:
    """A picture with its title, legend and note, and the same numbers as a table."""
    below = [tag("p", {"class": "note"}, note)] if note else []
    folded = [fold("Numbers", numbers)] if numbers else []
    return tag("figure", {}, tag("figcaption", {}, title), legend, picture, below, folded)


def svg(title: str, description: str, height: Number, *content: Child, wide: Number | None = None) -> Markup:
    """A picture of 400 units, or `wide` ones, which then scrolls in its own box."""
    across = WIDTH if wide is None else wide
    attributes = {"role": "img", "viewBox": f"0 0 {across:.0f} {height:.0f}"}
    names = (tag("title", {}, title), tag("desc", {}, description))
    if wide is None or wide <= WIDTH:
        return tag("svg", attributes, names, content)
    sizes = {"width": f"{across:.0f}", "height": f"{height:.0f}", "class": "wide"}
    picture = tag("svg", {**attributes, **sizes}, names, content)
    return scroll(title, picture)


def line_chart(
    title: str, lines: Sequence[Line], x: Axis, y: Axis, *, marked: Sequence[tuple[Number, Number]] = ()
) -> Markup:
    """Lines over a common x; `marked`: points with a ring around them."""
    frame = Frame(x=x, y=y, title=title)
    drawn = []
    for place, line in enumerate(lines):
        path = [frame.place(*point) for point in line.points]
        style = line.style or style_of(place)
        drawn.append(tag("path", {"class": f"line {style}", "d": "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in path)}))
        if len(path) <= MARKED:
            radius = 4.0 if len(path) == 1 else 2.5
            for (a, b), (at, value) in zip(path, line.points, strict=True):
                hint = f"{line.name}: {y.show(value)} at {x.show(at)}"
                drawn.append(tag("circle", {"class": style, "cx": a, "cy": b, "r": radius}, tag("title", {}, hint)))
    rings = [tag("circle", {"class": "ring", "cx": a, "cy": b, "r": 6}) for a, b in (frame.place(*p) for p in marked)]
    said = "; ".join(f"{line.name} {y.show(line.points[0][1])} to {y.show(line.points[-1][1])}" for line in lines)
    return svg(title, f"{y.label} against {x.label}. {said}", frame.height, frame.drawn(), drawn, rings)


def scatter(title: str, dots: Sequence[Dot], x: Axis, y: Axis, *, labels: Sequence[str] | None = None) -> Markup:
    """Dots, with `labels` beside them; see `dot_labels`."""
    frame = Frame(x=x, y=y, height=SCATTER_HEIGHT)
    places = [frame.place(dot.x, dot.y) for dot in dots]
    rings = [
        tag("circle", {"class": "ring", "cx": a, "cy": b, "r": 9})
        for dot, (a, b) in zip(dots, places, strict=True)
        if dot.is_marked
    ]
    circles = [
        tag("circle", {"class": dot.style, "cx": a, "cy": b, "r": 5}, tag("title", {}, f"{dot.name}: {dot.title}"))
        for dot, (a, b) in zip(dots, places, strict=True)
    ]
    spots = [] if labels is None else _label_spots(places, labels, frame, crowded=True)
    texts = [
        tag("text", {"class": "dot", "x": a, "y": b}, name)
        for name, (a, b) in zip(labels or [], spots or [], strict=True)
    ]
    said = "; ".join(f"{dot.name}: {dot.title}" for dot in dots)
    return svg(title, f"{y.label} against {x.label}. {said}", frame.height, frame.drawn(), circles, rings, texts)


def dot_labels(dots: Sequence[Dot], x: Axis, y: Axis) -> list[str]:
    """The names of the dots if there is room for all in the picture, else their numbers from 1."""
    frame = Frame(x=x, y=y, height=SCATTER_HEIGHT)
    names = [dot.name for dot in dots]
    places = [frame.place(dot.x, dot.y) for dot in dots]
    if all(width(name) <= LABEL for name in names) and _label_spots(places, names, frame) is not None:
        return names
    return [str(number) for number in range(1, len(dots) + 1)]


def legend(
    names: Sequence[str], styles: Sequence[str] | None = None, *, dots: bool = False, numbered: bool = False
) -> Markup:
    """Names with the styles of their lines, or of their `dots`; nothing for a single line."""
    if len(names) < 2 and not numbered:
        return join([])
    styles = [style_of(place) for place in range(len(names))] if styles is None else styles
    items = [tag("li", {"class": style}, isolated(name)) for name, style in zip(names, styles, strict=True)]
    return tag("ol" if numbered else "ul", {"class": "legend dots" if dots else "legend"}, items)


def style_of(place: int) -> str:
    """The CSS class of the series at this place."""
    return f"s{place % SERIES + 1}"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The grid of a picture, with the labels of its axes; that of y is left out where the title says the same."""

    x: Axis
    y: Axis
    height: Number = 230.0
    top: Number = 26.0
    bottom: Number = 40.0
    right: Number = 16.0
    title: str = ""

    @property
    def left(self) -> Number:
        """Room for the labels of y."""
        return 10 + FONT * max(width(self.y.show(tick)) for tick in self.y.ticks)

    def place(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Where a point lies in the picture."""
        across, up = WIDTH - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * self.x.at(x), self.height - self.bottom - up * self.y.at(y)

    def drawn(self) -> list[Markup]:
        """Grid lines, ticks and names of the axes."""
        foot, end = self.height - self.bottom, WIDTH - self.right
        parts = [] if self.y.label == self.title.lower() else [tag("text", {"x": 0, "y": FONT}, self.y.label)]
        for tick in self.y.ticks:
            _, at = self.place(self.x.ticks[0], tick)
            parts.append(tag("path", {"class": "grid", "d": f"M{self.left:.1f} {at:.1f}H{end:.1f}"}))
            parts.append(tag("text", {"class": "end", "x": self.left - 6, "y": at + 4}, self.y.show(tick)))
        taken = -math.inf
        for tick in self.x.ticks:
            at, _ = self.place(tick, self.y.ticks[0])
            shown = self.x.show(tick)
            half = FONT * width(shown) / 2
            parts.append(tag("path", {"class": "grid", "d": f"M{at:.1f} {foot:.1f}v4"}))
            if at - half > taken:
                parts.append(tag("text", {"class": "middle", "x": min(at, WIDTH - half), "y": foot + 17}, shown))
                taken = at + half + 4
        parts.append(tag("text", {"class": "end", "x": end, "y": self.height - 5}, self.x.label))
        return parts


Box = tuple[Number, Number, Number, Number]


def _label_spots(
    places: Sequence[tuple[Number, Number]], names: Sequence[str], frame: Frame, *, crowded: bool = False
) -> list[tuple[Number, Number]] | None:
    """Where labels begin, each beside its dot and off all others; None if one has no room. `crowded` lets them overlap
    where they must."""
    boxes: list[Box] = [(a - 6, b - 6, a + 6, b + 6) for a, b in places]
    spots = []
    for (a, b), name in zip(places, names, strict=True):
        long = FONT * width(name)
        beside = [(a + 8, b + 4), (a - 8 - long, b + 4)]
        around = [(a + turn * long - long / 2, b + lift) for lift in (-9, 18) for turn in (0, 0.5, -0.5)]
        further = [(a + 12, b + lift) for lift in (-14, 22)] + [(a - 12 - long, b + lift) for lift in (-14, 22)]
        free = [spot for spot in beside + around + further if _is_free(_box(spot, long), boxes, frame)]
        if not free and not crowded:
            return None
        spot = free[0] if free else beside[0]
        boxes.append(_box(spot, long))
        spots.append(spot)
    return spots


def _box(spot: tuple[Number, Number], long: Number) -> Box:
    return spot[0], spot[1] - 10, spot[0] + long, spot[1] + 3


def _is_free(box: Box, others: Sequence[Box], frame: Frame) -> bool:
    inside = box[0] >= frame.left and box[2] <= WIDTH and box[1] >= 14 and box[3] <= frame.height - frame.bottom
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in others
    )
