"""`promptvit bench`: tasks x methods x seeds as one study, and its tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.cli.options import command_line, make_parser, parse
from promptvit.cli.studies import add_study_options, run_study, study_values
from promptvit.errors import ConfigError

if TYPE_CHECKING:
    from promptvit.search.plan import StudyPlan

METHODS = "linear,vpt-shallow,vpt-deep,full"
IN_FILE = ("methods", "backbone", "protocol", "sampler", "trials", "range", "pruner")
"""Options that a study file has in their place."""


def run(arguments: list[str]) -> None:
    """Parse, do what is missing, print the tables."""
    parser = make_parser(
        "bench",
        "Every method on every task under one protocol: settings chosen on validation, test figures of several seeds, "
        "with intervals, tests and published numbers. The same command goes on with a study that was stopped.",
        "[DATA...] ",
    )
    parser.add_argument(
        "data", nargs="*", metavar="DATA", help="vtab-1k, fgvc, a folder of tasks, or one task (an image folder too)"
    )
    parser.add_argument(
        "--config",
        nargs="*",
        default=[],
        metavar="FILE",
        help="study files (recipes/), as one study; DATA takes the place of theirs",
    )
    parser.add_argument("--methods", default=METHODS, help=f"names between commas (default: {METHODS})")
    parser.add_argument("--tasks", type=str | None, default=None, help="names between commas; all by default")
    parser.add_argument("--backbone", default="vit_pico", help="a name; a study file can have several")
    parser.add_argument(
        "--table", action="store_true", help="run nothing: write the tables of what is done, here or in --adopt"
    )
    parser.add_argument(
        "--page",
        type=str | None,
        default=None,
        help="also write the tables to this Markdown file, whose `## Reading` stays, and the figures beside it as JSON",
    )
    parser.add_argument("--dry", action="store_true", help="build every run and do one step on a tiny backbone")
    add_study_options(parser, "quick")
    values = parse(parser, arguments)

    typed = [f"--{name}" for name in IN_FILE if values[name] != parser.get_default(name)]
    if values["config"] and typed:
        raise ConfigError(f"--config with {', '.join(typed)}", expected="one of the two: the study file says it")
    plans = [from_file(Path(name), values) for name in values["config"]] or [typed_plan(values)]
    if values["dry"]:
        from promptvit.search.dry import dry_run

        lines = [line for plan in plans for line in dry_run(plan)]
        print(json.dumps(lines) if values["json"] else "\n".join(lines))
        return
    from promptvit.search.tables import markdown_page

    plan = joined(plans)
    folder = Path(values["out"] or Path("runs", plan.name))
    results = run_study(plan, folder, values, command_line("bench", arguments))
    print(json.dumps(results.to_dict(), ensure_ascii=False) if values["json"] else markdown_page(results))


def typed_plan(values: dict) -> StudyPlan:
    """The study that the options describe."""
    from promptvit.search.plan import StudyPlan

    if not values["data"]:
        raise ConfigError("no DATA", expected="vtab-1k, fgvc, a folder, or --config STUDY.yaml")
    return StudyPlan.from_dict(
        {
            "name": "-".join(Path(source).name for source in values["data"]),
            "data": values["data"],
            "tasks": values["tasks"].split(",") if values["tasks"] else None,
            "backbones": [{"name": values["backbone"]}],
            "rows": {name: {"name": name} for name in values["methods"].split(",")},
            **study_values(values),
        }
    )


def from_file(path: Path, values: dict) -> StudyPlan:
    """The study in a file, with what was typed beside it: data, tasks, changes of its protocol, and the device."""
    from promptvit.search.plan import StudyPlan

    plan, typed = StudyPlan.read(path), study_values(values)
    change = {name: typed["change"].get(name) for name in ("settings", "grid", "seeds", "epoch", "retrain")}
    content = {**plan.to_dict(), "change": change}
    for row in content["rows"].values():  # what is typed is for every run
        own, given = row.pop("settings", {}), {**(change["settings"] or {}), **(change["grid"] or {})}
        row["settings"] = {name: value for name, value in own.items() if name not in given}
    if values["tasks"]:
        content["tasks"] = values["tasks"].split(",")
    if values["data"]:
        content["data"] = values["data"]
    if values["device"] != "auto":
        content["device"] = values["device"]
    return StudyPlan.from_dict(content)


def joined(plans: list[StudyPlan]) -> StudyPlan:
    """One study with the rows of all; raises ConfigError if they differ in anything else."""
    first = plans[0]
    for plan in plans[1:]:
        if dataclasses.replace(plan, name=first.name, rows=first.rows) != first:
            raise ConfigError(
                f"{first.name} and {plan.name} differ in more than their rows",
                expected="the same data, backbones and protocol, since their figures stand in one table",
                fix="Run them one by one",
            )
    if len(plans) == 1:
        return first
    return dataclasses.replace(
        first, name=f"{first.name}-and-{len(plans) - 1}-more", rows=tuple(row for plan in plans for row in plan.rows)
    )
