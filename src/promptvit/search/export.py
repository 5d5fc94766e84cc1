"""The results of a study for other programs: lines of CSV, and JSON with everything that the tables are made from."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from promptvit.files import json_bytes
from promptvit.search.matching import beside
from promptvit.search.results import Cell, Final, Point, Results
from promptvit.search.statistics import accuracies, compare, mean_interval, row_means
from promptvit.search.tables import latex_tables, markdown_page

COLUMNS = (
    *("kind", "task", "group", "backbone", "method", "fields", "seed", "state", "val_top1", "test_top1"),
    *("trained_parameters", "trained_percent", "delta_bytes", "seconds", "folder", "reason"),
)


def csv_lines(results: Results) -> str:
    """A line for each point of a search and each final run; settings have columns of their own."""
    lines = [line for cell in results.cells for line in _lines(cell)]
    settings = sorted({name for line in lines for name in line if name not in COLUMNS})
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, *settings), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _lines(cell: Cell) -> Iterator[dict[str, Any]]:
    shared = {name: getattr(cell, name) for name in ("task", "group", "backbone", "method")}
    shared["fields"] = json.dumps(cell.fields, sort_keys=True)
    for kind, runs in (("point", cell.points), ("final", cell.finals)):
        for run in runs:
            yield {"kind": kind, **shared, **_settings(cell, run), **_plain(run)}


def _settings(cell: Cell, run: Point | Final) -> dict[str, Any]:
    return dict((run.settings if isinstance(run, Point) else cell.chosen) or {})


def _plain(run: Point | Final) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(run).items() if name != "settings"}


def everything(results: Results) -> dict[str, Any]:
    """Results, means and intervals, comparisons, and published rows with the reasons against them, as plain values."""
    return {
        "results": _without_machine(results.to_dict()),
        "rows": [
            {
                "backbone": row[0],
                "method": row[1],
                "means": dataclasses.asdict(row_means(results, row)),
                "published": [dataclasses.asdict(match) for match in beside(results, row)],
            }
            for row in results.rows
        ],
        "cells": [
            {
                "task": cell.task,
                "backbone": cell.backbone,
                "method": cell.method,
                "interval": dataclasses.asdict(found) if (found := mean_interval(accuracies(cell))) else None,
            }
            for cell in results.cells
        ],
        "comparisons": [dataclasses.asdict(pair) for pair in compare(results)],
    }


def _without_machine(values: dict[str, Any]) -> dict[str, Any]:
    """Of runs that were taken over from elsewhere, the folder's name alone."""
    for run in (run for cell in values["cells"] for part in ("points", "finals") for run in cell[part]):
        if Path(run["folder"]).is_absolute():
            run["folder"] = Path(run["folder"]).name
    return values


def json_text(results: Results) -> str:
    """`everything` as JSON."""
    return json_bytes(everything(results)).decode()


FORMATS: dict[str, Callable[[Results], str]] = {
    "md": markdown_page,
    "tex": latex_tables,
    "csv": csv_lines,
    "json": json_text,
}
"""Writers by the ending of the file."""
