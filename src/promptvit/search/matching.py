"""Which published figures a study's figures can stand beside, and why the others cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.methods.spt import SPT
from promptvit.search.protocol import Grid, Protocol, Settings
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.published import GROUP_OF, Published, published
from promptvit.search.results import Cell, Results
from promptvit.train.config import TrainConfig

DEFAULTS = {
    f"{part}.{each.name}": each.default
    for part, config in (("train", TrainConfig), ("data", DataConfig))
    for each in dataclasses.fields(config)
}
EPOCHS = {
    "last": "the last epoch",
    "best-val": "the best epoch on validation images",
    "best-test": "the best epoch on test images",
}
IMAGES = {"train": "the training images alone", "train+val": "training and validation images"}
STATISTICS = {
    "checkpoint": "the checkpoint's statistics",
    "imagenet": "ImageNet's statistics",
    "none": "no normalisation",
}
SAME_WEIGHTS = "_linear_probe"
"""MoCo-v3's file of a linear probe holds the same frozen encoder."""
ANOTHER = "another backbone"
MOST = 4
"""Differences between protocols that are told one by one."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A published row for a cell or a row of a study; `reasons`: why it is not like for like, empty if it is."""

    row: Published
    reasons: tuple[str, ...]

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is of another backbone."""
        return any(each.startswith(ANOTHER) for each in self.reasons)

    @property
    def distance(self) -> tuple[bool, bool, int]:
        """Another backbone is farthest, then training that no protocol describes, then many reasons."""
        return self.is_elsewhere, self.row.protocol is None, len(self.reasons)


def beside(results: Results, row: tuple[str, str]) -> tuple[Match, ...]:
    """The published rows for a row of a study, the closest first; a reason that holds for some tasks names them."""
    cells = [cell for cell in results.cells if (cell.backbone, cell.method) == row]
    protocol = Protocol.from_dict(results.protocol)
    own: dict[str, _Own] = {}  # tasks with the same fields share what is found of the protocol
    tasks: dict[int, dict[str, list[str]]] = {}
    rows: dict[int, Published] = {}
    for cell in cells:
        here = _for_task(protocol, cell.task)
        key = f"{here.name} {sorted(_given(cell.fields).items())}"
        if key not in own:
            own[key] = _Own(cell, here)
        for match in own[key].matches(cell.task):
            rows[id(match.row)] = match.row
            for reason in match.reasons:
                tasks.setdefault(id(match.row), {}).setdefault(reason, []).append(cell.task)
    found = [Match(row=each, reasons=_named(tasks.get(key, {}), each, cells)) for key, each in rows.items()]
    return tuple(sorted(found, key=lambda match: match.distance))


def _named(tasks: dict[str, list[str]], row: Published, cells: list[Cell]) -> tuple[str, ...]:
    known = sum(row.knows(cell.task) for cell in cells)
    return tuple(
        reason if len(names) == known else f"{reason} on {', '.join(names)}" for reason, names in tasks.items()
    )


class _Own:
    """A cell of a study: a method on a backbone under a protocol."""

    def __init__(self, cell: Cell, protocol: Protocol) -> None:
        method = cell.fields
        self.architecture, _, self.pool = cell.backbone.partition(":")
        self.first = cell.first
        self.name, self.fields, self.given = str(method["name"]), _flat(_built(method)), _given(method)
        self.protocol, self.plan, self.problem = protocol, None, ""
        self.compared: dict[str, tuple[set[str], list[str]]] = {}
        try:
            grid = {name: tuple(values) for name, values in cell.grid.items()}
            self.plan = _plan(protocol, self.name, self.architecture, cell.settings, grid)
        except ConfigError as error:
            self.problem = str(error)

    def matches(self, task: str) -> Iterator[Match]:
        """Rows with a figure for `task`."""
        for row in published():
            if row.knows(task) and self.is_method_of(row):
                yield Match(row=row, reasons=tuple(self.reasons(row, task)))

    def is_method_of(self, row: Published) -> bool:
        """Whether both are of one class, agree in what their names stand for, and come after the same."""
        if not row.method or row.first.get("name") != self.first.get("name"):
            return False
        ours, theirs = METHODS[self.name], METHODS[row.method["name"]]
        if ours.method is not theirs.method:
            return False
        fields = _flat(_built(row.method))
        return all(self.fields.get(name) == fields.get(name) for name in _flat({**ours.fields, **theirs.fields}))

    def reasons(self, row: Published, task: str) -> Iterator[str]:
        """Why the row's figure for `task` is not like ours."""
        if row.differs:
            yield row.differs
        yield from self._of_backbone(row)
        if self.first.get("head") == "anew" and "head" not in row.first:
            yield "a new head after what is tuned first (published: not said)"
        if row.protocol is None:
            yield "none of our protocols describes how it was trained"
            yield from self._of_method(row.fields(task), set())
            return
        searched, differences = self._against(_for_task(PROTOCOLS[row.protocol].change(**row.change), task))
        yield from self._of_method(row.fields(task), searched)
        yield from differences

    def _against(self, theirs: Protocol) -> tuple[set[str], list[str]]:
        """The method's fields that another protocol searches, and what differs between it and ours."""
        key = f"{theirs.name} {theirs.changed}"
        if key not in self.compared and self.plan is not None:
            plan = _plan(theirs, self.name, self.architecture)
            self.compared[key] = plan.searched, _shortened(self._of_protocol(self.plan, theirs, plan))
        return self.compared.get(key, (set(), [self.problem]))

    def _of_backbone(self, row: Published) -> Iterator[str]:
        name, pool = row.backbone["name"], row.backbone.get("pool", "")
        if self.architecture.removesuffix(SAME_WEIGHTS) != name.removesuffix(SAME_WEIGHTS):
            yield f"{ANOTHER}: {row.model}"
        elif self.pool != pool:
            yield f"pool {self.pool or 'none'} (published: {pool or 'none'})"

    def _of_method(self, published: dict[str, Any], searched: set[str]) -> Iterator[str]:
        """Fields that differ; those that a search finds have no value of their own."""
        ours, theirs, fixed = self.fields, _flat(_built(published)), _given(published)
        for name in dict.fromkeys((*ours, *theirs)):
            if self.plan and name in self.plan.searched and name not in self.given:
                continue
            if name in searched and name in self.given and name not in fixed:
                yield f"{name} fixed at {_word(ours.get(name))} (published: searched)"
            elif ours.get(name) != theirs.get(name):
                yield f"{name} {_word(ours.get(name))} (published: {_word(theirs.get(name))})"

    def _of_protocol(self, own: _Plan, theirs: Protocol, plan: _Plan) -> Iterator[str]:
        """What differs for this method on this backbone, whatever the two protocols are called."""
        ours = self.protocol
        for name in dict.fromkeys((*own.settings, *plan.settings)):
            here, there = (each.settings.get(name, DEFAULTS.get(name)) for each in (own, plan))
            if here != there and name not in own.varied | plan.varied:
                yield _setting(name, here, there)
        here, there = (each.distinct(self.given) for each in (own, plan))
        if here != there:
            others = ", others" if len(here) == len(there) else ""
            yield f"{len(here)} points searched (published: {len(there)}{others})"
        if ours.epoch != theirs.epoch:
            yield f"{EPOCHS[ours.epoch]} (published: {EPOCHS[theirs.epoch]})"
        if ours.retrain != theirs.retrain:
            yield f"final runs on {IMAGES[ours.retrain]} (published: {IMAGES[theirs.retrain]})"
        if len(ours.seeds) != len(theirs.seeds):
            yield f"seeds: {len(ours.seeds)} (published: {len(theirs.seeds)})"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a protocol has for a method on a backbone: settings, and the points of its search."""

    settings: Settings
    points: list[Settings]

    @property
    def varied(self) -> set[str]:
        """Settings that the search sets."""
        return {name for point in self.points for name in point}

    @property
    def searched(self) -> set[str]:
        """The method's fields among them."""
        return {name.removeprefix("method.") for name in self.varied if name.startswith("method.")}

    def distinct(self, given: dict[str, Any]) -> set[tuple]:
        """The points that go with what a row fixes, without it."""
        fixed = {f"method.{name}": value for name, value in given.items()}
        fitting = [each for each in self.points if all(each[name] == fixed[name] for name in each if name in fixed)]
        return {
            tuple(sorted((name, value) for name, value in point.items() if name not in fixed))
            for point in fitting or self.points
        }


