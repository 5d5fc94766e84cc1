"""How far a task's images lie from the images that a backbone was pretrained on, in one feature space.

- FD: the Fréchet distance of two Gaussians. It is biased upwards by about d / N, so both sides have the same N, and it
  says something at that N alone.
- KID: the unbiased squared MMD under the kernel (x·y / d + 1)³; it may be negative.
- excess: FD less the FD of two disjoint samples of the reference, over the reference's total variance. The bias
  cancels, so it hardly depends on N, nor on the scale of features.
- self-ratio: FD over that FD. It grows with N.
- FD at infinite N: what the FD tends to, where N is well above d.

Intervals are jackknife intervals (`promptvit.analysis.jackknife`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from promptvit.analysis.feature_stats import FeatureSpace, FeatureStats
from promptvit.analysis.gaussian import Gaussian, Rows, gaussian_distance
from promptvit.analysis.jackknife import Estimate, Measured, combine
from promptvit.errors import DataError

GROUPS = 20
"""Parts of a sample that are left out, one at a time, for the intervals of a Fréchet distance."""
PARTS = (1, 2, 4)
"""FD at infinite N is extrapolated from the mean FD of so many disjoint parts of both samples."""
SAFE = 3
"""Images for each feature in the smallest part from which on the bias of FD goes as 1 / N."""
AT_THIS_N = f"group jackknife, {GROUPS} parts of each sample; of the expected value at this N, not at infinite N"
AT_INFINITY = f"group jackknife, {GROUPS} parts of each sample, of the least-squares line through FD against 1 / N"
SINGLE = "jackknife, single images of each sample"


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A `task` against a `reference`, `n` images a side, `width` features of one `space`.

    - `frechet`, `kernel` (KID), `excess`, `self_ratio`: see this module.
    - `at_infinity`: FD at infinite N; None where there are too few images.
    - `notes`: what to know before these are relied on.

    Values of another `space` do not compare; those of another `n` neither, but for `kernel` and `excess`.
    """

    task: str
    reference: str
    space: FeatureSpace
    n: int
    width: int
    frechet: Measured
    kernel: Measured
    excess: Measured
    self_ratio: Measured
    at_infinity: Measured | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values for JSON."""
        return dataclasses.asdict(self)


def shift(task: FeatureStats, reference: FeatureStats, *, level: float = 0.95) -> Shift:
    """How far `task` lies from `reference`, on as many images as the task has rows, or half of the reference's if
    these are fewer: the other half tells how far two samples of the reference lie apart.

    Raises DataError for statistics of different spaces, for fewer than 20 images a side, and for images more than half
    of which are copies.
    """
    task.space.check(reference.space)
    for stats in (task, reference):
        _refuse_copies(stats)
    n = min(len(task.rows), len(reference.rows) // 2)
    if n < GROUPS:
        raise DataError(
            f"feature rows of {len(task.rows)} task images and {len(reference.rows)} of the reference",
            expected=f"at least {GROUPS} and {2 * GROUPS}",
            where="shift",
            fix="Make the statistics from more images",
        )
    own, near, far = task.sample(n), reference.sample(n), reference.sample(n, skip=n)
    apart, base, variance = _apart(own, near, far)
    enough = n >= PARTS[-1] * task.width
    return Shift(
        task=task.name,
        reference=reference.name,
        space=task.space,
        n=n,
        width=task.width,
        frechet=apart.measured(n, level, AT_THIS_N),
        kernel=kernel_distance(own, near, level=level),
        excess=_excess(apart, base, variance).measured(n, level, AT_THIS_N),
        self_ratio=_ratio(apart, base).measured(n, level, AT_THIS_N),
        at_infinity=frechet_at_infinity(own, near, level=level) if enough else None,
        notes=tuple(_notes(task, reference, n)),
    )


def frechet_distance(a: FeatureStats, b: FeatureStats, *, level: float = 0.95) -> Measured:
    """The Fréchet distance of two sets of equally many images; the interval is that of its expected value at this N.

    Needs rows of all images. Raises DataError for sets of different spaces or sizes.
    """
    _check_equal(a, b)
    first, second = Gaussian.of(_rows(a)), Gaussian.of(_rows(b))
    without = {"a": _from(second, a.rows), "b": _from(first, b.rows)}
    return Estimate(value=gaussian_distance(first, second), without=without).measured(a.count, level, AT_THIS_N)


def excess(task: FeatureStats, reference: FeatureStats, other: FeatureStats, *, level: float = 0.95) -> Measured:
    """(FD(task, reference) - FD(other, reference)) / tr S of `reference`; `other` are different images of it.

    Needs rows of all images. Raises DataError for sets of different spaces or sizes.
    """
    return _excess(*_apart(task, reference, other)).measured(task.count, level, AT_THIS_N)


def self_ratio(task: FeatureStats, reference: FeatureStats, other: FeatureStats, *, level: float = 0.95) -> Measured:
    """FD(task, reference) / FD(other, reference); see `excess`. Compares with self-ratios of the same N alone."""
    apart, base, _ = _apart(task, reference, other)
    return _ratio(apart, base).measured(task.count, level, AT_THIS_N)


def kernel_distance(a: FeatureStats, b: FeatureStats, *, level: float = 0.95) -> Measured:
    """KID of the rows of two sets, which may differ in number; `n` is the smaller. In expectation it is the squared
    MMD of the populations, at any n.

    Raises DataError for sets of different spaces or fewer than 3 rows. Source: Bińkowski et al. (ICLR 2018).
    """
    a.space.check(b.space)
    n = min(len(a.rows), len(b.rows))
    if n < 3:
        raise DataError(f"{n} feature rows", expected="at least 3 of each set", where="KID")
    return _kernel(a.rows, b.rows).measured(n, level, SINGLE)


def frechet_at_infinity(a: FeatureStats, b: FeatureStats, *, level: float = 0.95) -> Measured:
    """The Fréchet distance that FD tends to with N: the intercept of a line through the mean FD of 1, 2 and 4 disjoint
    parts of both sets against 1 / N. Needs rows of all images.

    Raises DataError for sets of different spaces or sizes, and where a part has fewer images than features: FD does not
    go as 1 / N there. Source: Chong and Forsyth (CVPR 2020), with both sides growing.
    """
    _check_equal(a, b)
    smallest = a.count // PARTS[-1]
    if smallest < a.width:
        raise DataError(
            f"{a.count} images a side with {a.width} features",
            expected=f"at least {PARTS[-1] * a.width}",
            where="FD at infinite N",
            fix="Use excess or KID, or more images",
        )
    samples = {"a": _rows(a), "b": _rows(b)}

    def without(name: str, part: np.ndarray) -> float:
        return _limit(**{**samples, name: np.delete(samples[name], part, axis=0)})

    parts = _parts(a.count)
    estimate = Estimate(
        value=_limit(**samples),
        without={name: np.array([without(name, part) for part in parts]) for name in samples},
    )
    return estimate.measured(a.count, level, AT_INFINITY)


def intercept(counts: Sequence[float], distances: Sequence[float]) -> float:
    """Where the least-squares line through the `distances` of so many images against 1 / N is at infinite N."""
    return float(np.polynomial.polynomial.polyfit(1 / np.asarray(counts), distances, 1)[0])


def _apart(task: FeatureStats, reference: FeatureStats, other: FeatureStats) -> tuple[Estimate, Estimate, Estimate]:
    """FD of task and reference, FD of other and reference, and the total variance of the reference."""
    _check_equal(task, reference)
    _check_equal(other, reference)
    own, near, far = (Gaussian.of(_rows(stats)) for stats in (task, reference, other))
    rows = [
        (gaussian_distance(each, own), gaussian_distance(each, far), each.trace) for each in _without(reference.rows)
    ]
    apart, base, variance = np.array(rows).T
    return (
        Estimate(value=gaussian_distance(own, near), without={"task": _from(near, task.rows), "reference": apart}),
        Estimate(value=gaussian_distance(far, near), without={"other": _from(near, other.rows), "reference": base}),
        Estimate(value=near.trace, without={"reference": variance}),
    )


def _from(other: Gaussian, rows: Rows) -> Float64[np.ndarray, " parts"]:
    """FD from `other` without each part of `rows`."""
    return np.array([gaussian_distance(each, other) for each in _without(rows)])


def _without(rows: Rows) -> Iterator[Gaussian]:
    """The Gaussians of `rows` without each part of them, one at a time: they can be large."""
    return (Gaussian.of(np.delete(rows, part, axis=0)) for part in _parts(len(rows)))


def _parts(count: int) -> list[np.ndarray]:
    if count < GROUPS:
        raise DataError(f"{count} images", expected=f"at least {GROUPS}", where="a Fréchet distance with an interval")
    return np.array_split(np.arange(count), GROUPS)


def _excess(apart: Estimate, base: Estimate, variance: Estimate) -> Estimate:
    return combine(lambda distance, own, trace: (distance - own) / trace, apart, base, variance)


def _ratio(apart: Estimate, base: Estimate) -> Estimate:
    return combine(lambda distance, own: distance / own, apart, base)


def _kernel(a: Rows, b: Rows) -> Estimate:
    a, b = a.astype(np.float64), b.astype(np.float64)
    own_a, own_b, across = _similar(a, a), _similar(b, b), _similar(a, b)
    for own in (own_a, own_b):
        np.fill_diagonal(own, 0)
    in_a, in_b, total, n, m = own_a.sum(), own_b.sum(), across.sum(), len(a), len(b)

    def value(in_a: Any, in_b: Any, total: Any, n: int, m: int) -> Any:
        return in_a / (n * (n - 1)) + in_b / (m * (m - 1)) - 2 * total / (n * m)

    return Estimate(
        value=float(value(in_a, in_b, total, n, m)),
        without={
            "a": value(in_a - 2 * own_a.sum(axis=1), in_b, total - across.sum(axis=1), n - 1, m),
            "b": value(in_a, in_b - 2 * own_b.sum(axis=1), total - across.sum(axis=0), n, m - 1),
        },
    )


def _similar(a: Rows, b: Rows) -> Float64[np.ndarray, "_ _"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _limit(a: Rows, b: Rows) -> float:
    means = [
        np.mean([gaussian_distance(Gaussian.of(x), Gaussian.of(y)) for x, y in _pairs(a, b, parts)]) for parts in PARTS
    ]
    return intercept([len(a) / parts for parts in PARTS], [float(mean) for mean in means])


def _pairs(a: Rows, b: Rows, parts: int) -> zip[tuple[np.ndarray, np.ndarray]]:
    return zip(np.array_split(a, parts), np.array_split(b, parts), strict=True)


def _check_equal(a: FeatureStats, b: FeatureStats) -> None:
    """Raise DataError unless both are of one space and one N: FD grows as N falls."""
    a.space.check(b.space)
    if a.count != b.count:
        raise DataError(
            f"{a.count} images against {b.count}",
            expected="equally many",
            where="a Fréchet distance",
            fix="Compare samples of one size: FeatureStats.sample",
        )


def _rows(stats: FeatureStats) -> Rows:
    if len(stats.rows) < stats.count:
        raise DataError(
            f"{len(stats.rows)} feature rows of {stats.count} images of {stats.name}",
            expected="all",
            where="an interval",
            fix="Compare samples, FeatureStats.sample; gaussian_distance needs no rows and gives no interval",
        )
    return stats.rows


def _refuse_copies(stats: FeatureStats) -> None:
    if 2 * stats.distinct < stats.count:
        raise DataError(
            f"{stats.count} images of {stats.name}, of which {stats.distinct} are distinct",
            expected="different images",
            where="shift",
            fix="Remove the copies; promptvit data check names them",
        )


def _notes(task: FeatureStats, reference: FeatureStats, n: int) -> list[str]:
    d, notes = task.width, []
    for stats in (task, reference):
        copies = stats.count - stats.distinct
        if copies:
            notes.append(
                f"{copies} of {stats.count} images of {stats.name} are copies as the extractor sees them: distances "
                "are too large and intervals too narrow"
            )
    if n < d:
        notes.append(
            f"{n} images a side are fewer than {d} features: covariances are rank-deficient and much of FD can be "
            "bias; rely on excess or KID"
        )
    if n < PARTS[-1] * d:
        notes.append(f"no FD at infinite N: that takes {PARTS[-1] * d} images a side, here are {n}")
    elif n < SAFE * PARTS[-1] * d:
        notes.append(
            f"FD at infinite N rests on parts of fewer than {SAFE} images for each feature: beside what its interval "
            "says, it can be off by half a percent of the total variance"
        )
    return notes
