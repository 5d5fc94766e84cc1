"""How good a run is class by class: accuracies, confusions, and its worst mistakes."""

from __future__ import annotations

import shlex

import numpy as np

from promptvit.data.config import DataConfig
from promptvit.report.bars import Bar, Tile, bar_chart, heat_map
from promptvit.report.charts import figure
from promptvit.report.markup import Child, Markup, isolated, join, tag
from promptvit.report.numbers import Number, percent, wilson
from promptvit.report.page import Section
from promptvit.report.pictures import Picture, pictures
from promptvit.report.record import RunRecord
from promptvit.report.tables import number, table
from promptvit.train.predictions import Predictions

MATRIX_CLASSES = 50
"""A confusion matrix has no more than these; of more classes the pairs are listed."""
SMALL_MATRIX = 20
"""That of no more classes fits into a column."""
LISTED_PAIRS = 20
BARS = 40
MISTAKES = 24
SPLITS = {"val": "validation", "test": "test"}


def class_sections(run: RunRecord, data: DataConfig) -> list[Section]:
    """By class, confusions, mistakes. `data`: the run's, with the images where they are now."""
    by_class = Section(name="classes", title="Classes", content=accuracies(run))
    if run.predictions is None:
        return [by_class, Section(name="mistakes", title="Mistakes", content=missing(run))]
    return [
        by_class,
        Section(name="confusions", title="Confusions", content=confusions(run, run.predictions)),
        Section(name="mistakes", title="Worst mistakes", content=mistakes(run, run.predictions, data)),
    ]


def accuracies(run: RunRecord) -> Markup:
    """The share of right images of each class, the lowest first."""
    known = [(share, name, place) for place, (name, share) in enumerate(_shares(run)) if share is not None]
    lowest = sorted(known, key=lambda each: (each[0], each[2]))[:BARS]
    counts = (
        None if run.predictions is None else np.bincount(run.predictions.labels, minlength=len(run.classes)).tolist()
    )
    bars = [
        Bar(
            name=name,
            value=share,
            text=percent(share),
            interval=None if counts is None else wilson(share, counts[place]),
        )
        for share, name, place in lowest
    ]
    some = f"the {BARS} lowest of {len(known)} classes" if len(known) > BARS else "the lowest first"
    title = f"Right {SPLITS[run.split]} images by class, {some}"
    note = "" if counts is None else "Lines across the bars are Wilson's 95 % intervals."
    chart = bar_chart(
        title, f"From {bars[0].name}, {bars[0].text}, to {bars[-1].name}, {bars[-1].text}.", bars, most=1.0
    )
    rows = [
        [
            name,
            number(percent(share), share),
            *([] if counts is None else [number(f"{counts[place]:,}", float(counts[place]))]),
        ]
        for place, (name, share) in enumerate(_shares(run))
    ]
    head = ["class", "right", *([] if counts is None else ["images"])]
    numbers = table(f"Right {SPLITS[run.split]} images by class", head, rows)
    return tag("div", {"class": "single"}, figure(title, chart, numbers=numbers, note=note))


def _shares(run: RunRecord) -> list[tuple[str, Number | None]]:
    return list(zip(run.classes, run.metrics["per_class"], strict=True))


def confusions(run: RunRecord, predictions: Predictions) -> Child:
    """The matrix where it can be seen at a glance, and the pairs that are confused most."""
    counts = predictions.confusion(len(run.classes))
    wrong = int(counts.sum() - np.trace(counts))
    split = SPLITS[predictions.split]
    if not wrong:
        return tag("p", {}, f"None: all {counts.sum():,} {split} images are right.")
    pairs = _pairs_table(run.classes, counts, wrong)
    if len(run.classes) > MATRIX_CLASSES:
        return pairs
    title = f"{split.capitalize()} images by class and by prediction"
    chart = heat_map(
        title,
        f"{wrong} of {counts.sum()} images are beside the diagonal.",
        run.classes,
        run.classes,
        _tiles(run.classes, counts),
        row_label="class",
        column_label="predicted",
    )
    note = "The colour of a tile is its share of the images of the row's class."
    picture = figure(title, chart, numbers=_numbers(title, run.classes, counts), note=note)
    fits = {"class": "single" if len(run.classes) <= SMALL_MATRIX else None}
    return join([tag("div", fits, picture), tag("h3", {}, "Confused most"), pairs])


