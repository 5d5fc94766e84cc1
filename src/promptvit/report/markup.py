"""HTML and SVG that is safe by construction: text is escaped unless it is markup already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any


class Markup(str):
    """Text that is markup already, and is not escaped again."""

    __slots__ = ()


Child = str | Iterable[Any]
"""Text, markup, or some children."""
Attributes = Mapping[str, str | int | float | bool | None]
"""Values by names; true is the name alone, false and None leave it out."""
VOID = frozenset({"br", "img", "meta"})
"""Elements without an end. Those of SVG are ended, as HTML parsers want it."""


def tag(name: str, attributes: Attributes, *children: Child) -> Markup:
    """An element with these children."""
    given = "".join(
        f" {key}" if value is True else f' {key}="{text(_number(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{join(children)}</{name}>")


def join(children: Child) -> Markup:
    """The children one after the other, what is not markup escaped."""
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return text(children)
    return Markup("".join(map(join, children)))


def text(content: str) -> Markup:
    """Escaped text. Bytes of odd file names and control characters, which no page can have, are shown as `\\udc80`."""
    if not content.isprintable():
        content = "".join(each if each.isprintable() or each in " \n\t" else _code(each) for each in content)
    return Markup(escape(content, quote=True))


def isolated(name: str) -> Markup:
    """A name that may be written from right to left; what stands around it keeps its place."""
    return tag("bdi", {}, name)


def _code(character: str) -> str:
    return character if _is_harmless(character) else character.encode("unicode_escape").decode("ascii")


def _is_harmless(character: str) -> bool:
    """Joiners in emoji and scripts, and isolates, are not printable to Python, and needed."""
    return character in "\u200c\u200d\u00a0\u3000\u2068\u2069"


def _number(value: str | int | float) -> str:
    """Coordinates with two digits: a hundredth of a pixel is not seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
