"""What many runs say together: intervals, group means that are always named, and tests between methods over tasks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from promptvit.search.results import Cell, Results

Alternative = Literal["two-sided", "less", "greater"]
Row = tuple[str, str]
"""A backbone and a method, by their labels."""
Figures = dict[Row, dict[str, list[float]]]
"""By row and task."""
EXACT = 50
"""Up to so many pairs the distribution of signed ranks is computed, as SciPy does; above it is taken as normal."""
RESAMPLES, BATCH = 9999, 50
"""Draws of a bootstrap, and how many are in memory at once."""
SIGNIFICANT = 0.05
SAME = 1e-12
APART = ("fgvc",)
"""Groups whose tasks are in no mean over VTAB-1k's groups and tasks."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and where it lies: `low` to `high` at `level`."""

    mean: float
    low: float
    high: float
    level: float


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's interval of the mean of `values`, such as those of several seeds; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * deviation(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half, level=level)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample, over n - 1; 0 for one value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean over `count` groups or tasks, each counting once; None where one is `missing` or none is there."""

    value: float | None
    count: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Means:
    """A row in short. Two means circulate and differ by points, so both are always there (VPT-deep: 71.96 and 69.43).

    - `groups`: of the tasks of each group.
    - `of_groups`: of VTAB-1k's groups, or of whatever groups there are; FGVC counts only where it is alone.
    - `of_tasks`: of the tasks of these groups.
    """

    groups: dict[str, Mean]
    of_groups: Mean
    of_tasks: Mean


def means(values: Mapping[str, float | None], groups: Mapping[str, str]) -> Means:
    """Of the tasks of `groups` (task: group, empty for none); a task without a value leaves every mean over it None."""
    members: dict[str, dict[str, float | None]] = {}
    for task, group in groups.items():
        members.setdefault(group, {})[task] = values.get(task)
    named = {group: mean_of(members[group]) for group in members if group}
    together = counted(members)
    tasks = {task: value for group in together for task, value in members[group].items()}
    of_named = {group: named[group].value for group in together if group}
    return Means(groups=named, of_groups=mean_of(of_named), of_tasks=mean_of(tasks))


def counted(groups: Iterable[str]) -> list[str]:
    """The groups whose mean is taken."""
    groups = list(dict.fromkeys(groups))
    return [group for group in groups if group not in APART] or groups


def mean_of(values: Mapping[str, float | None]) -> Mean:
    """The unweighted mean of tasks or groups, by name."""
    missing = tuple(name for name, value in values.items() if value is None)
    there = [value for value in values.values() if value is not None]
    mean = math.fsum(there) / len(there) if there and not missing else None
    return Mean(value=mean, count=len(values), missing=missing)


@dataclass(frozen=True, kw_only=True)
class SignedRank:
    """Wilcoxon's signed-rank test: `statistic` is the sum of the ranks of positive differences, of `count` that are not
    zero; None for a test of nothing."""

    p: float | None
    statistic: float
    count: int
    method: Literal["exact", "normal"]
    alternative: Alternative


def wilcoxon(ours: Sequence[float], theirs: Sequence[float], alternative: Alternative = "two-sided") -> SignedRank:
    """Whether `ours` and `theirs`, the same tasks in the same order, differ; `greater`: whether ours are better.

    Equal pairs are left out, ties have the mean of their ranks. The p value is SciPy's; but where there are ties among
    14 to 50 pairs, SciPy takes the normal approximation, which for 19 tasks and a small p is several times too large.
    """
    differences = np.round(np.subtract(ours, theirs), 12)  # what is equal but for rounding is equal
    differences = differences[differences != 0]
    count, ranks = len(differences), stats.rankdata(np.abs(differences))
    statistic = float(ranks[differences > 0].sum())
    method: Literal["exact", "normal"] = "exact" if count <= EXACT else "normal"
    p = None
    if count and method == "exact":
        p = _exact(ranks, statistic, alternative)
    elif count:
        p = float(np.asarray(stats.wilcoxon(differences, alternative=alternative, method="asymptotic"))[1])
    return SignedRank(p=p, statistic=statistic, count=count, method=method, alternative=alternative)


