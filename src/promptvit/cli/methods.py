"""`promptvit methods`: what a task can be tuned with."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

from promptvit.cli.options import field_texts, make_parser, parse


def run(arguments: list[str]) -> None:
    """Parse, list, print."""
    parser = make_parser("methods", "List the methods, or the options of one.", "[NAME] ")
    parser.add_argument("name", nargs="?", default=None, help="one method, with its options")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)

    from promptvit.methods import METHODS  # after parsing: help needs no torch

    names = [values["name"]] if values["name"] else list(METHODS)
    listed = {name: describe(METHODS[name]) for name in names}
    if values["json"]:
        print(json.dumps(listed))
        return
    for name, method in listed.items():
        print(f"{name:<12}  {method['summary']}")
        for option in method["options"] if values["name"] else ():
            print(f"  --method.{option['name']:<10} {option['help']} (default: {option['default']})")
    if not values["name"]:
        print("\nOptions of one: promptvit methods NAME")


def describe(preset: Any) -> dict[str, Any]:
    """Summary, fixed fields and options of a registered method."""
    texts = field_texts(preset.method)
    return {
        "summary": preset.summary,
        "about": (inspect.getdoc(preset.method) or "").splitlines()[0],
        "fixed": preset.fields,
        "options": [
            {"name": field.name, "default": field.default, "help": texts.get(field.name, "")}
            for field in dataclasses.fields(preset.method)
            if field.name not in preset.fields
        ],
    }
