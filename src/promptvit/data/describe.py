"""A task at a glance: how many images of which size and class, and what they look like."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from promptvit.data.decode import decode, quiet_pillow
from promptvit.data.task import Split, Task
from promptvit.errors import BrokenImageError

THUMB, GAP, LABEL, LINE = 72, 6, 150, 20
ROWS, CLASSES = 20, 100
"""Rows in a column of the sheet, and classes on all of it, at most."""


@dataclass(frozen=True, kw_only=True)
class SplitFigures:
    """One split.

    - `majority`: the share of the largest class: what guessing gets.
    - `largest`, `smallest`: name and count of those classes; the smallest of those that have images.
    - `empty`: how many classes have none.
    """

    images: int
    majority: float
    largest: tuple[str, int]
    smallest: tuple[str, int]
    empty: int


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """A task.

    - `formats`: numbers of images by format; `pixels` for those that are no files, `unreadable` for broken ones.
    - `sizes`: the usual sizes as `width x height`, at most three; `distinct_sizes` counts all.
    - `smallest`, `largest`: width and height, by area.
    """

    name: str
    classes: int
    splits: dict[str, SplitFigures]
    formats: dict[str, int]
    sizes: dict[str, int]
    distinct_sizes: int
    smallest: tuple[int, int]
    largest: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def describe_task(task: Task) -> TaskFigures:
    """The figures of `task`; of image files, only the headers are read."""
    splits = {name: split for name, split in _splits(task) if split is not None}
    looks = [look for split in splits.values() for look in _looks(split)]
    sizes = Counter(size for _, size in looks if min(size) > 0)
    return TaskFigures(
        name=task.name,
        classes=len(task.classes),
        splits={name: _figures(split, task.classes) for name, split in splits.items()},
        formats=dict(Counter(form for form, _ in looks).most_common()),
        sizes={f"{width} x {height}": count for (width, height), count in sizes.most_common(3)},
        distinct_sizes=len(sizes),
        smallest=min(sizes, key=_area, default=(0, 0)),
        largest=max(sizes, key=_area, default=(0, 0)),
    )


def sheet_of_classes(task: Task, count: int = 6) -> Image.Image:
    """`count` training images of every class, spread over the split, with its name; at most `CLASSES` classes."""
    labels = task.train.labels
    rows = []
    for label, name in list(enumerate(task.classes))[:CLASSES]:
        here = np.flatnonzero(labels == label)
        rows.append((name, f"{len(here):,} in train", _pick(task.train, here, count)))
    more = len(task.classes) - len(rows)
    title = f"{task.name}: {len(task.classes)} classes" + (f", the first {len(rows)}" if more else "")
    return contact_sheet(title, rows, count)


def sheet_of_tasks(name: str, tasks: Sequence[Task], count: int = 8) -> Image.Image:
    """`count` training images of every task."""
    rows = [
        (task.name, f"{len(task.classes)} classes", _pick(task.train, np.arange(len(task.train)), count))
        for task in tasks
    ]
    return contact_sheet(f"{name}: {len(tasks)} tasks", rows, count)


def contact_sheet(title: str, rows: Sequence[tuple[str, str, Sequence[Image.Image]]], count: int) -> Image.Image:
    """A picture with a row for each name, note and images, in columns under the title."""
    columns = -(-len(rows) // ROWS)
    deep = -(-len(rows) // columns)
    width, height = LABEL + count * (THUMB + GAP) + 2 * GAP, THUMB + GAP
    top = LINE + 2 * GAP
    sheet = Image.new("RGB", (columns * width + GAP, top + deep * height + GAP), "white")
    draw, font, bold = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((2 * GAP, GAP), _shortened(title, bold, sheet.width - 3 * GAP), "black", bold)
    for number, (name, note, images) in enumerate(rows):
        x, y = 2 * GAP + number // deep * width, top + number % deep * height
        draw.text((x, y + THUMB // 2 - LINE), _shortened(name, font, LABEL - GAP), "black", font)
        draw.text((x, y + THUMB // 2), _shortened(note, font, LABEL - GAP), "#595959", font)
        for place, image in enumerate(images):
            sheet.paste(image, (x + LABEL + place * (THUMB + GAP), y))
    return sheet


def _splits(task: Task) -> tuple[tuple[str, Split | None], ...]:
    return ("train", task.train), ("val", task.val), ("test", task.test)


def _figures(split: Split, classes: tuple[str, ...]) -> SplitFigures:
    counts = np.bincount(split.labels, minlength=len(classes))
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    return SplitFigures(
        images=len(split),
        majority=float(counts[most] / len(split)),
        largest=(classes[most], int(counts[most])),
        smallest=(classes[least], int(counts[least])),
        empty=int(np.count_nonzero(counts == 0)),
    )


def _looks(split: Split) -> Iterable[tuple[str, tuple[int, int]]]:
    """Format, width and height of every image."""
    if isinstance(split.images, np.ndarray):
        height, width = split.images.shape[1:3]
        return [("pixels", (width, height))] * len(split)
    with quiet_pillow(), ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(_header, split.images))


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    try:
        with Image.open(path) as image:
            return image.format or "", image.size
    except Exception:  # damaged bytes make Pillow raise nearly anything; `check` says what
        return "unreadable", (0, 0)


def _pick(split: Split, rows: np.ndarray, count: int) -> list[Image.Image]:
    """At most `count` of the images at `rows`, evenly spread, as thumbnails; a broken one is a grey box."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)) if len(rows) else []
    return [_thumbnail(split.images[rows[place]]) for place in places]


def _thumbnail(image: Path | np.ndarray) -> Image.Image:
    try:
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else decode(image)
    except BrokenImageError:
        return Image.new("RGB", (THUMB, THUMB), "#bbbbbb")
    scale = THUMB / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    # The pixels of a tiny image stay pixels: what a task of 8 x 8 of them is like is to be seen.
    small = picture.resize((size[0], size[1]), Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS)
    box = Image.new("RGB", (THUMB, THUMB), "#eeeeee")
    box.paste(small, ((THUMB - size[0]) // 2, (THUMB - size[1]) // 2))
    return box


def _shortened(text: str, font: Any, width: int) -> str:
    """The text with its end cut off where it is too wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
