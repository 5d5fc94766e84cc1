"""Tables that scroll in their own box and can be sorted, folds, and lists of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from promptvit.report.markup import Child, Markup, isolated, join, tag
from promptvit.report.numbers import Number

MANY = 12
"""A table of more columns is set small in print."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in a table: its content, the `number` that it is sorted by, and `style`: CSS classes."""

    content: Child
    number: Number | None = None
    style: str = ""


def number(text: str, value: Number | None, style: str = "") -> Cell:
    """A cell that is sorted by its value, and set as a number even if it has none."""
    return Cell(content=text, number=value, style=f"number {style}".rstrip())


Entry = Cell | str
"""A cell, or the plain text of one."""


def table(caption: str, head: Sequence[Child], rows: Sequence[Sequence[Entry]]) -> Markup:
    """A table whose first column names the rows, in a box that scrolls and takes the keyboard's focus.

    The caption stands above the box, so that it does not scroll.
    """
    header = tag("tr", {}, [tag("th", {"scope": "col"}, name) for name in head])
    body = [tag("tr", {}, [_cell(entry, first=place == 0) for place, entry in enumerate(row)]) for row in rows]
    parts = (tag("thead", {}, header), tag("tbody", {}, body))
    content = tag(
        "table",
        {"aria-label": caption, "data-sorts": len(rows) > 1, "class": "many" if len(head) > MANY else None},
        parts,
    )
    return join([tag("p", {"class": "caption"}, caption), scroll(caption, content)])


def scroll(label: str, content: Child) -> Markup:
    """A box for what may be wider than the page."""
    return tag("div", {"class": "scroll", "role": "group", "aria-label": label, "tabindex": 0}, content)


def _cell(entry: Entry, *, first: bool) -> Markup:
    cell = Cell(content=isolated(entry) if entry else "") if isinstance(entry, str) else entry
    attributes = {"class": cell.style or None, "data-value": None if cell.number is None else repr(float(cell.number))}
    return tag("th", {"scope": "row", **attributes}, cell.content) if first else tag("td", attributes, cell.content)


def fold(summary: Child, *children: Child, is_open: bool = False) -> Markup:
    """What opens on demand."""
    return tag("details", {"open": is_open}, tag("summary", {}, summary), *children)


def facts(values: Mapping[str, Child]) -> Markup:
    """Names and what they stand for."""
    return tag("dl", {}, [tag("div", {}, tag("dt", {}, name), tag("dd", {}, value)) for name, value in values.items()])


def code(content: str, label: str) -> Markup:
    """Text as it would be typed, in a box that scrolls."""
    return tag(
        "pre", {"class": "scroll", "role": "group", "aria-label": label, "tabindex": 0}, tag("code", {}, content)
    )


def as_yaml(values: Any) -> str:
    """Plain values, in their own order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
