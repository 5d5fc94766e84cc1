import pytest

from promptvit.report.markup import Markup, isolated, join, tag, text


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", {}, "<b>&\"'") == "<p>&lt;b&gt;&amp;&quot;&#x27;</p>"
    assert tag("p", {}, Markup("<b>x</b>")) == "<p><b>x</b></p>"
    assert tag("p", {}, ["a", [tag("br", {}), "<"]]) == "<p>a<br>&lt;</p>"
    assert isinstance(join(["a", "b"]), Markup)


def test_attributes_are_escaped_left_out_or_bare():
    given = {"title": '"><script>', "open": True, "hidden": False, "class": None, "x": 1.0, "y": 2.345}
    assert tag("a", given) == '<a title="&quot;&gt;&lt;script&gt;" open x="1" y="2.35"></a>'


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\udc80", "\\udc80"),  # a byte of a file name that is no UTF-8
        ("a\x00b\x1b", "a\\x00b\\x1b"),
        ("\u202egnp", "\\u202egnp"),  # would turn the rest of the line round
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("שלום", "שלום"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_no_page_can_have_is_shown_as_its_code(name, shown):
    assert text(name) == shown
    text(name).encode()


def test_names_keep_their_direction_to_themselves():
    assert isolated("שלום") == "<bdi>שלום</bdi>"
