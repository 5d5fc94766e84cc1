"""Pictures of analyses, as PNG or SVG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from promptvit.errors import ConfigError
from promptvit.files import write_bytes

if TYPE_CHECKING:
    import matplotlib.axes  # takes a second to import: only when something is drawn
    import matplotlib.figure

FORMATS = ("png", "svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito, 2008), without its yellow, which is faint on white."""
MARKERS = "osD^vPX*"
"""One more than colours, so that lines differ in two ways."""
NAMED_CLASSES = 12
"""A legend has no more than these."""
PALE = "#C4D9EA"
COVER = 0.6
"""How much of a picture is the map over it."""
LEAST = 128
"""Pixels of the longer side of a rendered image, about."""

Curve = Sequence[tuple[int, float]]
"""Epochs, or other whole numbers, and values."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Points [n, 2] with the labels [n] that colour them, a title above and a note below."""

    title: str
    note: str
    points: Float[np.ndarray, "n 2"]
    labels: Int64[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points (x, y) joined by a line, y nan where there is none; those that are `marked` have a ring."""

    name: str
    points: Curve
    colour: str
    style: Literal["-", "--", ":"] = "-"
    marked: Curve = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines under a title, over whole numbers called `x`; `log`: y grows by factors; `zero`: it starts at zero."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log: bool = False
    zero: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Values from 0 to 1 as colours, nan where there is none: at [y, x] that of number y and number x."""

    title: str
    x: str
    y: str
    values: Float[np.ndarray, "Y X"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image [h, w, 3] with values in [0, 1], a map of any size that lies over it, if any, and a title above."""

    title: str
    pixels: Float[np.ndarray, "h w 3"]
    map: Float[np.ndarray, "high wide"] | None = None


def check_format(path: Path) -> str:
    """The format that the ending of `path` names; raises ConfigError for another."""
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise ConfigError(f"a figure called {path.name}", expected=" or ".join(f".{known}" for known in FORMATS))
    return ending


def draw_curves(path: Path, curves: Mapping[str, Curve], label: str, across: str = "epoch") -> None:
    """Writes a picture of values against epochs, a line for each name in `curves`; `label` says what the values are,
    and `across` what they stand against if not epochs.

    Values start at zero. Raises ConfigError for an ending that is no format, and OutputError.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    styles = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    lines = [
        axes.plot(*zip(*curve, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.5)[0]
        for curve, (colour, marker) in zip(curves.values(), styles, strict=False)
    ]
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(lines, [_plain(name) for name in curves], frameon=False)
    _write(figure, path)


def draw_embedding(path: Path, rows: Sequence[tuple[Sequence[str], Sequence[Panel]]], *, disk: bool = False) -> None:
    """Writes a picture of points coloured by class: rows of panels, each row with the names of its classes.

    Up to twelve classes are named beside their row. `disk`: the points lie in the Poincaré disk; its circle is drawn,
    and rings at hyperbolic distances 1, 2, 3 and 4 from the middle. Raises ConfigError for an ending that is no format,
    and OutputError.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(3.3 * columns + 1.2, 3.7 * len(rows)), layout="constrained")
    for (classes, panels), places in zip(rows, figure.subplots(len(rows), columns, squeeze=False), strict=True):
        colours = palette(len(classes))
        for axes, panel in zip(places, panels, strict=False):
            _draw_panel(axes, panel, colours, disk)
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        if len(classes) <= NAMED_CLASSES:
            dots = [Line2D([], [], linestyle="", marker="o", markersize=5, color=colour) for colour in colours]
            legend = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "handletextpad": 0.2}
            places[len(panels) - 1].legend(dots, [_plain(name) for name in classes], frameon=False, **legend)
    _write(figure, path)


def _draw_panel(axes: matplotlib.axes.Axes, panel: Panel, colours: np.ndarray, disk: bool) -> None:
    from matplotlib.patches import Circle

    axes.set_aspect("equal", adjustable="box" if disk else "datalim")
    axes.set(xticks=[], yticks=[])
    axes.set_title(_plain(panel.title), fontsize=11)
    axes.set_xlabel(_plain(panel.note), fontsize=9, color="0.3")
    axes.spines[:].set(visible=not disk, color="0.8")
    if disk:
        axes.add_patch(Circle((0, 0), 1, facecolor="0.98", edgecolor="0.4", clip_on=False, gid="unit circle"))
        for distance in range(1, 5):
            axes.add_patch(Circle((0, 0), np.tanh(distance / 2), fill=False, edgecolor="0.88", linewidth=0.6))
        axes.set(xlim=(-1.01, 1.01), ylim=(-1.01, 1.01))
    size = float(np.clip(6000 / len(panel.points), 5, 20))
    axes.scatter(*panel.points.T, s=size, c=colours[panel.labels], edgecolors="white", linewidths=0.3, zorder=2)


def palette(count: int) -> Float[np.ndarray, "count 3"]:
    """A colour for each of `count` classes."""
    import matplotlib as mpl
    from matplotlib.colors import to_rgb

    if count <= len(COLOURS):
        return np.array([to_rgb(colour) for colour in COLOURS[:count]])
    if count <= 20:
        twins = mpl.colormaps["tab20"](np.arange(20))[:, :3]  # strong and pale in turn
        return np.concatenate([twins[::2], twins[1::2]])[:count]
    return mpl.colormaps["turbo"](np.linspace(0, 1, count))[:, :3]


def draw_masks(path: Path, kept: Bool[np.ndarray, "L P S"], first: int = 1) -> None:
    """Writes a picture of what pruning kept: a row for each block, a cell for each prompt, a stripe for each segment.

    Stripes that are kept are strong, pruned ones pale; a prompt of which nothing is kept is hatched. The legend has
    their shares of all segments. `first`: the number of the first row's block. Raises ConfigError for an ending that is
    no format, and OutputError.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator

    blocks, prompts, segments = kept.shape
    gone = ~kept.any(axis=2)  # [L, P]
    figure = Figure(figsize=(float(np.clip(0.26 * prompts, 5, 13)) + 1, 0.3 * blocks + 1.3), layout="constrained")
    axes = figure.add_subplot()
    edges = np.arange(1, prompts + 1)[:, None] + np.linspace(-0.45, 0.45, segments + 1)  # [P, S+1]
    stripes = np.full((blocks, prompts, segments + 1), 2)  # the last one is the gap between two prompts
    stripes[..., :-1] = kept
    rows, colours = np.arange(blocks + 1) + first - 0.5, ListedColormap([PALE, COLOURS[0], "white"])
    stripes = stripes.reshape(blocks, -1)[:, :-1]
    axes.pcolormesh(edges.ravel(), rows, stripes, cmap=colours, vmin=0, vmax=2, rasterized=True)
    hatched: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.75", "hatch": "////", "linewidth": 0}
    for block, prompt in np.argwhere(gone):
        axes.add_patch(Rectangle((edges[prompt, 0], rows[block]), 0.9, 1, **hatched))
    axes.hlines(rows, 0.5, prompts + 0.5, colors="white", linewidth=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="prompt", ylabel="block", yticks=range(first, first + blocks))
    axes.set(xlim=(0.5, prompts + 0.5), ylim=(rows[-1], rows[0]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    alone = ~kept & ~np.expand_dims(gone, 2)  # segments of prompts that are still there
    shares = {"kept": kept.mean(), "segment pruned": alone.mean(), "prompt pruned": gone.mean()}
    kinds: tuple[dict[str, Any], ...] = ({"color": COLOURS[0]}, {"color": PALE}, hatched)
    figure.legend(
        [Patch(**kind) for kind in kinds],
        [f"{name} ({share:.0%})" for name, share in shares.items()],
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
    _write(figure, path)


def draw_charts(path: Path, rows: Sequence[Sequence[Chart | Grid]], *, shared: bool = False) -> None:
    """Writes a picture of charts and grids in rows, with one legend below; `shared`: charts have the same axes.

    Raises ConfigError for an ending that is no format, and OutputError.
    """
    from matplotlib.figure import Figure

    columns = max(len(panels) for panels in rows)
    figure = Figure(figsize=(3.5 * columns, 3.0 * len(rows) + 0.4), layout="constrained")
    places = figure.subplots(len(rows), columns, squeeze=False, sharex=shared, sharey=shared)
    named: dict[str, Any] = {}
    for panels, places_of_row in zip(rows, places, strict=True):
        for panel, axes in zip(panels, places_of_row, strict=False):
            axes.set_title(_plain(panel.title), fontsize=10)
            axes.set(xlabel=panel.x, ylabel=panel.y)
            axes.tick_params(labelbottom=True, labelleft=True)  # shared axes would have them at the edges alone
            axes.spines[["top", "right"]].set_visible(False)
            if isinstance(panel, Chart):
                named |= _draw_lines(axes, panel)
            else:
                _draw_grid(axes, panel)
        for axes in places_of_row[len(panels) :]:
            axes.set_axis_off()
    for panels, places_of_row in zip(rows, places, strict=True):  # not before all is drawn: axes may be shared
        for panel, axes in zip(panels, places_of_row, strict=False):
            if isinstance(panel, Chart) and panel.zero:
                axes.set_ylim(bottom=0)
    names = [_plain(name) for name in named]
    figure.legend(list(named.values()), names, loc="outside lower center", ncols=columns, frameon=False)
    _write(figure, path)


def _draw_lines(axes: matplotlib.axes.Axes, chart: Chart) -> dict[str, Any]:
    """The lines by their names."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    drawn = {}
    for line in chart.lines:
        places = np.array(line.points, dtype=np.float64)
        style = {"color": line.colour, "linestyle": line.style, "linewidth": 1.5}
        (drawn[line.name],) = axes.plot(*places.T, **style, clip_on=False, zorder=3)  # zeros lie on the axis
        for x, y in line.marked:
            axes.plot(x, y, color=line.colour, marker="o", markersize=8, markerfacecolor="none", zorder=3)
    axes.grid(color="0.9")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    return drawn


def _draw_grid(axes: matplotlib.axes.Axes, grid: Grid) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor("0.85")  # of cells without a value
    cells = axes.pcolormesh(grid.values, vmin=0, vmax=1, cmap="viridis", shading="nearest")
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    bar = axes.figure.colorbar(cells, ax=axes, shrink=0.9)
    bar.outline.set_visible(False)


def draw_tiles(path: Path, rows: Mapping[str, Sequence[Tile]]) -> None:
    """Writes a picture of rows of images, each with its name to the left.

    Under a map the image is grey; each map is scaled from its own lowest value (dark) to its highest (bright). Raises
    ConfigError for an ending that is no format, and OutputError.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(1.5 * columns + 0.4, 1.75 * len(rows)), layout="constrained")
    for (name, tiles), places in zip(rows.items(), figure.subplots(len(rows), columns, squeeze=False), strict=True):
        places[0].set_ylabel(_plain(name))
        for axes, tile in zip(places, tiles, strict=False):
            _draw_tile(axes, tile)
        for axes in places[len(tiles) :]:
            axes.set_axis_off()
    _write(figure, path)


def _draw_tile(axes: matplotlib.axes.Axes, tile: Tile) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(_plain(tile.title), fontsize=9)
    axes.imshow(rendered(tile))


def rendered(tile: Tile) -> UInt8[np.ndarray, "high wide 3"]:
    """The image, or in grey under its map from dark (its lowest value) to bright; a small one is enlarged, so that a
    map of few patches is smooth on it."""
    import matplotlib as mpl
    from PIL import Image

    height, width, _ = tile.pixels.shape
    factor = max(1, LEAST // max(height, width))
    pixels = tile.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    if tile.map is not None:
        spread = np.ptp(tile.map)
        scaled = (tile.map - tile.map.min()) / (spread if spread else 1)
        sides = (width * factor, height * factor)
        smooth = Image.fromarray(scaled.astype(np.float32)).resize(sides, Image.Resampling.BILINEAR)
        colours = mpl.colormaps["inferno"](np.asarray(smooth))[..., :3]
        pixels = (1 - COVER) * pixels.mean(axis=2, keepdims=True) + COVER * colours
    return np.rint(255 * pixels).astype(np.uint8)


def _plain(name: str) -> str:
    """The name as it is: no formulas in names."""
    return name.replace("$", r"\$")


def _write(figure: matplotlib.figure.Figure, path: Path) -> None:
    import matplotlib as mpl

    content = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "hatch.linewidth": 0.6}):  # text stays text
        figure.savefig(content, format=check_format(path), dpi=160)
    write_bytes(path, content.getvalue())