def _exact(ranks: np.ndarray, statistic: float, alternative: Alternative) -> float:
    """The share of all ways to sign the ranks whose sum is as extreme."""
    doubled = np.rint(2 * ranks).astype(int)  # of ties, halves
    share = np.zeros(int(doubled.sum()) + 1)
    share[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(share)
        shifted[rank:] = share[: len(share) - rank]
        share = (share + shifted) / 2
    place = round(2 * statistic)
    less, greater = float(share[: place + 1].sum()), float(share[place:].sum())
    return {"less": less, "greater": greater, "two-sided": min(1.0, 2 * min(less, greater))}[alternative]


def paired_bootstrap(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0, level: float = 0.95
) -> Interval | None:
    """The mean difference over tasks, whose interval comes from drawing tasks anew (BCa); None for fewer than two."""
    return _bootstraps([np.subtract(ours, theirs)], seed, level)[0]


def _bootstraps(differences: Sequence[np.ndarray], seed: int = 0, level: float = 0.95) -> list[Interval | None]:
    """`paired_bootstrap` of many differences: those over as many tasks share their draws, which takes a fifth of the
    time and changes no figure."""
    means = [float(each.mean()) if len(each) > 1 else None for each in differences]
    found = [None if mean is None else Interval(mean=mean, low=mean, high=mean, level=level) for mean in means]
    drawn: dict[int, list[int]] = {}
    for place, each in enumerate(differences):
        if len(each) > 1 and np.ptp(each) >= SAME:  # else there is nothing to draw from
            drawn.setdefault(len(each), []).append(place)
    for places in drawn.values():
        ends = stats.bootstrap(
            (np.stack([differences[place] for place in places]),),
            np.mean,
            axis=-1,
            batch=BATCH,
            n_resamples=RESAMPLES,
            confidence_level=level,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        for place, low, high in zip(places, ends.low, ends.high, strict=True):
            known = found[place]
            assert known is not None, place
            found[place] = dataclasses.replace(known, low=float(low), high=float(high))
    return found


def welch(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The two-sided p value of Welch's t test between the seeds of two methods on one task; None if either has fewer
    than two, or if neither varies."""
    if min(len(ours), len(theirs)) < 2 or max(deviation(ours), deviation(theirs)) < SAME:
        return None
    one, other = (deviation(side) ** 2 / len(side) for side in (ours, theirs))
    freedom = (one + other) ** 2 / (one**2 / (len(ours) - 1) + other**2 / (len(theirs) - 1))
    distance = abs(math.fsum(ours) / len(ours) - math.fsum(theirs) / len(theirs)) / math.sqrt(one + other)
    return float(2 * special.stdtr(freedom, -distance))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values after Holm's correction for as many tests as there are; None stays and counts for none."""
    order = sorted((index for index, p in enumerate(values) if p is not None), key=lambda index: values[index] or 0.0)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * (values[index] or 0.0)))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two rows on the tasks that both have, by mean test accuracy over seeds.

    - `first`, `second`: backbone and method.
    - `wins`: tasks on which the first is better; `losses`: worse.
    - `difference`: first minus second, with its interval over tasks; None for one task.
    - `test`: two-sided Wilcoxon; `holm`: its p value among all comparisons of the study.
    - `better`, `worse`, `tested`: tasks where the seeds of the two differ by Welch's t test at 0.05, of those tested.
    """

    first: Row
    second: Row
    tasks: tuple[str, ...]
    wins: int
    ties: int
    losses: int
    difference: Interval | None
    test: SignedRank
    holm: float | None
    better: int
    worse: int
    tested: int


def compare(results: Results, seed: int = 0) -> tuple[Comparison, ...]:
    """Every two rows of the same backbone, and the same method on two backbones, that have tasks in common."""
    figures = row_figures(results)
    means = {row: {task: float(np.mean(found)) for task, found in tasks.items()} for row, tasks in figures.items()}
    pairs = [
        (first, second, [task for task in figures[first] if task in figures[second]])
        for first, second in itertools.combinations(figures, 2)
        if (first[0] == second[0] or first[1] == second[1]) and figures[first].keys() & figures[second].keys()
    ]
    intervals = _bootstraps(
        [np.array([means[first][task] - means[second][task] for task in tasks]) for first, second, tasks in pairs], seed
    )
    found = [
        _compare(first, second, figures, means, interval)
        for (first, second, _), interval in zip(pairs, intervals, strict=True)
    ]
    corrected = holm([each.test.p for each in found])
    return tuple(dataclasses.replace(each, holm=p) for each, p in zip(found, corrected, strict=True))


def _compare(
    first: Row, second: Row, figures: Figures, means: dict[Row, dict[str, float]], difference: Interval | None
) -> Comparison:
    """Without Holm's correction."""
    tasks = tuple(task for task in figures[first] if task in figures[second])
    pairs = [(figures[first][task], figures[second][task]) for task in tasks]
    ours, theirs = ([means[row][task] for task in tasks] for row in (first, second))
    signs = [_sign(a - b) for a, b in zip(ours, theirs, strict=True)]
    tests = [(p, sign) for (a, b), sign in zip(pairs, signs, strict=True) if (p := welch(a, b)) is not None]
    significant = [sign for p, sign in tests if p < SIGNIFICANT]
    return Comparison(
        first=first,
        second=second,
        tasks=tasks,
        wins=signs.count(1),
        ties=signs.count(0),
        losses=signs.count(-1),
        difference=difference,
        test=wilcoxon(ours, theirs),
        holm=None,
        better=significant.count(1),
        worse=significant.count(-1),
        tested=len(tests),
    )


def _sign(difference: float) -> int:
    return 0 if abs(difference) < SAME else 1 if difference > 0 else -1


def row_figures(results: Results) -> Figures:
    """Test accuracies over seeds, by backbone and method, then by task; only tasks that have any."""
    figures: Figures = {row: {} for row in results.rows}
    for cell in results.cells:
        if found := accuracies(cell):
            figures[cell.backbone, cell.method][cell.task] = found
    return figures


def accuracies(cell: Cell) -> list[float]:
    """On test images, of the final runs that have them."""
    return [final.test_top1 for final in cell.finals if final.test_top1 is not None]


def row_means(results: Results, row: Row) -> Means:
    """The means of one row over all tasks of the study."""
    figures = row_figures(results)[row]
    return means({task: float(np.mean(values)) for task, values in figures.items()}, results.groups)
