"""The scale study: accuracy against the number of training images, and where one way overtakes the other.

Han et al., ICLR 2024, section 5 and Tables 5 and 6. Theirs has one draw of images at each size; here several draws say
how much of a difference is chance, and smaller sizes lie inside larger ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.data.load import load_task
from promptvit.errors import ConfigError
from promptvit.search.plan import StudyPlan
from promptvit.search.protocol import Protocol
from promptvit.search.results import Results
from promptvit.search.row import Row
from promptvit.study.evidence import crossing
from promptvit.train.config import Device

SIZES = (400, 800, 5000, 10_000, 20_000)
"""Those of the paper, training and validation images together."""
IMAGES, SHOTS, DRAW = "data.images", "data.shots", "data.seed"
SEPARATOR = " @ "
COUNT = re.compile(r"([\d,]+) images, draw")
"""The images of a size, in the labels of rows: of shots, those of all classes, to train on and to choose by."""
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size: its images (training and validation), its name, and the accuracies in percent of each way, by draw; a
    draw's is the mean over seeds."""

    images: int
    name: str
    accuracies: dict[str, tuple[float, ...]]

    def gaps(self, ways: Sequence[str]) -> tuple[float, ...]:
        """The first way minus the second, by draw."""
        first, second = (self.accuracies[way] for way in ways)
        return tuple(a - b for a, b in zip(first, second, strict=True))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A task's curve.

    - `ways`: labels; the gap is the first minus the second.
    - `crosses`: images at which the gap first changes its sign; None if it does not. `low`, `high`: a 95 % interval
      over draws, and `share`: of resampled draws that cross at all.
    """

    task: str
    ways: tuple[str, ...]
    sizes: tuple[Size, ...]
    crosses: float | None
    low: float | None
    high: float | None
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def scale_plan(
    name: str,
    data: DataConfig,
    backbone: BackboneSource,
    methods: Sequence[str],
    protocol: Protocol,
    *,
    sizes: Sequence[int] = SIZES,
    shots: Sequence[int] = (),
    draws: int = 3,
    device: Device = "auto",
) -> tuple[StudyPlan, tuple[str, ...]]:
    """The study, and the sizes that it leaves out since the task has too few images, or too many classes, for them.

    `shots`: images of each class to train on, and as many to choose by. Raises ConfigError if no size is left.
    """
    if draws < 1 or len(set(methods)) < 2:
        raise ConfigError(f"draws={draws}, methods={', '.join(methods)}", expected="a draw and two methods or more")
    task = load_task(data)
    there, least = len(task.train) + len(task.val), 2 * len(task.classes)
    rare = min(np.bincount(split.labels, minlength=len(task.classes)).min() for split in (task.train, task.val))
    points = [(f"{size:,} images", {IMAGES: size}, least <= size <= there) for size in sorted(set(sizes))]
    few = [(each, 2 * each * len(task.classes)) for each in sorted(set(shots))]
    points = [(f"{each}-shot, {images:,} images", {SHOTS: each}, each <= rare) for each, images in few] + points
    kept = [(label, settings) for label, settings, fits in points if fits]
    if not kept:
        raise ConfigError(
            f"{task.name} has {there} training and validation images of {len(task.classes)} classes",
            expected=f"sizes from {least} to {there}",
            where="scale",
        )
    rows = tuple(
        Row(
            label=f"{method}{SEPARATOR}{label}, draw {draw}", fields={"name": method}, settings={**settings, DRAW: draw}
        )
        for label, settings in kept
        for draw in range(draws)
        for method in methods
    )
    plan = StudyPlan(name=name, data=(data.source,), rows=rows, protocol=protocol, backbones=(backbone,), device=device)
    return plan, tuple(label for label, _, fits in points if not fits)


def scale_of(results: Results, ways: Sequence[str] = ()) -> Scale | None:
    """The curve that a study has so far; None if it is no scale study, or if no size is whole.

    `ways`: the first two are compared; by default in the order of the study.
    """
    found: dict[tuple[str, str], dict[str, dict[int, tuple[float, int]]]] = {}
    for cell in results.cells:
        way, _, rest = cell.method.partition(SEPARATOR)
        counted = COUNT.search(rest)
        if counted is None or cell.settings.get(IMAGES, cell.settings.get(SHOTS)) is None:
            return None
        tested = [final.test_top1 if final.test_top1 is not None else final.val_top1 for final in cell.finals]
        known = [100 * accuracy for accuracy in tested if accuracy is not None]
        if len(known) == cell.planned_finals:
            label = rest.rpartition(", draw ")[0]
            by_way = found.setdefault((cell.task, label), {})
            by_way.setdefault(way, {})[cell.settings[DRAW]] = fmean(known), int(counted[1].replace(",", ""))
    order = tuple(ways) or tuple(dict.fromkeys(cell.method.partition(SEPARATOR)[0] for cell in results.cells))
    if len(order) < 2:
        return None
    sizes = [_size(label, by_way, order) for (_, label), by_way in found.items()]
    whole = tuple(sorted((size for size in sizes if size is not None), key=lambda size: size.images))
    if not whole:
        return None
    low, high, share = _interval(whole, order[:2])
    return Scale(
        task=results.cells[0].task,
        ways=order,
        sizes=whole,
        crosses=crossing([size.images for size in whole], [fmean(size.gaps(order[:2])) for size in whole]),
        low=low,
        high=high,
        share=share,
    )


def _size(label: str, by_way: dict[str, dict[int, tuple[float, int]]], ways: Sequence[str]) -> Size | None:
    draws = sorted(set.intersection(*(set(by_way.get(way, {})) for way in ways)))
    if not draws:
        return None
    images = next(iter(by_way[ways[0]].values()))[1]
    return Size(
        images=images,
        name=label,
        accuracies={way: tuple(by_way[way][draw][0] for draw in draws) for way in ways},
    )


def _interval(sizes: Sequence[Size], ways: Sequence[str]) -> tuple[float | None, float | None, float]:
    """Where resampled draws cross: a 95 % interval, and the share that crosses. At each size draws are taken anew."""
    generator = np.random.default_rng(0)
    gaps = [np.array(size.gaps(ways)) for size in sizes]
    images = [size.images for size in sizes]
    found = []
    for _ in range(RESAMPLES):
        means = [float(generator.choice(each, len(each)).mean()) for each in gaps]
        found.append(crossing(images, means))
    known = [each for each in found if each is not None]
    if not known:
        return None, None, 0.0
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high), len(known) / RESAMPLES


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over draws; None for one."""
    return stdev(values) if len(values) > 1 else None


