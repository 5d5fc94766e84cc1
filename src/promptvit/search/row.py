"""A line of a study's table: a method, and what is the row's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.pruning.config import PruneConfig
from promptvit.search.fields import wrong_settings, wrong_types
from promptvit.search.protocol import Grid, Settings, listed, setting_problems
from promptvit.train.config import RunConfig
from promptvit.train.loop import make_method

BEFORE = ("full", "partial", "bias", "linear", "mlp")
"""Kinds of methods after which nothing but weights of the backbone and a head have changed."""


@dataclass(frozen=True, kw_only=True)
class First:
    """What is tuned before a row's own method, on the same images and with the same seed: full, then prompts; linear,
    then full. The row starts from the backbone weights that it trains, and from its head.

    - `fields`: the method's name and its own fields; one that trains the head alone, or weights of the backbone itself.
    - `settings`: of its runs, before those of the protocol; nothing is searched.
    - `head`: the row's head starts as that one (`keep`), or `anew`.
    """

    fields: dict[str, Any]
    settings: Settings = field(default_factory=dict)
    head: Literal["keep", "anew"] = "keep"

    def __post_init__(self) -> None:
        ConfigError.collect(setting_problems(self.settings), "first")
        method = make_method(RunConfig(method=self.fields))
        problems = []
        if self.head not in ("keep", "anew"):
            problems.append(f"head={self.head!r}: expected keep or anew")
        if method.kind not in BEFORE:
            problems.append(
                f"first {self.fields['name']}: it has parameters beside the backbone's; "
                f"expected one of {', '.join(BEFORE)}"
            )
        if method.only_head and self.head == "anew":
            problems.append(f"first {self.fields['name']} with head=anew: nothing of it would be left")
        ConfigError.collect(problems, "first")

    def to_dict(self) -> dict[str, Any]:
        """As in a study file."""
        return {**self.fields, **({"settings": self.settings} if self.settings else {}), "head": self.head}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a study's table.

    - `fields`: the method's name and its own fields, which the search leaves alone; `tasks`: fields that a task has of
      its own.
    - `settings`: of this row's runs, before those of the protocol; its search leaves them alone.
    - `grid`: the row's own values to try, beside what the protocol searches, or in its place: as a change of the
      protocol for this row alone.
    - `first`: what is tuned before.
    - `prune`: fields of `PruneConfig`; the final runs are then pruned, and the pruned runs' figures count.
    """

    label: str
    fields: dict[str, Any]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    grid: Grid = field(default_factory=dict)
    first: First | None = None
    prune: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for task in ("", *self.tasks):
            self.build(task)
        problems = self._setting_problems()
        if self.first is not None and self.prune is not None:
            problems.append("first with prune: a pruned run is made from one run alone")
        ConfigError.collect(problems, f"row {self.label}")
        if self.prune is not None:
            PruneConfig(**self.prune)

    def build(self, task: str) -> dict[str, Any]:
        """The method's name and fields on `task`; raises ConfigError if there is no such method."""
        fields = {**self.fields, **self.tasks.get(task, {})}
        make_method(RunConfig(method=fields))
        kind = METHODS[fields["name"]].method
        given = {name: value for name, value in fields.items() if name != "name"}
        ConfigError.collect(wrong_types("", kind, given), f"row {self.label}")
        return fields

    def _setting_problems(self) -> list[str]:
        """What is wrong with the row's own settings and grid."""
        preset = METHODS[self.fields["name"]]
        fixed = {*self.settings, *(f"method.{name}" for name in (*self.fields, *preset.fields))}
        problems = setting_problems([*self.settings, *self.grid])
        problems += [f"{name} is both fixed and searched" for name in self.grid if name in fixed]
        problems += [f"grid of {name}: expected at least one value" for name, values in self.grid.items() if not values]
        tried = [{name: value} for name, values in self.grid.items() for value in values]
        problems += [each for part in (self.settings, *tried) for each in wrong_settings(preset.method, part)]
        return list(dict.fromkeys(problems))

    def to_dict(self) -> dict[str, Any]:
        """What `row_from` takes."""
        grid = {name: list(values) for name, values in self.grid.items()}
        first = self.first and self.first.to_dict()
        parts = {"tasks": self.tasks, "settings": self.settings, "grid": grid, "first": first}
        given = {name: part for name, part in parts.items() if part}
        return {**self.fields, **given, **({} if self.prune is None else {"prune": self.prune})}


def row_from(label: str, values: Mapping[str, Any]) -> Row:
    """From a study file."""
    parts = {name: values.get(name) or {} for name in ("tasks", "settings")}
    first = None if values.get("first") is None else _first(values["first"])
    grid = {name: listed(each) for name, each in (values.get("grid") or {}).items()}
    own = ("tasks", "settings", "grid", "first", "prune")
    fields = {name: value for name, value in values.items() if name not in own}
    return Row(label=label, fields=fields, **parts, grid=grid, first=first, prune=values.get("prune"))


def _first(values: Mapping[str, Any]) -> First:
    fields = {name: value for name, value in values.items() if name not in ("settings", "head")}
    return First(fields=fields, settings=values.get("settings") or {}, head=values.get("head", "keep"))
