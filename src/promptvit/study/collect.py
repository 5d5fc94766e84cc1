"""What a study, made for its own sake, has shown of prompts and full fine-tuning: records of a calibration file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from promptvit.errors import DataError
from promptvit.search.results import Cell, Results
from promptvit.study.advise import METHODS
from promptvit.study.bakeoff import accuracy, is_tested, record_of
from promptvit.study.calibration import Record
from promptvit.study.facts import Choice
from promptvit.study.gather import LOOK, gather
from promptvit.study.scale import DRAW, IMAGES, SHOTS
from promptvit.train.folder import RunFolder

WAYS: dict[str, Choice] = {method: way for way, method in METHODS.items()}
Draws = dict[int, Cell]
"""The row that stands for a way, for each draw of the images."""


def records_of(study: Path, look: int = LOOK) -> tuple[Record, ...]:
    """A record for each task, backbone and number of images on which the study in that folder has final runs of both
    `vpt-deep` and `full`; of `lora` and `linear` too, if it has them.

    Rows may have fields, settings and a grid of their own; of several rows of a way the one with the best validation
    accuracy counts. Rows that are pruned, or begin with another method, do not. Several draws of the images are one
    record, with the mean. `look`: so many training images of each are looked at, as by `gather`.

    Raises DataError for a study without any, and as loading its tasks does.
    """
    results = Results.read(study)
    records = [_record(study, results, ways, look) for ways in _groups(results) if _draws(ways)]
    if not records:
        raise DataError(
            f"{study} has no task with final runs of both {METHODS['prompts']} and {METHODS['full']}",
            expected="a study with rows of both",
            where="calibration",
        )
    return tuple(records)


def _groups(results: Results) -> list[dict[Choice, Draws]]:
    """The finished rows of each task, backbone and size."""
    groups: dict[tuple, dict[Choice, Draws]] = {}
    for cell in results.cells:
        way = WAYS.get(cell.fields["name"])
        done = cell.finals and len(cell.finals) + len(cell.failures) >= cell.planned_finals
        if way is None or cell.first or "prune" in cell.fields or not done:
            continue
        size = cell.settings.get(IMAGES), cell.settings.get(SHOTS)
        draws = groups.setdefault((cell.task, cell.backbone, size), {}).setdefault(way, {})
        draw = cell.settings.get(DRAW, 0)
        draws[draw] = max(draws.get(draw, cell), cell, key=_validation)
    return list(groups.values())


def _validation(cell: Cell) -> float:
    """By which rows are chosen: the best point of the search, or the final runs where there was none."""
    known = [point.val_top1 for point in cell.points if point.val_top1 is not None]
    return max(known) if known else fmean(final.val_top1 or 0 for final in cell.finals)


def _draws(ways: Mapping[Choice, Draws]) -> list[int]:
    """Those that prompts and full fine-tuning share."""
    return sorted(ways.get("prompts", {}).keys() & ways.get("full", {}).keys())


def _record(study: Path, results: Results, ways: Mapping[Choice, Draws], look: int) -> Record:
    """Of the draws that prompts and full fine-tuning share, and of the other ways that have them all."""
    draws = _draws(ways)
    shared: dict[Choice, list[Cell]] = {
        way: [cells[draw] for draw in draws] for way, cells in ways.items() if cells.keys() >= {*draws}
    }
    first = shared["prompts"][0].finals
    config = RunFolder(study / first[0].folder).read_config()
    situation = gather(dataclasses.replace(config.data, train_on="train"), config.backbone, look=look)
    tested = is_tested(cell for cells in shared.values() for cell in cells)
    accuracies: dict[Choice, float] = {}
    for way, cells in shared.items():
        accuracies[way] = fmean(accuracy(cell, tested) for cell in cells)
    return record_of(situation, accuracies, tuple(final.seed for final in first), results)
