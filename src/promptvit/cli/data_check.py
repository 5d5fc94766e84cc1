"""`promptvit data check ANY`: what is wrong, with task, file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptvit.cli.data import Bar
from promptvit.cli.options import make_parser, parse
from promptvit.errors import ConfigError, DataError
from promptvit.registry import nearest

if TYPE_CHECKING:
    from promptvit.data.check import Finding

KINDS_HELP = "kinds of problems to accept, by commas: sizes,duplicates"


def run(arguments: list[str]) -> None:
    """Parse, check, print; raises DataError if there are problems."""
    parser = make_parser(
        "data check",
        "Read every list and every image of a task, of a folder of tasks, or of vtab-1k or fgvc as prepared, and say "
        "what is wrong. Exit code 1 if there are problems; notes are no problems.",
        "ANY ",
    )
    parser.add_argument("source", metavar="ANY", help="vtab-1k, fgvc, a folder, hf:NAME or webdataset:PATTERN")
    parser.add_argument("--allow", type=str, default="", help=KINDS_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)

    from promptvit.data.check import allow, check, problems  # after parsing: help needs no torch

    allowed = kinds(values["allow"])
    with Bar() as bar:
        found = allow(check(values["source"], bar), allowed)
    if values["json"]:
        print(json.dumps({"source": values["source"], "findings": [each.to_dict() for each in found]}))
    else:
        print(listing(found) or f"{values['source']}: nothing found")
    refuse(values["source"], problems(found))


def kinds(text: str) -> list[str]:
    """The kinds of problems in `--allow`."""
    from promptvit.data.check import KINDS

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            close = nearest(name, KINDS, count=1)
            hint = f"Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"--allow {name}", expected=f"some of {', '.join(KINDS)}", fix=hint)
    return names


def listing(findings: Sequence[Finding]) -> str:
    """A line for each, problems first."""
    ordered = sorted(findings, key=lambda finding: finding.severity == "note")
    return "\n".join(f"{finding.severity:<7}  {finding.kind:<10}  {finding}" for finding in ordered)


def refuse(source: str, found: Sequence[Finding]) -> None:
    """Raise DataError for problems: what they are was printed."""
    if found:
        named = ",".join(dict.fromkeys(finding.kind for finding in found))
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        raise DataError(
            f"{count} in {source}, the first: {found[0]}", fix=f"Mend them, or accept them: --allow {named}"
        )