def _numbers(title: str, names: list[str], counts: np.ndarray) -> Markup:
    """The matrix as a table; of many classes, which no page is wide enough for, a row for each pair that occurs."""
    if len(names) <= SMALL_MATRIX:
        head = ["class \\ predicted", *map(isolated, names)]
        rows = [
            [name, *(number(str(count), count) for count in row)]
            for name, row in zip(names, counts.tolist(), strict=True)
        ]
        return table(title, head, rows)
    found = [
        [names[row], names[column], number(str(counts[row, column]), int(counts[row, column]))]
        for row, column in np.argwhere(counts).tolist()
    ]
    return table(title, ["class", "predicted", "images"], found)


def _tiles(names: list[str], counts: np.ndarray) -> dict[tuple[int, int], Tile]:
    totals = counts.sum(axis=1)
    tiles = {}
    for (row, column), count in np.ndenumerate(counts):
        if not count and len(names) > SMALL_MATRIX:
            continue  # thousands of empty tiles make a page slow
        share = float(count / totals[row]) if totals[row] else None
        said = f"{names[row]} taken for {names[column]}" if row != column else f"{names[row]}, right"
        hint = f"{said}: {count} of {totals[row]} ({percent(share)})"
        tiles[row, column] = Tile(strength=share, text=str(count) if count else "", hint=hint)
    return tiles


def _pairs_table(names: list[str], counts: np.ndarray, wrong: int) -> Markup:
    apart = counts - np.diag(np.diag(counts))
    order = np.argsort(-apart, axis=None, kind="stable")[:LISTED_PAIRS]
    rows = []
    for place in order.tolist():
        row, column = divmod(place, len(names))
        count, total = int(apart[row, column]), int(counts[row].sum())
        if count:
            share = number(percent(count / total), count / total)
            rows.append([names[row], names[column], number(str(count), count), share])
    found = int(np.count_nonzero(apart))
    some = f", the first {len(rows)} of {found} pairs" if found > len(rows) else ""
    return table(
        f"{wrong:,} of {counts.sum():,} images are wrong{some}", ["class", "taken for", "images", "of the class"], rows
    )


def mistakes(run: RunRecord, predictions: Predictions, data: DataConfig) -> Child:
    """The wrong images of which the model was surest, with small pictures."""
    wrong = [place for place, label in enumerate(predictions.labels) if predictions.predicted[place] != label]
    if not wrong:
        return tag("p", {}, f"None: all {len(predictions.labels):,} {SPLITS[predictions.split]} images are right.")
    worst = sorted(wrong, key=lambda place: (-predictions.confidence[place], place))[:MISTAKES]
    seen = pictures(predictions, worst, data)
    some = f"The {len(worst)} of {len(wrong):,} wrong" if len(worst) < len(wrong) else f"All {len(wrong)} wrong"
    said = tag("p", {}, f"{some} {SPLITS[predictions.split]} images, those first of whose class the model was surest.")
    gone = [] if len(seen) == len(worst) else [_gone(run, data, len(worst) - len(seen), len(worst))]
    items = [_mistake(run.classes, predictions, place, seen.get(place)) for place in worst]
    return join([said, gone, tag("ol", {"class": "gallery"}, items)])


def _mistake(names: list[str], predictions: Predictions, place: int, picture: Picture | None) -> Markup:
    label, predicted = names[predictions.labels[place]], names[predictions.predicted[place]]
    name = predictions.images[place]
    shown = name if isinstance(name, str) else f"image {name}"
    parts: list[Child] = [tag("p", {"class": "gone"}, "no picture")] if picture is None else []
    if picture is not None:
        attributes = {
            "src": picture.address,
            "alt": f"{label}, taken for {predicted}",
            "class": "pixels" if picture.is_tiny else None,
        }
        parts.append(tag("img", attributes))
    parts.append(tag("p", {"class": "bad"}, isolated(predicted), f" {percent(predictions.confidence[place])}"))
    parts.append(tag("p", {}, "is ", isolated(label), f" {percent(predictions.of_label[place])}"))
    parts.append(tag("p", {"class": "quiet"}, isolated(shown)))
    return tag("li", {}, parts)


def _gone(run: RunRecord, data: DataConfig, count: int, of: int) -> Markup:
    command = f"promptvit report {shlex.quote(str(run.folder))} --images FOLDER"
    return tag(
        "p",
        {"class": "missing"},
        f"{count} of these {of} images cannot be read at ",
        tag("code", {}, data.source),
        ". If they are elsewhere now: ",
        tag("code", {}, command),
    )


def missing(run: RunRecord) -> Markup:
    """What a run without predictions lacks, and how to get it."""
    split = "" if run.split == "test" else " --split val"
    command = f"promptvit evaluate {shlex.quote(str(run.folder))} --keep{split}"
    return tag(
        "p",
        {"class": "missing"},
        "This run has kept no predictions (predictions.json). To have them: ",
        tag("code", {}, command),
        ", then write the report again.",
    )