def reading(scale: Scale) -> str:
    """What the curve says, in plain words."""
    first, second = scale.ways[:2]
    least, most = scale.sizes[0], scale.sizes[-1]
    draws = max(len(values) for size in scale.sizes for values in size.accuracies.values())

    def at(size: Size) -> str:
        gap = fmean(size.gaps((first, second)))
        verb = "leads" if gap > 0 else "trails"
        return f"{verb} by {abs(gap):.1f} points at {size.name}" if gap else f"equals it at {size.name}"

    said = f"{first} {at(least)}" + ("" if least == most else f" and {at(most)}") + f", against {second}."
    if scale.crosses is not None:
        chance = ""
        if draws > 1 and scale.low is not None:
            chance = f" (95 % of resampled draws that cross: {scale.low:,.0f} to {scale.high:,.0f})"
            chance += f"; {scale.share:.0%} of the draws cross"
        said += f" The two first cross at about {scale.crosses:,.0f} images{chance}."
    elif len(scale.sizes) > 1:
        said += " The two do not cross."
    return said + (" One draw of images says nothing of chance." if draws == 1 else "")


def scale_table(scale: Scale) -> str:
    """The curve as a Markdown table."""
    first, second = scale.ways[:2]
    lines = [
        f"| images | {' | '.join(scale.ways)} | {first} minus {second} |",
        f"|---|{'---|' * (len(scale.ways) + 1)}",
    ]
    for size in scale.sizes:
        shown = [_with_spread(size.accuracies[way]) for way in scale.ways]
        lines.append(f"| {size.name} | {' | '.join(shown)} | {_with_spread(size.gaps((first, second)), sign='+')} |")
    return "\n".join(lines)


def _with_spread(values: Sequence[float], sign: str = "") -> str:
    deviation = spread(values)
    mean = f"{fmean(values):{sign}.1f}"
    return mean if deviation is None else f"{mean} ± {deviation:.1f}"
