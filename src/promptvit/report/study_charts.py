"""The pictures of a study: accuracy against size, differences between its rows, what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from promptvit.report import origin
from promptvit.report.bars import Bar, Tile, bar_chart, heat_map
from promptvit.report.charts import Dot, dot_labels, figure, legend, log_axis, scatter, style_of, value_axis
from promptvit.report.markup import Child, Markup, tag
from promptvit.report.numbers import MISSING, Number, duration, percent, points, short, size
from promptvit.report.tables import Entry, number, table
from promptvit.search import statistics
from promptvit.search.results import Cell as Result
from promptvit.search.results import Final, Results
from promptvit.search.statistics import Comparison, Row

LEVELS = ((0.001, 0.9), (0.01, 0.6), (0.05, 0.35), (1.0, 0.06))
"""How strong a tile is for a p value below."""


def accuracy_and_size(results: Results, name: Mapping[Row, str]) -> Child:
    """The mean over those tasks that every row has, against how much is trained."""
    figures = statistics.row_figures(results)
    rows = [row for row in results.rows if figures[row]]
    tasks = [task for task in results.tasks if all(task in figures[row] for row in rows)]
    if not rows or not tasks:
        return []
    backbones = list(dict.fromkeys(backbone for backbone, _ in rows))
    dots = []
    for row in rows:
        trained = fmean(final.trained_parameters for cell in _cells(results, row) for final in cell.finals)
        mean = fmean(fmean(figures[row][task]) for task in tasks)
        said = f"{percent(mean, 2)} with {short(trained)} parameters"
        style = style_of(backbones.index(row[0]))
        dots.append(Dot(name=name[row], x=max(trained, 1.0), y=mean, title=said, style=style))
    title = f"Test accuracy on {origin.counted(len(tasks), 'task')} against trained parameters"
    left_out = ", ".join(task for task in results.tasks if task not in tasks)
    note = f"Without {left_out}, which not every row has yet." if left_out else ""
    return tag("div", {"class": "single"}, _named_dots(title, dots, backbones, note))


def _named_dots(title: str, dots: Sequence[Dot], backbones: Sequence[str], note: str) -> Markup:
    """The picture with its numbers, and a legend if the dots have numbers or there are several backbones."""
    x = log_axis("trained parameters (log)", [dot.x for dot in dots], short)
    y = value_axis("test accuracy", [dot.y for dot in dots], lambda share: f"{100 * share:.4g} %")
    labels, names = dot_labels(dots, x, y), [dot.name for dot in dots]
    key = legend(backbones, dots=True)
    if labels != names:
        key = legend(names, [dot.style for dot in dots], numbered=True)
    rows: list[list[Entry]] = [[dot.name, number(f"{dot.x:,.0f}", dot.x), number(points(dot.y), dot.y)] for dot in dots]
    numbers = table(title, ["row", "trained", "accuracy, %"], rows)
    return figure(title, scatter(title, dots, x, y, labels=labels), numbers=numbers, legend=key, note=note)


def differences(results: Results, name: Mapping[Row, str]) -> Child:
    """Between every two rows over the tasks that both have, with their tests."""
    found = statistics.compare(results)
    if not found:
        return []
    title = "Mean difference in points, row minus column"
    tiles: dict[tuple[int, int], Tile] = {}
    place = {row: number for number, row in enumerate(results.rows)}
    for each in found:
        for sign, (first, second) in ((1, (each.first, each.second)), (-1, (each.second, each.first))):
            tiles[place[first], place[second]] = _difference_tile(each, sign, f"{name[first]} and {name[second]}")
    names = [name[row] for row in results.rows]
    picture = heat_map(
        title,
        "The darker, the smaller Holm's p value of Wilcoxon's signed-rank test over tasks.",
        names,
        names,
        tiles,
        row_label="row",
        column_label="minus",
    )
    note = (
        "Dark: p < 0.001; then p < 0.01 and p < 0.05; pale: not significant. Two-sided Wilcoxon signed-rank tests over "
        "the tasks that both have, corrected for as many tests by Holm. Intervals: BCa bootstrap over tasks. Welch: "
        "tasks on which the seeds differ at 0.05, better and worse, of those tested."
    )
    chart = figure(title, picture, numbers=_comparison_table(found, name), note=note)
    return tag("div", {"class": "single"}, chart)


def _difference_tile(each: Comparison, sign: int, said: str) -> Tile:
    text = MISSING if each.difference is None else f"{100 * sign * each.difference.mean:+z.1f}"
    p = each.holm
    strength = None if p is None else next(strong for level, strong in LEVELS if p < level or level == 1.0)
    hint = (
        f"{said}: {text} points on {origin.counted(len(each.tasks), 'task')}, p {MISSING if p is None else f'{p:.2g}'}"
    )
    return Tile(strength=strength, text=text, hint=hint)


def _comparison_table(found: tuple[Comparison, ...], name: Mapping[Row, str]) -> Markup:
    rows: list[list[Entry]] = []
    for each in found:
        interval, p = each.difference, each.test.p
        spread = (
            MISSING
            if interval is None
            else f"{points(interval.mean)} [{points(interval.low)}, {points(interval.high)}]"
        )
        rows.append(
            [
                f"{name[each.first]} minus {name[each.second]}",
                number(str(len(each.tasks)), len(each.tasks)),
                number(f"{each.wins} / {each.ties} / {each.losses}", each.wins - each.losses),
                number(spread, None if interval is None else interval.mean),
                number(MISSING if p is None else f"{p:.3g}", p),
                number(MISSING if each.holm is None else f"{each.holm:.3g}", each.holm),
                number(f"{each.better} / {each.worse} / {each.tested}", each.better - each.worse),
            ]
        )
    head = ["pair", "tasks", "wins / ties / losses", "difference, points [95 %]", "Wilcoxon p", "Holm", "Welch"]
    return table("Pairs of rows", head, rows)


def costs(results: Results, name: Mapping[Row, str]) -> Child:
    """Means over all final runs of a row."""
    finals = {row: [final for cell in _cells(results, row) for final in cell.finals] for row in results.rows}
    measures: dict[str, tuple[Callable[[Final], Number], Callable[[Number], str]]] = {
        "Trained parameters": (lambda final: final.trained_parameters, short),
        "Delta": (lambda final: final.delta_bytes, size),
        "Training of a final run": (lambda final: final.seconds, duration),
    }
    charts = []
    for title, (measure, show) in measures.items():
        values = {name[row]: fmean(map(measure, found)) for row, found in finals.items() if found}
        if values:
            bars = [Bar(name=row, value=value, text=show(value)) for row, value in values.items()]
            said = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
            rows: list[list[Entry]] = [[row, number(f"{value:,.6g}", value)] for row, value in values.items()]
            numbers = table(
                title, ["row", {"Delta": "bytes", "Trained parameters": "count"}.get(title, "seconds")], rows
            )
            charts.append(figure(title, bar_chart(title, said, bars), numbers=numbers))
    return tag("div", {"class": "three"}, charts) if charts else []


def _cells(results: Results, row: Row) -> list[Result]:
    return [cell for cell in results.cells if (cell.backbone, cell.method) == row]
