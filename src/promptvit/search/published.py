"""The papers' own figures, from `published.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from promptvit.data.catalog import FGVC, VTAB

GROUPS = ("natural", "specialized", "structured", "fgvc")
TASKS = {"vtab": tuple(task.name for task in VTAB), "fgvc": tuple(task.name for task in FGVC)}
GROUP_OF = {task.name: task.group for task in (*VTAB, *FGVC)}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a paper's table, in %.

    - `label`: what the paper calls the method; `method`: the registered name and fields, empty for none of ours;
      `lengths`: fields that differ by task; `first`: what is tuned before, as in a study file.
    - `backbone`: as `BackboneSource` has it; `model`: in words.
    - `values`: by task; `means`: by group, as printed.
    - `wins`: tasks of each group that are better than with full fine-tuning, as printed.
    - `total`: size of all tasks in units of the backbone; `tuned`, `shares`: trained share, and that of each task.
    - `protocol`: the shipped one that describes it, None for none; `change`: what the paper did otherwise.
    - `seeds`: number of runs.
    - `verified`: False: from a weak source.
    - `differs`: why nothing here can be like it.
    """

    paper: str
    source: str
    table: str
    label: str
    backbone: dict[str, Any]
    model: str
    method: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, dict[str, Any]] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    wins: dict[str, int] = field(default_factory=dict)
    total: float | None = None
    tuned: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    protocol: str | None = None
    change: dict[str, Any] = field(default_factory=dict)
    seeds: int | None = None
    verified: bool = True
    note: str = ""
    differs: str = ""

    def fields(self, task: str) -> dict[str, Any]:
        """The method's name and fields on `task`, with the lengths published for it."""
        fields = {**self.method}
        for name, values in self.lengths.items():
            if task in values:
                outer, _, inner = name.partition(".")
                fields[outer] = {**fields.get(outer, {}), inner: values[task]} if inner else values[task]
        return fields

    def knows(self, task: str) -> bool:
        """Whether there is a figure of the task, or of its group."""
        return task in self.values or GROUP_OF.get(task) in self.means

    @property
    def reference(self) -> str:
        """Where it stands."""
        return f"{self.source.rpartition(',')[0]}, {self.table}"


@cache
def published() -> tuple[Published, ...]:
    """All rows, in the order of the file."""
    content = yaml.safe_load(files("promptvit.search").joinpath("published.yaml").read_text(encoding="utf-8"))
    return tuple(
        _row(label, {**table, **row}, content["papers"])
        for table in content["tables"]
        for label, row in table["rows"].items()
    )


def _row(label: str, values: dict[str, Any], papers: dict[str, str]) -> Published:
    numbers = {name: _numbers(values.pop(name)) for name in TASKS if name in values}
    tasks = {task: value for name, row in numbers.items() for task, value in _by(TASKS[name], row).items()}
    read = {
        "values": {**tasks, **values.pop("values", {})},
        "means": _by(GROUPS, _numbers(values.pop("means", ""))),
        "wins": {group: int(count) for group, count in _by(GROUPS, _numbers(values.pop("wins", ""))).items()},
        "shares": _by_task(values.pop("shares", {})),
        "lengths": {
            name: {task: int(length) for task, length in _by_task(lengths).items()}
            for name, lengths in values.pop("lengths", {}).items()
        },
    }
    del values["rows"]
    method = values.pop("method") or {}
    return Published(label=label, source=papers[values["paper"]], method=method, **read, **values)


def _by_task(values: dict[str, str]) -> dict[str, float]:
    return {task: number for name, row in values.items() for task, number in _by(TASKS[name], _numbers(row)).items()}


def _numbers(text: str) -> list[float | None]:
    return [None if word == "." else float(word) for word in text.replace("|", " ").split()]


def _by(names: tuple[str, ...], values: list[float | None]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=False) if value is not None}
