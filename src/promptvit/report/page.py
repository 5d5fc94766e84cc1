"""The whole document: head, styles and script, navigation, sections."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from promptvit import __version__
from promptvit.report.markup import Child, Markup, isolated, tag

REPORT = "report.html"
"""The file of a report, in the folder of what it reports on."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: `name` in its address, `title` as its heading and in the navigation."""

    name: str
    title: str
    content: Child


def page(title: str, kind: str, lead: Child, sections: Sequence[Section]) -> str:
    """An HTML document that needs nothing but itself.

    Its policy lets browsers load nothing, and run nothing but this style and this script, by their hashes. `kind` says
    of what it reports, `lead` stands before the sections.
    """
    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        {},
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("meta", {"name": "generator", "content": f"promptvit {__version__}"}),
        tag("title", {}, f"{title} · {kind}"),
        tag("style", {}, Markup(style)),
    )
    navigation = [tag("li", {}, tag("a", {"href": f"#{each.name}"}, each.title)) for each in sections]
    body = tag(
        "body",
        {},
        tag("a", {"class": "skip", "href": "#main"}, "Skip to the report"),
        tag(
            "header",
            {},
            tag("p", {"class": "kind"}, kind),
            tag("h1", {}, isolated(title)),
            tag("button", {"type": "button", "id": "theme", "hidden": True}, "Dark"),
        ),
        tag("nav", {"aria-label": "Sections"}, tag("ul", {}, navigation)),
        tag("main", {"id": "main", "tabindex": -1}, lead, [_section(each) for each in sections]),
        tag("footer", {}, tag("p", {}, f"Written by promptvit {__version__}. This file is complete in itself.")),
        tag("script", {}, Markup(script)),
    )
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, head, body)}\n"


def _section(section: Section) -> Markup:
    heading = f"{section.name}-title"
    return tag(
        "section",
        {"id": section.name, "aria-labelledby": heading},
        tag("h2", {"id": heading}, section.title),
        section.content,
    )


def _resource(name: str) -> str:
    return files("promptvit.report").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
