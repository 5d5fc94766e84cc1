import re

import pytest

from promptvit.analysis.figures import COLOURS, draw_curves
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
