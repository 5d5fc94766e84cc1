"""The results of a study as a page: what was measured, what it stands beside, what was not run, how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from promptvit.search.accuracy import accuracy, caption, flag_text, layout
from promptvit.search.markup import Block, Heading, Table, Text, latex, markdown
from promptvit.search.matching import EPOCHS, IMAGES
from promptvit.search.results import Cell, Results
from promptvit.search.statistics import Comparison, Row, accuracies, compare, mean_interval, row_figures

FEW = 15
"""Of more comparisons, only those with the best row are on the page."""


def markdown_page(results: Results) -> str:
    """Everything, as Markdown."""
    return markdown(page(results))


def latex_tables(results: Results) -> str:
    """The tables of accuracies and costs, and comparisons, as LaTeX."""
    return latex(
        [block for block in [*accuracy(results), *comparisons(results), *costs(results)] if isinstance(block, Table)]
    )


def page(results: Results) -> list[Block]:
    """All blocks, in order."""
    return [
        Heading(text=results.name, level=1),
        Text(text=introduction(results)),
        *accuracy(results),
        *comparisons(results),
        *intervals(results),
        *costs(results),
        *settings(results),
        *gaps(results),
        Heading(text="How it was made"),
        Text(items=tuple(origins(results))),
    ]


def introduction(results: Results) -> str:
    """What the figures are and how they came about."""
    protocol = results.protocol
    how = " with the settings that were best on validation images" if any(map(is_searched, results.cells)) else ""
    done = sum(len(cell.finals) for cell in results.cells)
    planned = sum(cell.planned_finals for cell in results.cells)
    sentences = [
        f"Protocol {protocol['name']} ({protocol['source']}).",
        *([f"Changed from it: {changes(protocol['changed'])}."] if protocol["changed"] else []),
        f"Final runs{how}: on {IMAGES[protocol['retrain']]}, seeds {listed(protocol['seeds'])}; "
        f"{EPOCHS[protocol['epoch']]} counts. {done:,} of {planned:,} are done.",
        *([f"FGVC by protocol {protocol['fgvc']}."] if protocol["fgvc"] and "fgvc" in results.groups.values() else []),
        *(f"{flag_text(flag)}." for flag in results.flags),
    ]
    return " ".join(sentences)


def changes(changed: dict[str, Any]) -> str:
    """What of a protocol was changed, in short."""
    flat = {**changed.get("settings", {}), **changed.get("grid", {})}
    rest = {name: value for name, value in changed.items() if name not in ("settings", "grid")}
    return "; ".join(f"{name} {listed(value)}" for name, value in {**flat, **rest}.items())


def listed(value: Any) -> str:
    """A value or several."""
    if isinstance(value, list | tuple):
        return ", ".join(map(listed, value))
    return "its default" if value is None else str(value)


def comparisons(results: Results) -> Iterator[Block]:
    """Pairs of rows over the tasks that both have."""
    pairs = compare(results)
    if not pairs:
        return
    shown, said = pairs, ""
    if len(pairs) > FEW:
        best = best_row(results)
        shown = [pair for pair in pairs if best in (pair.first, pair.second)]
        said = f" Of {len(pairs)} pairs those with the best row, {best[1]}, are shown."
    backbones = len({backbone for backbone, _ in results.rows}) > 1
    yield Heading(text="Comparisons")
    text = (
        "First minus second in points, over the tasks of both, with the 95 % interval of a paired bootstrap. "
        "p: Wilcoxon's signed-rank test, two-sided; Holm: corrected for all pairs. "
        f"Seeds differ: tasks with p < 0.05 in Welch's t test.{said}"
    )
    yield Table(
        caption=caption(results, text),
        header=("first", "second", "tasks", "wins, ties, losses", "difference", "p", "Holm", "seeds differ"),
        rows=tuple(comparison_row(pair, backbones) for pair in shown),
    )


def best_row(results: Results) -> Row:
    """The row with the best mean over tasks, of those that have the most."""
    figures = row_figures(results)

    def standing(row: Row) -> tuple[int, float]:
        return len(figures[row]), float(np.mean([np.mean(each) for each in figures[row].values()] or [0]))

    return max(figures, key=standing)


def comparison_row(pair: Comparison, with_backbone: bool) -> tuple[str, ...]:
    """Its cells."""
    names = (f"{row[1]} ({row[0]})" if with_backbone else row[1] for row in (pair.first, pair.second))
    interval = pair.difference
    difference = (
        ""
        if interval is None
        else f"{100 * interval.mean:+z.2f} ({100 * interval.low:+z.2f} to {100 * interval.high:+z.2f})"
    )
    seeds = f"{pair.better} better, {pair.worse} worse of {pair.tested}" if pair.tested else "one seed"
    wins = f"{pair.wins}, {pair.ties}, {pair.losses}"
    return (*names, str(len(pair.tasks)), wins, difference, p_value(pair.test.p), p_value(pair.holm), seeds)


def p_value(p: float | None) -> str:
    """Two digits."""
    return "" if p is None else f"{p:.2g}"


def costs(results: Results) -> Iterator[Block]:
    """Parameters, bytes and seconds of each row, and how many points were tried, if any."""
    searched = any(map(is_searched, results.cells))
    rows = []
    for backbone, method in results.rows:
        cells = [cell for cell in results.cells if (cell.backbone, cell.method) == (backbone, method)]
        finals = [final for cell in cells for final in cell.finals]
        tried = [sum(point.state in ("complete", "pruned") for point in cell.points) for cell in cells]
        hours = sum(run.seconds for cell in cells for run in (*cell.points, *cell.finals)) / 3600
        rows.append(
            (
                *(() if one_backbone(results) else (backbone,)),
                method,
                span([final.trained_parameters for final in finals], "{:,}"),
                span([final.trained_percent for final in finals], "{:.2f}"),
                span([final.delta_bytes / 1024 for final in finals], "{:,.0f}"),
                f"{np.mean([final.seconds for final in finals]):.0f}" if finals else "",
                *((span(tried, "{}"),) if searched else ()),
                f"{hours:.2f}",
            )
        )
    header = ("method", "trained parameters", "trained %", "delta, KiB", "seconds a run")
    yield Heading(text="Cost")
    text = "Final runs, from the least to the most over tasks and seeds; seconds: their mean; hours: of all runs"
    yield Table(
        caption=caption(results, f"{text}; points: tried for each task" if searched else text),
        header=(
            *(() if one_backbone(results) else ("backbone",)),
            *header,
            *(("points",) if searched else ()),
            "hours",
        ),
        rows=tuple(rows),
    )


def is_searched(cell: Cell) -> bool:
    """Whether there was something to choose from."""
    return len(cell.points) > 1


def one_backbone(results: Results) -> bool:
    """Whether no column is needed for it."""
    return len({backbone for backbone, _ in results.rows}) == 1


def span(values: Sequence[int] | Sequence[float], form: str) -> str:
    """From the least to the most."""
    if not values:
        return ""
    least, most = form.format(min(values)), form.format(max(values))
    return least if least == most else f"{least} to {most}"


def intervals(results: Results) -> Iterator[Block]:
    """Of the means over seeds, where there are several."""
    cells = {(cell.backbone, cell.method, cell.task): interval(cell) for cell in results.cells}
    if not any(cells.values()):
        return
    named = () if one_backbone(results) else ("backbone",)
    yield Heading(text="Intervals")
    for text, tasks, _ in layout(results):
        if tasks:
            where = "" if tasks == results.tasks else f" {text}:"
            yield Table(
                caption=caption(results, f"Test accuracy in %,{where} Student's 95 % interval of the mean over seeds"),
                header=(*named, "method", *tasks),
                rows=tuple(
                    (*row[-1 - len(named) :], *(cells.get((*row, task), "") for task in tasks)) for row in results.rows
                ),
            )


def settings(results: Results) -> Iterator[Block]:
    """What rows stand for, and what every search chose, of how many points; nothing if names say it all."""
    rows = dict.fromkeys(row_fields(cell, results) for cell in results.cells)
    lines = tuple(row for row in rows if len(set(row.split(": ", 1))) > 1)
    searched = [cell for cell in results.cells if is_searched(cell)]
    if lines or searched:
        yield Heading(text="Settings")
    if lines:
        yield Text(text="Rows:", items=lines)
    if searched:
        named = not one_backbone(results)
        yield Table(
            caption=caption(results, "Chosen on validation images"),
            header=("task", "method", *(("backbone",) if named else ()), "chosen", "points"),
            rows=tuple(
                (cell.task, cell.method, *((cell.backbone,) if named else ()), chosen(cell), points(cell))
                for cell in searched
            ),
        )


def row_fields(cell: Cell, results: Results) -> str:
    """What its row stands for; fields that differ from task to task are left to the lines below."""
    every = [other.fields for other in results.cells if other.method == cell.method]
    same = [f"{n} {plain(v)}" for n, v in cell.fields.items() if n != "name" and all(f.get(n) == v for f in every)]
    tried = {name: " or ".join(map(plain, values)) for name, values in cell.grid.items()}
    first = [f"first {plain(cell.first)}"] if cell.first else []
    return f"{cell.method}: {', '.join([cell.fields['name'], *same, *told(cell.settings), *told(tried), *first])}"


def told(settings: dict[str, Any]) -> list[str]:
    """Each setting, without `train.` before it."""
    return [f"{name.removeprefix('train.')} {plain(value)}" for name, value in settings.items()]


def chosen(cell: Cell) -> str:
    """The settings that the search chose."""
    if cell.chosen is None:
        return "not chosen yet"
    return ", ".join(told(cell.chosen)) or "no choice"


def plain(value: Any) -> str:
    """A value with few digits; fields in brackets, a name without the word."""
    if isinstance(value, dict):
        parts = (plain(inner) if name == "name" else f"{name} {plain(inner)}" for name, inner in value.items())
        return f"({', '.join(parts)})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def points(cell: Cell) -> str:
    """How many were tried, and what became of the rest."""
    states = [point.state for point in cell.points]
    others = [
        f"{states.count(state)} {state}" for state in ("pruned", "failed", "running", "waiting") if state in states
    ]
    return f"{states.count('complete')} of {len(states)}" + (f" ({', '.join(others)})" if others else "")


def interval(cell: Cell) -> str:
    """Student's, in %, as far as there are such accuracies."""
    found = mean_interval([100 * value for value in accuracies(cell)])
    return "" if found is None else f"{max(found.low, 0):.1f} to {min(found.high, 100):.1f}"


