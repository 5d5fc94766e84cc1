"""`promptvit methods`: what a task can be tuned with, and what each would train on a backbone."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import TYPE_CHECKING, Any

from promptvit.backbones.source import BackboneSource
from promptvit.cli.options import add_fields, expand, field_texts, make_parser, option_value, parse
from promptvit.errors import ConfigError

if TYPE_CHECKING:
    from promptvit.methods.base import Preset


def run(arguments: list[str]) -> None:
    """Parse, list or count, print."""
    expanded = expand(arguments)
    parser = make_parser(
        "methods", "List the methods, or the options of one; with --backbone, what each trains there.", "[NAME] "
    )
    parser.add_argument("name", nargs="?", default=None, help="one method, with its options")
    parser.add_argument("--classes", type=int, default=100, help="of a task, for the head's parameters")
    parser.add_argument("--tasks", type=int, default=24, help="how many tasks share the backbone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_fields(parser, "backbone", BackboneSource)
    values = parse(parser, expanded)
    counting = option_value(expanded, "--backbone.name") is not None
    alone = [name for name in ("--classes", "--tasks") if option_value(expanded, name) is not None]
    if alone and not counting:
        raise ConfigError(f"{' and '.join(alone)} without --backbone", expected="a backbone to count on")
    if values["classes"] < 2 or values["tasks"] < 1:
        raise ConfigError(
            f"--classes {values['classes']} --tasks {values['tasks']}", expected="at least 2 classes and 1 task"
        )

    from promptvit.methods import METHODS  # after parsing: help needs no torch

    presets = {name: METHODS[name] for name in ([values["name"]] if values["name"] else METHODS)}
    if counting:
        source = BackboneSource.from_dict(values["backbone"])
        counts = count_all(presets, source, values["classes"], values["tasks"])
        print(json.dumps(counts) if values["json"] else table(counts, source.name, values["classes"], values["tasks"]))
        return
    listed = {name: describe(preset) for name, preset in presets.items()}
    print(json.dumps(listed) if values["json"] else listing(listed, options=bool(values["name"])))


def listing(listed: dict[str, dict[str, Any]], *, options: bool) -> str:
    """A line per method; with `options`, a line per field below it."""
    width = max(map(len, listed))
    lines = []
    for name, method in listed.items():
        lines.append(f"{name:<{width}}  {method['summary']}")
        lines += ["", method["about"], ""] if options else []
        for option in method["options"] if options else ():
            lines.append(f"  --method.{option['name']:<10} {option['help']} (default: {option['default']})")
    if not options:
        lines += ["", "Options of one: promptvit methods NAME; what each trains: promptvit methods --backbone NAME"]
    return "\n".join(lines)


def describe(preset: Preset) -> dict[str, Any]:
    """Summary, fixed fields and options of a registered method."""
    texts, defaults = field_texts(preset.method), preset.method().to_dict()
    return {
        "summary": preset.summary,
        "about": (inspect.getdoc(preset.method) or "").partition("\n\n- ")[0],
        "fixed": preset.fields,
        "options": [
            {"name": field.name, "default": defaults[field.name], "help": texts.get(field.name, "")}
            for field in dataclasses.fields(preset.method)
            if field.name not in preset.fields
        ],
    }


def count_all(presets: dict[str, Preset], source: BackboneSource, classes: int, tasks: int) -> dict[str, Any]:
    """By name: the counts of a method with the fields of its name alone, or why the backbone cannot have it."""
    from promptvit.counting import count, outline

    backbone = outline(source)
    counts: dict[str, Any] = {}
    for name, preset in presets.items():
        try:
            counts[name] = dataclasses.asdict(count(backbone, preset.build(), classes, tasks))
        except ConfigError as error:
            counts[name] = {"refused": str(error)}
    return counts


def table(counts: dict[str, Any], backbone: str, classes: int, tasks: int) -> str:
    """The counts as lines."""
    width = max(map(len, counts))
    lines = [
        f"{backbone}, {classes} classes; each method with its defaults",
        f"{'method':<{width}}  {'trained':>12}  {'of backbone':>11}  {'tuned':>8}  {'delta':>12}  {tasks:>4} tasks",
    ]
    for name, values in counts.items():
        if "refused" in values:
            lines.append(f"{name:<{width}}  {values['refused'].partition(' (in tune)')[0]}")
            continue
        lines.append(
            f"{name:<{width}}  {values['trained']:>12,}  {values['percent_of_backbone']:>9.3f} %  "
            f"{values['tuned_percent']:>6.3f} %  {values['bytes'] / 1024:>8,.0f} KiB  {values['ratio']:>9.4f}x"
        )
    return "\n".join(
        [
            *lines,
            "",
            "trained: parameters, head included; tuned: share of all parameters of the tuned model; delta: file size;",
            f"{tasks} tasks: parameters stored for one backbone and {tasks} such tasks, in units of the backbone",
        ]
    )
