"""What a study is made of: tasks, methods and a protocol, and the configuration of every run that follows from them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from promptvit.backbones.source import BackboneSource
from promptvit.data.catalog import BENCHMARKS
from promptvit.data.collection import open_collection
from promptvit.data.config import DataConfig
from promptvit.data.load import load_task
from promptvit.errors import ConfigError, DataError
from promptvit.methods import METHODS
from promptvit.methods.base import Preset
from promptvit.registry import unknown
from promptvit.search.fields import PARTS, field_types, is_integer, wrong_settings
from promptvit.search.keys import run_key
from promptvit.search.protocol import Grid, Protocol, Recipe, Settings, combinations, listed, setting_problems
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.row import Row, row_from
from promptvit.train.config import Device, RunConfig
from promptvit.train.loop import make_method

Sampler = Literal["grid", "random", "tpe"]
Pruner = Literal["none", "median", "asha"]
Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How points are chosen. Raises ConfigError with all problems at once.

    - `sampler`: the whole `grid` of the protocol; `random` points of it; or `tpe` (tree-structured Parzen estimator).
    - `trials`: points of random and tpe.
    - `ranges`: settings that random and tpe draw between two numbers, on a logarithmic scale, in place of the grid's.
    - `pruner`: `median` stops a run whose validation accuracy after an epoch is below the median of those before it,
      `asha` (asynchronous successive halving) keeps the best third at growing budgets.
    """

    sampler: Sampler = "grid"
    trials: int = 20
    ranges: Ranges = field(default_factory=dict)
    pruner: Pruner = "none"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(choices))}"
            for name, choices in (("sampler", Sampler), ("pruner", Pruner))
            if getattr(self, name) not in get_args(choices)
        ]
        if self.trials < 1:
            problems.append(f"trials={self.trials}: expected at least 1")
        if self.sampler == "grid" and self.ranges:
            problems.append(f"ranges of {', '.join(self.ranges)} with sampler=grid: a grid has values, not ranges")
        problems += [
            f"range {name}={low}:{high}: expected two numbers above 0, the smaller first"
            for name, (low, high) in self.ranges.items()
            if not 0 < low < high < math.inf
        ]
        problems += setting_problems(self.ranges)
        ConfigError.collect(problems, "SearchConfig")


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """A task of a study: its name, its group (or empty), and what `data.source` is for it."""

    name: str
    group: str
    source: str


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study: every row on every backbone and task, under one protocol.

    - `data`: collections (`vtab-1k`, `fgvc`, a folder of tasks), or whatever `data.source` can be.
    - `tasks`: names of those to run; None is all.
    """

    name: str
    data: tuple[str, ...]
    rows: tuple[Row, ...]
    protocol: Protocol
    tasks: tuple[str, ...] | None = None
    backbones: tuple[BackboneSource, ...] = (BackboneSource(),)
    search: SearchConfig = SearchConfig()
    device: Device = "auto"

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        problems = [f"row {label!r} twice" for label in dict.fromkeys(labels) if labels.count(label) > 1]
        if not self.rows:
            problems.append("no rows: expected at least one method")
        if not self.data:
            problems.append("no data: expected a collection or a task")
        for what, names in (("data", self.data), ("backbone", [_backbone_label(each) for each in self.backbones])):
            problems += [f"{what} {name} twice" for name in dict.fromkeys(names) if list(names).count(name) > 1]
        ConfigError.collect(problems, f"study {self.name}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudyPlan:
        """From a study file; raises ConfigError for what it does not know."""
        known = {"name", "data", "tasks", "backbones", "rows", "protocol", "change", "search", "device"}
        if wrong := sorted(set(values) - known):
            raise ConfigError(f"{', '.join(wrong)} in a study", expected=f"some of {', '.join(sorted(known))}")
        try:
            protocol = values.get("protocol", "quick")
            protocol = PROTOCOLS[protocol] if isinstance(protocol, str) else Protocol.from_dict(protocol)
            change = values.get("change") or {}
            search = dict(values.get("search") or {})
            ranges = (search.get("ranges") or {}).items()
            search["ranges"] = {name: (float(low), float(high)) for name, (low, high) in ranges}
            return cls(
                name=str(values["name"]),
                data=_strings(values["data"]),
                rows=tuple(row_from(str(label), fields) for label, fields in values["rows"].items()),
                protocol=protocol.change(**_change(change)) if change else protocol,
                tasks=None if values.get("tasks") is None else _strings(values["tasks"]),
                backbones=tuple(BackboneSource.from_dict(each) for each in values.get("backbones") or [{}]),
                search=SearchConfig(**search),
                device=values.get("device", "auto"),
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"not a study: {error!r}", expected="name, data, rows and protocol") from None

    @classmethod
    def read(cls, path: Path) -> StudyPlan:
        """From a YAML file."""
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{path} cannot be read: {' '.join(str(error).split())}", expected="a YAML file"
            ) from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no mapping", expected="name, data, rows and protocol")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, complete."""
        return {
            "name": self.name,
            "data": list(self.data),
            "tasks": None if self.tasks is None else list(self.tasks),
            "backbones": [dataclasses.asdict(backbone) for backbone in self.backbones],
            "rows": {row.label: row.to_dict() for row in self.rows},
            "protocol": _plain(self.protocol.to_dict()),
            "search": _plain(dataclasses.asdict(self.search)),
            "device": self.device,
        }

    def cells(self) -> list[CellPlan]:
        """Every row on every backbone and task, task by task, so that a worker's images stay the same for long.

        Raises ConfigError for tasks that are not there or have one name, for methods without a recipe, and for what a
        run would be refused for.
        """
        found = [task for source in self.data for task in find_tasks(source)]
        names = [task.name for task in found]
        if twice := [task for task in found if names.count(task.name) > 1]:
            raise ConfigError(
                f"{len(twice)} tasks called {twice[0].name}: {', '.join(task.source for task in twice)}",
                expected="each name once: tasks are told apart by it",
                where=f"study {self.name}",
            )
        self._check_rows(names)
        tasks = self._tasks(found)
        protocols = {task.group: self.protocol_of(task.group) for task in tasks}
        cells = [
            CellPlan(study=self, task=task, backbone=backbone, row=row, protocol=protocols[task.group])
            for task, backbone, row in itertools.product(tasks, self.backbones, self.rows)
        ]
        for cell in {
            (each.backbone, each.row.label, each.protocol.name, repr(each.fields)): each for each in cells
        }.values():
            cell.check()
        self._check_reach(cells)
        return cells

    def _check_rows(self, tasks: Sequence[str]) -> None:
        """Raise ConfigError for a row with fields for a task that is neither there nor in a benchmark."""
        known = [*tasks, *(info.name for benchmark in BENCHMARKS.values() for info in benchmark)]
        for name in dict.fromkeys(name for row in self.rows for name in row.tasks):
            if name not in known:
                raise unknown("task", name, known, f"Here: {', '.join(tasks)}")

    def _check_reach(self, cells: Sequence[CellPlan]) -> None:
        """Raise ConfigError for a setting that somebody has asked for and no row would take."""
        changed = self.protocol.changed
        for name in dict.fromkeys([*changed.get("settings", ()), *changed.get("grid", ()), *self.search.ranges]):
            if not any(cell.follows(name) for cell in cells):
                raise ConfigError(
                    f"setting {name}: every row lacks it or has a value of its own", where=f"study {self.name}"
                )

    def protocol_of(self, group: str) -> Protocol:
        """The protocol of tasks of a group."""
        if group != "fgvc" or self.protocol.fgvc is None:
            return self.protocol
        return PROTOCOLS[self.protocol.fgvc].change(**_change(self.protocol.changed))

    def _tasks(self, found: list[StudyTask]) -> list[StudyTask]:
        if self.tasks is None:
            return found
        by_name = {task.name: task for task in found}
        for name in self.tasks:
            if name not in by_name:
                raise unknown("task", name, by_name, f"There: {', '.join(by_name)}")
        return [by_name[name] for name in self.tasks]


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """A row on a backbone and a task."""

    study: StudyPlan
    task: StudyTask
    backbone: BackboneSource
    row: Row
    protocol: Protocol

    def __post_init__(self) -> None:
        if self.row.prune is not None and self.protocol.retrain == "train+val":
            raise ConfigError(
                f"row {self.row.label} with prune, and final runs on train+val",
                expected="retrain: train, so that validation images can choose the masks",
                where=f"protocol {self.protocol.name}",
            )

    @property
    def name(self) -> str:
        """Of its part of the record."""
        return "/".join([self.study.name, self.task.name, self.backbone_label, self.row.label])

    @property
    def backbone_label(self) -> str:
        """What tables call the backbone: its name, and how it is read if that is not its own way."""
        return _backbone_label(self.backbone)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The method's name and fields, before the search."""
        return self.row.build(self.task.name)

    @cached_property
    def preset(self) -> Preset:
        """The registered method."""
        return METHODS[self.fields["name"]]

    @cached_property
    def grids(self) -> list[Grid]:
        """What is searched, without settings that the row fixes or the method lacks.

        A value that the row fixes takes what goes with it in the grid: VPT's batch size depends on the length.
        """
        fixed = {**{f"method.{name}": value for name, value in self.fields.items()}, **self.row.settings}
        every = self.recipe.searched(self.preset.method.learning_rate)
        agreeing = [
            grid for grid in every if all(fixed.get(name, values[0]) in values for name, values in grid.items())
        ]
        found = [{name: v for name, v in grid.items() if self._is_free(name)} for grid in agreeing or every]
        return list({json.dumps(grid, sort_keys=True): grid for grid in found}.values())

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float] | tuple[int, int]]:
        """What is drawn between two numbers; two integers for a setting that is one."""
        kinds = {name: self._hint(name) for name in self.study.search.ranges if self.follows(name)}
        bounds = {name: self.study.search.ranges[name] for name in kinds}
        return {
            name: (math.ceil(low), math.floor(high)) if kinds[name] is int else (low, high)
            for name, (low, high) in bounds.items()
        }

    def points(self) -> list[Settings]:
        """What a grid search tries, each once."""
        return combinations(self.grids)

    def check(self) -> None:
        """Raise ConfigError for whatever would stop the study in its middle: every value, not every combination."""
        points = self.points()
        if self.study.search.sampler != "grid":
            points += [{**points[0], name: bound} for name, bounds in self.ranges.items() for bound in bounds]
        by_value = {item: point for point in reversed(points) for item in point.items()}
        for point in [points[0], *by_value.values()]:
            self.config(point, seed=self.protocol.search_seed, final=False)
        for seed in self.protocol.seeds:
            self.config(points[0], seed=seed, final=True)

    def config(self, settings: Settings, *, seed: int, final: bool) -> RunConfig:
        """The run with these `settings` of the search; the final ones are trained on what the protocol says."""
        merged = {**self.protocol.settings, **self.recipe.settings, **settings, **self.row.settings}
        merged = {name: value for name, value in merged.items() if self.takes(name)}
        parts: dict[str, dict[str, Any]] = {
            "data": {"source": self.task.source},
            "backbone": dataclasses.asdict(self.backbone),
            "method": json.loads(json.dumps(self.fields)),
            "train": {"device": self.study.device, "seed": seed},
        }
        for name, value in merged.items():
            part, *path = name.split(".")
            target = parts[part]
            for key in path[:-1]:
                target = target.setdefault(key, {})
            target[path[-1]] = value
        if self.takes("method.seed"):  # a method that draws from the task's images: final runs draw anew
            parts["method"]["seed"] = seed
        if final and self.protocol.retrain == "train+val":
            parts["data"]["train_on"] = "train+val"
        if self.protocol.epoch == "best-test" or (final and self.protocol.epoch != "last"):
            parts["train"]["test"] = "every-epoch"
        ConfigError.collect(wrong_settings(self.preset.method, merged), f"protocol {self.protocol.name}")
        first = self.first(seed=seed, final=final)
        if first is not None and self.row.first is not None:  # a worker knows where; the name is what a run's key has
            folder = run_key(first)
            if not make_method(first).only_head:
                parts["backbone"]["tuned"] = folder
            if self.row.first.head == "keep":
                parts["train"]["head_from"] = folder
        for part, values in parts.items():  # 1 and 1.0 are one run, with one key
            types = field_types(self._kind(part))
            parts[part] = {
                name: float(value) if type(value) is int and not is_integer(types.get(name)) else value
                for name, value in values.items()
            }
        config = RunConfig.from_dict(parts)
        make_method(config)
        return config

    def first(self, *, seed: int, final: bool) -> RunConfig | None:
        """The run before one of this cell's; None if there is none."""
        first = self.row.first
        if first is None:
            return None
        row = Row(label=f"{self.row.label}, first", fields=first.fields, settings=first.settings)
        return dataclasses.replace(self, row=row).config({}, seed=seed, final=final)

    @cached_property
    def recipe(self) -> Recipe:
        """What the protocol has for this method on this backbone, with the row's own grid."""
        return self.protocol.recipe(self.fields["name"], self.backbone.name).change(grid=self.row.grid)

    def _kind(self, part: str) -> type:
        return PARTS.get(part, self.preset.method)

    def _hint(self, name: str) -> Any:
        part, _, field = name.partition(".")
        return field_types(self._kind(part)).get(field)

    def _is_free(self, name: str) -> bool:
        """Whether the search has a say in a setting."""
        return self.takes(name) and name not in self.row.settings

    def follows(self, name: str) -> bool:
        """Whether the study has a say in a setting: the row has neither a value nor a grid of its own for it."""
        return self._is_free(name) and name not in self.row.grid

    def takes(self, name: str) -> bool:
        """Whether there is such a setting, or the method has a field for it that the row does not fix."""
        part, _, rest = name.partition(".")
        if part != "method":
            return True
        outer, _, inner = rest.partition(".")
        method = self.preset.method
        names = {each.name for each in dataclasses.fields(method)}
        if outer not in names or outer in self.preset.fields:
            return False
        given = self.fields.get(outer)
        if not inner:
            return outer not in self.fields
        return outer not in self.fields or (isinstance(given, dict) and inner not in given)


def find_tasks(source: str) -> list[StudyTask]:
    """The tasks of a collection, or the only one of another source; raises DataError if there is none."""
    try:
        return [
            StudyTask(name=task.name, group=task.group, source=str(task.folder))
            for task in open_collection(source).tasks
        ]
    except DataError as error:
        if source in BENCHMARKS:
            raise
        try:
            load_task(DataConfig(source=source))
        except DataError:
            raise error from None
        return [StudyTask(name=Path(source).name or source, group="", source=source)]


def slug(label: str) -> str:
    """A label as a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", label).strip("._") or "row"


def _backbone_label(backbone: BackboneSource) -> str:
    return backbone.name if backbone.pool is None else f"{backbone.name}:{backbone.pool}"


def _change(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Protocol.change`, from YAML or from what was `changed`."""
    arguments = dict(values)
    if arguments.get("grid"):
        arguments["grid"] = {name: listed(each) for name, each in arguments["grid"].items()}
    if arguments.get("seeds"):
        arguments["seeds"] = listed(arguments["seeds"])
    return arguments


def _strings(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))
