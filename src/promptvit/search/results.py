"""What a study knows: plain values, from which its tables and its report are made. Accuracies are shares in [0, 1]."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptvit.errors import DataError
from promptvit.files import read_json

RESULTS = "results.json"
"""In the folder of a study."""
State = Literal["complete", "pruned", "failed", "running", "waiting"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a search.

    - `settings`: by dotted names, such as `train.learning_rate`.
    - `val_top1`: the accuracy that chooses, on validation images (on test images with `compat_peek`); None if there is
      none.
    - `reason`: why it failed.
    - `folder`: of its run, relative to the study's.
    """

    settings: dict[str, Any]
    state: State
    val_top1: float | None = None
    seconds: float = 0.0
    reason: str = ""
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class Final:
    """One run with the chosen settings, whose test figures count.

    - `test_top1`: after the epoch that the protocol's rule names; None if the task has no test images.
    - `folder`: of the run, relative to the study's.
    """

    seed: int
    val_top1: float | None
    test_top1: float | None
    trained_parameters: int
    trained_percent: float
    delta_bytes: int
    seconds: float
    folder: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A task and a method: its search and its final runs.

    - `group`: of the task (natural, specialized, structured, fgvc), or empty.
    - `method`: the label of the row; `fields`: the method's name and its own fields.
    - `settings`: the row's own, which the search leaves alone; `grid`: its own values to try; `first`: what is tuned
      before, as in a study file, or nothing.
    - `chosen`: the settings of the best point; None until the search is over.
    - `planned_finals`: how many final runs the protocol asks for. `failures`: why some of them failed.
    """

    task: str
    group: str
    backbone: str
    method: str
    fields: dict[str, Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    first: dict[str, Any] = dataclasses.field(default_factory=dict)
    chosen: dict[str, Any] | None = None
    points: tuple[Point, ...] = ()
    finals: tuple[Final, ...] = ()
    planned_finals: int = 0
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study, done or in progress.

    - `protocol`: as `Protocol.to_dict` gives it.
    - `flags`: what a reader must be told in every table, such as `compat_peek`.
    - `origins`: the different (commit, machine, versions) that its runs were made with.
    """

    name: str
    protocol: dict[str, Any]
    flags: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    command: str = ""
    origins: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Results:
        """The inverse of `to_dict`; raises DataError for what is none."""
        try:
            cells = tuple(
                Cell(
                    **{
                        **cell,
                        "points": tuple(Point(**point) for point in cell["points"]),
                        "finals": tuple(Final(**final) for final in cell["finals"]),
                        "failures": tuple(cell["failures"]),
                    }
                )
                for cell in values["cells"]
            )
            rest = {"flags": tuple(values["flags"]), "origins": tuple(values["origins"])}
            return cls(**{**values, **rest, "cells": cells})
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"not the results of a study: {error}", expected="a results.json") from None

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Those of the study in `folder`; raises DataError for a damaged file."""
        return cls.from_dict(read_json(folder / RESULTS))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names, in the order in which they first appear."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """Backbones and methods, in the order in which they first appear."""
        return tuple(dict.fromkeys((cell.backbone, cell.method) for cell in self.cells))

    @property
    def groups(self) -> dict[str, str]:
        """The group of each task."""
        return {cell.task: cell.group for cell in self.cells}
