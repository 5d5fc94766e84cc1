"""Tables of accuracies: ours, and published ones beside them where they are like for like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from promptvit.search.markup import Block, Heading, Table, Text
from promptvit.search.matching import Match, beside
from promptvit.search.published import GROUP_OF, Published
from promptvit.search.results import Cell, Results
from promptvit.search.statistics import Mean, Means, Row, accuracies, counted, deviation, mean_of, means, row_figures

NARROW = 8
"""Studies of more tasks have a table for every group."""
FLAGS = {"compat_peek": "compat_peek: the epoch was chosen on the test images, so these figures are too high"}
NOTHING = "not run"


def accuracy(results: Results) -> Iterator[Block]:
    """For each backbone: a table of tasks and means, or one of means and one for each group; published rows beside."""
    for backbone in dict.fromkeys(backbone for backbone, _ in results.rows):
        found = {row: beside(results, row) for row in results.rows if row[0] == backbone}
        yield Heading(text=backbone)
        for text, tasks, with_means in layout(results):
            said = f"Test accuracy in %, {backbone}, {text}{over_seeds(results) if tasks else ''}"
            yield accuracy_table(results, caption(results, said), found, tasks, with_means)
        if published := tuple(published_lines(results, found)):
            yield Text(text="Published figures:", items=published)


def over_seeds(results: Results) -> str:
    """What a figure of a task is."""
    planned = {cell.planned_finals for cell in results.cells}
    if planned == {1}:
        return ": one seed"
    return f": mean ± standard deviation over {f'{planned.pop()} ' if len(planned) == 1 else ''}seeds"


def layout(results: Results) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Caption, tasks, and whether means stand beside them."""
    groups = results.groups
    if len(groups) <= NARROW:
        yield "tasks and means", results.tasks, True
        return
    yield "means", (), True
    for group in dict.fromkeys(groups.values()):
        yield group or "other tasks", tuple(task for task in groups if groups[task] == group), False


def accuracy_table(
    results: Results, text: str, found: dict[Row, tuple[Match, ...]], tasks: tuple[str, ...], with_means: bool
) -> Table:
    """Our rows, and under each the published ones that are like for like and have a figure for a column."""
    rows = []
    least = 2 if tasks else 1  # the mean of a lone task stands there already
    for row, matches in found.items():
        cells = {cell.task: cell for cell in results.cells if (cell.backbone, cell.method) == row}
        ours = means_in_percent(results, row)
        rows.append(
            (row[1], *(figure(cells.get(task)) for task in tasks), *(mean_cells(ours, least) if with_means else ()))
        )
        for published in (match.row for match in matches if not match.reasons):
            theirs = [number(published.values.get(task)) for task in tasks]
            theirs += [
                text.removeprefix(NOTHING)
                for text in mean_cells(published_means(published, results), least)
                if with_means
            ]
            if any(theirs):
                rows.append((f"published: {named(published)}", *theirs))
    columns = mean_columns(means_in_percent(results, next(iter(found))), least) if with_means else ()
    return Table(caption=text, header=("method", *tasks, *columns), rows=tuple(rows))


def figure(cell: Cell | None) -> str:
    """Mean and deviation over the seeds of a cell, and their number where some are missing."""
    values = [100 * value for value in accuracies(cell)] if cell else []
    if not values:
        return NOTHING
    assert cell is not None
    spread = f" ± {deviation(values):.1f}" if len(values) > 1 else ""
    count = f" ({len(values)} of {cell.planned_finals})" if len(values) < cell.planned_finals else ""
    return f"{np.mean(values):.1f}{spread}{count}"


def number(value: float | None) -> str:
    """A published figure, as printed."""
    return "" if value is None else f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def named(row: Published) -> str:
    """A published row and where it stands."""
    return f"{row.label} ({row.reference}{'' if row.verified else ', unverified'})"


def means_in_percent(results: Results, row: Row) -> Means:
    """Ours."""
    figures = row_figures(results)[row]
    return means({task: 100 * float(np.mean(values)) for task, values in figures.items()}, results.groups)


