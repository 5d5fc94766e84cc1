import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from promptvit.analysis.figures import (
    COLOURS,
    PALE,
    Chart,
    Grid,
    Line,
    Panel,
    draw_charts,
    draw_curves,
    draw_embedding,
    draw_masks,
    palette,
)
from promptvit.errors import ConfigError

CURVE = [(0, 0.1), (1, 0.3), (2, 0.2)]


def test_every_curve_has_its_name_as_it_is(tmp_path):
    names = ["plain", "_private", "a$b$c", "<&>"]
    draw_curves(tmp_path / "new" / "nmi.svg", dict.fromkeys(names, CURVE), "values")
    text = (tmp_path / "new" / "nmi.svg").read_text()
    assert all(f">{name}</text>" in text for name in ["plain", "_private", "a$b$c", "&lt;&amp;&gt;", "epoch", "values"])


def test_curves_beyond_the_colours_still_differ(tmp_path):
    count = len(COLOURS) + 1
    draw_curves(tmp_path / "nmi.svg", {str(number): [(0, 0.1)] for number in range(count)}, "values")
    text = (tmp_path / "nmi.svg").read_text()
    uses = re.findall(r'<use xlink:href="(#\w+)" .*stroke: (#\w+)("|; stroke-linejoin)', text)  # no ticks of the axes
    drawn = {(marker, colour) for marker, colour, _ in uses}
    assert len(drawn) == count
    assert {colour for _, colour in drawn} == {colour.lower() for colour in COLOURS}


@pytest.mark.parametrize("name", ["nmi", "nmi.pdf", ".svg"])
def test_another_format_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"a figure called {name}; expected .png or .svg")):
        draw_curves(tmp_path / name, {"run": CURVE}, "values")
    assert not list(tmp_path.iterdir())


def panel(count=30, classes=3, title="before"):
    points = np.random.default_rng(0).uniform(-0.7, 0.7, size=(count, 2))
    return Panel(title=title, note="silhouette 0.1", points=points, labels=np.arange(count) % classes)


def groups(path, kind):
    """Ids of an SVG's groups that begin with `kind`."""
    ids = [each.get("id", "") for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}g")]
    return [name for name in ids if name.startswith(kind)]


@pytest.mark.parametrize("disk", [True, False])
def test_panels_have_titles_points_and_the_names_of_classes(disk, tmp_path):
    classes = ["zero", "_one", "a$b$<c>"]
    draw_embedding(tmp_path / "a.svg", [(classes, [panel(), panel(title="x$y$: after")])], disk=disk)
    text = (tmp_path / "a.svg").read_text()
    names = ["before", "x$y$: after", "silhouette 0.1", "zero", "_one", "a$b$&lt;c&gt;"]
    assert all(f">{name}</text>" in text for name in names)
    assert text.count(">zero</text>") == 1
    assert len(groups(tmp_path / "a.svg", "unit circle")) == 2 * disk
    assert not groups(tmp_path / "a.svg", "xtick")
    points = re.findall(r'<use xlink:href="#\w+" x="[\d.]+" y="[\d.]+" style="fill: (#\w+); stroke: #ffffff', text)
    assert len(points) == 60
    assert [points.count(colour.lower()) for colour in COLOURS[:3]] == [20, 20, 20]


def test_a_disk_is_round_and_its_points_are_where_they_belong(tmp_path):
    places = np.array([[0, 0], [0, 0.5], [-0.5, 0]])
    alone = Panel(title="", note="", points=places, labels=np.array([0, 1, 2]))
    draw_embedding(tmp_path / "a.png", [(["a", "b", "c"], [alone])], disk=True)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    (y, x), (top, above), (left_y, left) = (centre(pixels[:, :500], colour) for colour in COLOURS[:3])
    assert above == pytest.approx(x, abs=1.5)
    assert left_y == pytest.approx(y, abs=1.5)
    assert x - left == pytest.approx(y - top, rel=0.03)


