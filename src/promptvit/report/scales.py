"""Accuracy against the number of training images, in the report of a scale study."""

from __future__ import annotations

from statistics import fmean

from promptvit.report.charts import Line, figure, legend, line_chart, log_axis, value_axis
from promptvit.report.markup import Child, tag
from promptvit.report.numbers import short
from promptvit.report.tables import Entry, number, table
from promptvit.search.results import Results
from promptvit.study.scale import reading, scale_of, spread


def scales(results: Results) -> Child:
    """The curve, its numbers and what it says; nothing for another kind of study."""
    found = scale_of(results)
    if found is None:
        return []
    lines = [
        Line(name=way, points=[(size.images, fmean(size.accuracies[way]) / 100) for size in found.sizes])
        for way in found.ways
    ]
    known = [point for line in lines for point in line.points]
    x = log_axis("training and validation images (log)", [images for images, _ in known], short)
    y = value_axis("test accuracy", [share for _, share in known], lambda share: f"{100 * share:.4g} %")
    title = f"Test accuracy on {found.task} against the number of images"
    rows: list[list[Entry]] = []
    for size in found.sizes:
        entries: list[Entry] = [size.name]
        for way in found.ways:
            mean, deviation = fmean(size.accuracies[way]), spread(size.accuracies[way])
            entries.append(number(f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}"), mean))
        rows.append(entries)
    numbers = table(title, ["images", *(f"{way}, %" for way in found.ways)], rows)
    picture = line_chart(title, lines, x, y)
    chart = figure(
        title, picture, numbers=numbers, legend=legend(found.ways), note="±: deviation over draws of images."
    )
    return [tag("p", {}, reading(found)), tag("div", {"class": "single"}, chart)]