def _plan(
    protocol: Protocol, method: str, backbone: str, settings: Settings | None = None, grid: Grid | None = None
) -> _Plan:
    """With a row's own `settings` and `grid`; raises ConfigError if the protocol has nothing for the method."""
    settings = settings or {}
    recipe = protocol.recipe(method, backbone).change(settings=settings, grid=grid)
    points = recipe.points(METHODS[method].method.learning_rate)
    return _Plan(settings={**protocol.settings, **recipe.settings, **settings}, points=points)


def _for_task(protocol: Protocol, task: str) -> Protocol:
    """The protocol of FGVC tasks may be another one, changed likewise."""
    if GROUP_OF.get(task) != "fgvc" or protocol.fgvc is None:
        return protocol
    changed = protocol.changed
    return PROTOCOLS[protocol.fgvc].change(
        settings=changed.get("settings"),
        grid=changed.get("grid"),
        seeds=tuple(changed.get("seeds", ())),
        epoch=changed.get("epoch"),
        retrain=changed.get("retrain"),
    )


def _shortened(reasons: Iterator[str]) -> list[str]:
    told = list(reasons)
    more = len(told) - MOST
    return [*told[:MOST], *([f"{more} more differences of the protocol"] if more > 0 else [])]


def _setting(name: str, ours: Any, theirs: Any) -> str:
    if name == "data.normalisation":
        return f"published with {STATISTICS[theirs]}, here {STATISTICS[ours]}"
    return f"{name} {_word(ours)} (published: {_word(theirs)})"


def _word(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _built(method: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of the method."""
    built = METHODS[method["name"]].build(**{n: v for n, v in method.items() if n not in ("name", "prune")})
    length = {"length": built.vpt.length} if isinstance(built, SPT) else {}  # null stands for the paper's
    return {**built.to_dict(), **length}


def _given(method: Mapping[str, Any]) -> dict[str, Any]:
    return _flat({name: value for name, value in method.items() if name != "name"})


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