def gaps(results: Results) -> Iterator[Block]:
    """What was not run, and what failed."""
    lines = [
        f"{method}{'' if one_backbone(results) else f' on {backbone}'}: {', '.join(missing)}"
        for backbone, method in results.rows
        if (missing := missing_seeds(results, (backbone, method)))
    ]
    lines += [
        f"failed: {cell.method} on {cell.task}, {point.reason or 'for an unknown reason'}"
        for cell in results.cells
        for point in cell.points
        if point.state == "failed"
    ]
    if lines:
        yield Heading(text="Not run")
        yield Text(items=tuple(dict.fromkeys(lines)))


def missing_seeds(results: Results, row: Row) -> list[str]:
    """Its tasks with fewer seeds than the protocol asks for."""
    cells = {cell.task: cell for cell in results.cells if (cell.backbone, cell.method) == row}
    found = []
    for task in results.tasks:
        done, planned = (len(cells[task].finals), cells[task].planned_finals) if task in cells else (0, 1)
        if not done:
            found.append(f"{task} not run")
        elif done < planned:
            found.append(f"{task} {done} of {planned} seeds")
        elif not accuracies(cells[task]):
            found.append(f"{task} has no test images")
    return found


def origins(results: Results) -> Iterator[str]:
    """The command, the protocol, and every commit, machine and version that runs were made with."""
    yield f"command: {results.command or 'not recorded'}"
    values: dict[str, list[str]] = {}
    for origin in results.origins:
        for name, value in flat(origin):
            values.setdefault(name, [])
            if value not in values[name]:
                values[name].append(value)
    yield from (f"{name}: {', '.join(each)}" for name, each in values.items())


def flat(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Nested values by their last names."""
    for name, value in values.items():
        yield from flat(value) if isinstance(value, dict) else [(name, str(value))]