def centre(pixels, colour):
    """The middle of all pixels of a colour, down and across."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return np.argwhere((pixels == wanted).all(axis=-1)).mean(axis=0)


def test_rows_of_panels_have_their_own_classes(tmp_path):
    rows = [(["cat", "dog"], [panel(classes=2), panel(classes=2)]), (["oak", "elm", "fir"], [panel()])]
    draw_embedding(tmp_path / "a.svg", rows)
    text = (tmp_path / "a.svg").read_text()
    assert all(f">{name}</text>" in text for name in ("cat", "dog", "oak", "elm", "fir"))
    assert len(groups(tmp_path / "a.svg", "PathCollection")) == 3


@pytest.mark.parametrize("count", [12, 13])
def test_more_than_twelve_classes_are_not_named(count, tmp_path):
    classes = [f"class {number}" for number in range(count)]
    draw_embedding(tmp_path / "a.svg", [(classes, [panel(classes=count)])])
    assert (">class 7<" in (tmp_path / "a.svg").read_text()) is (count == 12)


@pytest.mark.parametrize("count", [2, 7, 8, 20, 21, 200])
def test_each_class_has_a_colour_of_its_own(count):
    colours = palette(count)
    assert colours.shape == (count, 3)
    assert len(np.unique(colours, axis=0)) == count


def test_masks_show_what_is_kept_what_is_pruned_and_what_is_gone(tmp_path):
    kept = np.ones((3, 4, 2), dtype=bool)
    kept[0, 1] = False  # a whole prompt
    kept[2, 3, 0] = False  # a segment
    draw_masks(tmp_path / "a.png", kept)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    strong = (pixels == [int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5)]).all(axis=-1)
    pale = (pixels == [int(PALE[place : place + 2], 16) for place in (1, 3, 5)]).all(axis=-1)
    assert strong.sum() / pale.sum() == pytest.approx(21, rel=0.35)  # beside patches of the legend
    down, across = np.argwhere(pale)[np.argwhere(pale)[:, 0] > 60].mean(axis=0) / pixels.shape[:2]
    assert down > 0.6  # block 3
    assert across > 0.7  # prompt 4


def test_masks_are_labelled_and_pruned_prompts_hatched(tmp_path):
    kept = np.random.default_rng(0).random((12, 50, 16)) > 0.2
    kept[:6, :25] = False
    draw_masks(tmp_path / "a.svg", kept)
    text = (tmp_path / "a.svg").read_text()
    names = ["block", "prompt", "12", "50", "prompt pruned (25%)", "segment pruned (15%)", "kept (60%)"]
    assert all(f">{name}</text>" in text for name in names)
    assert text.count("fill: url(#") == 6 * 25 + 1  # and the legend's
    assert len(text) < 150_000


def test_blocks_of_masks_have_their_numbers(tmp_path):
    draw_masks(tmp_path / "a.svg", np.ones((2, 3, 4), dtype=bool), first=11)
    shown = re.findall(r">(\d+)</text>", (tmp_path / "a.svg").read_text())
    assert shown == ["1", "2", "3", "11", "12"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 16), (12, 1, 3)])
def test_small_masks_are_drawn(shape, tmp_path):
    draw_masks(tmp_path / "a.svg", np.ones(shape, dtype=bool))
    assert not re.search(r">\d+\.\d+</text>", (tmp_path / "a.svg").read_text())  # no half a prompt


def chart(*lines, **more):
    return Chart(title="loss", x="epoch", y="value", lines=lines, **more)


def line(name="a", values=(3.0, 1.0, 2.0), **more):
    return Line(name=name, points=list(enumerate(values)), colour=more.pop("colour", COLOURS[0]), **more)


def test_charts_and_grids_share_a_legend(tmp_path):
    grid = Grid(title="x$y$", x="tuned", y="pretrained", values=np.array([[0.0, 1.0], [np.nan, 0.5]]))
    rows = [[chart(line(), line("b", marked=[(1, 1.0)])), chart(line(), line("c"))], [grid]]
    draw_charts(tmp_path / "a.svg", rows)
    text = (tmp_path / "a.svg").read_text()
    counted = {name: text.count(f">{name}<") for name in ("a", "b", "c", "loss", "x$y$", "tuned")}
    assert counted == {"a": 1, "b": 1, "c": 1, "loss": 2, "x$y$": 1, "tuned": 1}
    assert "nan" not in text.lower()
    assert len(groups(tmp_path / "a.svg", "axes")) == 5  # one is empty, one a bar of colours


def test_a_grid_has_its_first_row_below_and_shows_what_is_missing(tmp_path):
    values = np.array([[0.0, 1.0], [np.nan, 1.0]])
    draw_charts(tmp_path / "a.png", [[Grid(title="", x="", y="", values=values), chart(line())]])
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[:, :400]
    dark, missing = ((pixels == colour).all(axis=-1) for colour in ((68, 1, 84), (217, 217, 217)))
    below, above = np.argwhere(dark).mean(axis=0), np.argwhere(missing).mean(axis=0)
    assert below[0] > above[0] + 50
    assert below[1] == pytest.approx(above[1], abs=30)


@pytest.mark.parametrize("log", [True, False])
def test_charts_with_the_same_axes_keep_their_numbers(log, tmp_path):
    charts = [chart(line(values=(1.0, 10.0)), log=log), chart(line(values=(2.0, 1000.0)), log=log)]
    for shared in (True, False):
        draw_charts(tmp_path / f"{shared}.svg", [charts[:1], charts[1:]], shared=shared)
    texts = [(tmp_path / f"{shared}.svg").read_text() for shared in (True, False)]
    ticks = [sum(len(groups(tmp_path / f"{shared}.svg", f"{axis}tick")) for axis in "xy") for shared in (True, False)]
    assert min(ticks) > 8
    assert texts[0] != texts[1]


def test_charts_from_zero_show_the_highest_value_of_all(tmp_path):
    charts = [chart(line(values=(1.0, 2.0)), zero=True), chart(line(values=(1.0, 900.0)), zero=True)]
    draw_charts(tmp_path / "a.svg", [charts], shared=True)
    text = (tmp_path / "a.svg").read_text()
    assert text.count(">800<") == 2  # ticks of both
