"""Pictures of analyses, as PNG or SVG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from promptvit.errors import ConfigError
from promptvit.files import write_bytes

FORMATS = ("png", "svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito, 2008), without its yellow, which is faint on white."""
MARKERS = "osD^vPX*"
"""One more than colours, so that lines differ in two ways."""

Curve = Sequence[tuple[int, float]]
"""Epochs and values."""


def check_format(path: Path) -> str:
    """The format that the ending of `path` names; raises ConfigError for another."""
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise ConfigError(f"a figure called {path.name}", expected=" or ".join(f".{known}" for known in FORMATS))
    return ending


def draw_curves(path: Path, curves: Mapping[str, Curve], label: str) -> None:
    """Writes a picture of values against epochs, a line for each name in `curves`; `label` says what the values are.

    Values start at zero. Raises ConfigError for an ending that is no format, and OutputError.
    """
    import matplotlib as mpl  # takes a second: only when something is drawn
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    styles = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    lines = [
        axes.plot(*zip(*curve, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.5)[0]
        for curve, (colour, marker) in zip(curves.values(), styles, strict=False)
    ]
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(lines, [name.replace("$", r"\$") for name in curves], frameon=False)  # no formulas in names
    content = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(content, format=check_format(path), dpi=160)
    write_bytes(path, content.getvalue())