def published_means(row: Published, results: Results) -> Means:
    """As printed for groups of which the study has every task, else of the tasks that it has."""
    found = means(row.values, results.groups)
    there = {group: {task for task in results.tasks if results.groups[task] == group} for group in found.groups}
    whole = {group for group in there if there[group] == {task for task, own in GROUP_OF.items() if own == group}}
    groups = {
        group: dataclasses.replace(mean, value=row.means[group]) if group in whole and group in row.means else mean
        for group, mean in found.groups.items()
    }
    of_groups = mean_of({group: groups[group].value for group in counted(groups)})
    return dataclasses.replace(found, groups=groups, of_groups=of_groups)


def mean_columns(found: Means, least: int = 1) -> tuple[str, ...]:
    """Headers; the mean of groups and that of tasks say of how many. Groups of fewer than `least` tasks are left out,
    and so is the mean of groups where all are."""
    groups = tuple(f"{group} ({mean.count})" for group, mean in found.groups.items() if mean.count >= least)
    of_groups = (f"mean of {found.of_groups.count} groups",) if groups and found.of_groups.count > 1 else ()
    tasks = "task" if found.of_tasks.count == 1 else "tasks"
    return (*groups, *of_groups, f"mean of {found.of_tasks.count} {tasks}")


def mean_cells(found: Means, least: int = 1) -> tuple[str, ...]:
    """The figures below `mean_columns`."""
    groups = tuple(mean for mean in found.groups.values() if mean.count >= least)
    of_groups = (found.of_groups,) if groups and found.of_groups.count > 1 else ()
    return tuple(mean_cell(mean) for mean in (*groups, *of_groups, found.of_tasks))


def mean_cell(mean: Mean) -> str:
    """A mean, or how many of what it is over are missing."""
    if mean.value is not None:
        return f"{mean.value:.2f}"
    return NOTHING if len(mean.missing) == mean.count else f"{len(mean.missing)} of {mean.count} missing"


def published_lines(results: Results, found: dict[Row, tuple[Match, ...]]) -> Iterator[str]:
    """What is to be said of published rows, for all methods of which the same is to be said."""
    methods: dict[str, list[str]] = {}
    for row, matches in found.items():
        for line in remarks(results, matches):
            methods.setdefault(line, []).append(row[1])
    yield from (f"{', '.join(names)}: {line}" for line, names in methods.items())


def remarks(results: Results, matches: Sequence[Match]) -> list[str]:
    """The notes of rows that are like for like; where there is none, the closest row and why it is not like ours."""
    like = [match.row for match in matches if not match.reasons]
    if like:
        return [f"{row.reference}: {row.note}" for row in like if row.note]
    if not matches:
        return ["none for this method"] if any(task in GROUP_OF for task in results.tasks) else []
    closest = matches[0]
    if closest.is_elsewhere:
        return ["on other backbones alone"]
    note = f" ({closest.row.note})" if closest.row.note else ""
    figures = f"{named(closest.row)} has {summary(closest.row, results)}"
    return [f"{figures}, not like for like: {'; '.join(closest.reasons)}{note}"]


def summary(row: Published, results: Results) -> str:
    """Its means of the study's groups, or its figures for the study's tasks."""
    found = published_means(row, results)
    groups = {name: mean.value for name, mean in found.groups.items() if mean.value is not None}
    figures = groups if len(groups) == len(found.groups) and len(results.tasks) > NARROW else row.values
    names = [name for name in (groups if figures is groups else results.tasks) if name in figures]
    return ", ".join(f"{name} {number(round(figures[name], 2))}" for name in names) or "no figure of a single task"


def flag_text(flag: str) -> str:
    """What a flag means."""
    return FLAGS.get(flag, flag)


def caption(results: Results, text: str) -> str:
    """A caption, with what a reader must be told."""
    return " ".join([text, *(f"({flag_text(flag)})" for flag in results.flags)])
