"""Pages of text and tables, as Markdown and as LaTeX."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A title; `level` 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph, or a list of `items`."""

    text: str = ""
    items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text below a header; every row has as many cells. The caption stands above it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows)


Block = Heading | Text | Table


def markdown(blocks: Sequence[Block]) -> str:
    """A page of Markdown."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return "\n".join([*([block.text] if block.text else []), *(f"- {item}" for item in block.items)])
    rows = (block.header, ("---",) * len(block.header), *block.rows)
    lines = ["| " + " | ".join(_flat(cell) for cell in row) + " |" for row in rows]
    return "\n".join([*([block.caption, ""] if block.caption else []), *lines])


def _flat(cell: str) -> str:
    return " ".join(cell.split()).replace("|", r"\|")


def latex(blocks: Sequence[Block]) -> str:
    """What goes between `begin` and `end` of a document, for any engine; needs the packages booktabs and graphicx."""
    return "% needs: \\usepackage{booktabs,graphicx}\n\n" + "\n\n".join(_latex(block) for block in blocks) + "\n"


def _latex(block: Block) -> str:
    if isinstance(block, Heading):
        return rf"\{'section' if block.level == 1 else 'subsection'}*{{{escape(block.text)}}}"
    if isinstance(block, Text):
        items = [r"\begin{itemize}", *(rf"\item {escape(item)}" for item in block.items), r"\end{itemize}"]
        return "\n".join([escape(block.text), *(items if block.items else [])])
    lines = [
        r"\begin{table}[ht]",
        r"\centering",
        rf"\caption{{{escape(block.caption)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'c' * (len(block.header) - 1)}}}",
        r"\toprule",
        _latex_row(block.header),
        r"\midrule",
        *(_latex_row(row) for row in block.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _latex_row(row: tuple[str, ...]) -> str:
    return " & ".join(escape(cell) for cell in row) + r" \\"


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind a row's end it would be a length
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "→": r"$\to$",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Any text as LaTeX. Beyond ASCII, Latin letters stay; what a font may not have becomes `?`."""
    return "".join(SPECIAL.get(c, c if _is_sure(c) else "?") for c in " ".join(text.split()))


def _is_sure(character: str) -> bool:
    return character.isascii() or unicodedata.name(character, "").startswith("LATIN ")
