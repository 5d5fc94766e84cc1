"""The tables of a study: means, tasks, cells in progress, final runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from urllib.parse import quote

from promptvit.report.markup import Child, Markup, isolated, join, tag
from promptvit.report.numbers import MISSING, Number, duration, points
from promptvit.report.page import REPORT
from promptvit.report.searches import setting_texts
from promptvit.report.tables import Cell, Entry, fold, number, table
from promptvit.search import statistics
from promptvit.search.results import Cell as Result
from promptvit.search.results import Results
from promptvit.search.statistics import Mean, Row

DONE = ("complete", "pruned", "failed")
"""States of a point that will not change."""
LISTED = 30
"""A longer list is folded."""


def mean_table(results: Results, name: Mapping[Row, str]) -> Child:
    """Means of every group, of groups and of tasks; nothing for a single task."""
    if len(results.tasks) < 2:
        return []
    means = {row: statistics.row_means(results, row) for row in results.rows}
    groups = list(means[results.rows[0]].groups)
    columns: dict[str, list[Mean]] = {group: [means[row].groups[group] for row in results.rows] for group in groups}
    if groups:
        columns["mean of groups"] = [means[row].of_groups for row in results.rows]
    columns["mean of tasks"] = [means[row].of_tasks for row in results.rows]
    best = {column: max((mean.value or 0.0 for mean in found), default=0.0) for column, found in columns.items()}
    rows: list[list[Entry]] = [
        [name[row], *(_mean_cell(columns[column][place], best[column]) for column in columns)]
        for place, row in enumerate(results.rows)
    ]
    caption = "Test accuracy in %; every group, or every task, counts once. The best of a column is bold."
    return table(caption, ["row", *columns], rows)


def _mean_cell(mean: Mean, best: Number) -> Cell:
    if mean.value is None:
        return Cell(content=tag("small", {}, f"{mean.count - len(mean.missing)} of {mean.count}"), style="number")
    return number(points(mean.value), mean.value, "best" if mean.value == best else "")


def task_table(results: Results, name: Mapping[Row, str]) -> Markup:
    """A row of tasks for every method."""
    cells = {(cell.backbone, cell.method, cell.task): cell for cell in results.cells}
    figures = statistics.row_figures(results)
    best = {
        task: max((fmean(row[task]) for row in figures.values() if task in row), default=0.0) for task in results.tasks
    }
    rows: list[list[Entry]] = [
        [name[row], *(_task_cell(cells.get((*row, task)), best[task]) for task in results.tasks)]
        for row in results.rows
    ]
    caption = "Test accuracy in %: the mean over seeds ± their standard deviation (seeds). The best of a task is bold."
    return table(caption, ["row", *map(isolated, results.tasks)], rows)


def _task_cell(cell: Result | None, best: Number) -> Entry:
    if cell is None:
        return Cell(content=tag("small", {}, "not planned"))
    found = statistics.accuracies(cell)
    if not found:
        state = "running" if cell.finals or any(point.state != "waiting" for point in cell.points) else "waiting"
        validated = [final.val_top1 for final in cell.finals if final.val_top1 is not None]
        return Cell(content=tag("small", {}, f"validation {points(fmean(validated))}" if validated else state))
    mean = fmean(found)
    spread = f" ± {points(statistics.deviation(found))}" if len(found) > 1 else ""
    of = f" of {cell.planned_finals}" if len(found) < cell.planned_finals else ""
    content = join([points(mean), tag("small", {}, f"{spread} ({len(found)}{of})")])
    return number(content, mean, "best" if mean == best else "")


def progress(results: Results, name: Mapping[Row, str]) -> Child:
    """A line for each cell, and why points failed."""
    rows: list[list[Entry]] = []
    failures = []
    searched = any(cell.points for cell in results.cells)
    for cell in results.cells:
        tried = sum(point.state in DONE for point in cell.points)
        found = statistics.accuracies(cell)
        interval = statistics.mean_interval(found)
        row = name[cell.backbone, cell.method]
        said = MISSING if interval is None else f"{points(interval.low)} to {points(interval.high)}"
        rows.append(
            [
                cell.task,
                row,
                *([number(f"{tried} of {len(cell.points)}" if cell.points else "none", tried)] if searched else []),
                number(f"{len(cell.finals)} of {cell.planned_finals}", len(cell.finals)),
                number(points(fmean(found)) if found else MISSING, fmean(found) if found else None),
                number(said, None if interval is None else interval.low),
                *([_long(_chosen(cell))] if searched else []),
            ]
        )
        failed = [point for point in cell.points if point.state == "failed"]
        failures += [[cell.task, row, _long(setting_texts(point.settings)), _long(point.reason)] for point in failed]
    head = ["task", "row", *(["search"] if searched else []), "final runs", "test, %", "95 % interval over seeds"]
    head += ["chosen"] if searched else []
    listed = table("Cells; intervals are Student's", head, rows)
    if len(rows) > LISTED:
        listed = fold(f"All {len(rows)} cells", listed)
    if not failures:
        return listed
    told = table(f"{len(failures)} points of searches failed", ["task", "row", "settings", "reason"], failures)
    return join([listed, tag("h3", {}, "Failed"), told])


def runs(results: Results, name: Mapping[Row, str], folder: Path) -> Child:
    """The final runs, with links to their reports where there are any."""
    rows: list[list[Entry]] = []
    for cell in results.cells:
        for final in cell.finals:
            is_written = (folder / final.folder / REPORT).is_file()
            address = quote(f"{final.folder}/{REPORT}")
            shown = tag("a", {"href": address}, isolated(final.folder)) if is_written else isolated(final.folder)
            rows.append(
                [
                    cell.task,
                    name[cell.backbone, cell.method],
                    number(str(final.seed), final.seed),
                    number(points(final.val_top1), final.val_top1),
                    number(points(final.test_top1), final.test_top1),
                    number(f"{final.trained_parameters:,}", final.trained_parameters),
                    number(duration(final.seconds), final.seconds),
                    Cell(content=shown, style="long"),
                ]
            )
    if not rows:
        return []
    head = ["task", "row", "seed", "validation, %", "test, %", "trained", "time", "folder"]
    return fold(f"All {len(rows)} final runs", table("Final runs", head, rows), is_open=len(rows) <= LISTED)


def _chosen(cell: Result) -> str:
    if cell.chosen is not None:
        return setting_texts(cell.chosen)
    return "not yet" if cell.points else MISSING


def _long(content: str) -> Cell:
    return Cell(content=isolated(content), style="long")
