import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from promptvit.analysis.feature_stats import FeatureSpace, FeatureStats
from promptvit.analysis.gaussian import Gaussian, gaussian_distance
from promptvit.analysis.jackknife import Estimate
from promptvit.analysis.shift import (
    excess,
    frechet_at_infinity,
    frechet_distance,
    intercept,
    kernel_distance,
    self_ratio,
    shift,
)
from promptvit.errors import ConfigError, DataError
from promptvit.preprocessing import Preprocessing

HERE = FeatureSpace(extractor="a", fingerprint="1", preprocessing=Preprocessing(size=(8, 8)))


def normal(random, n, d, moved=0.0):
    """Statistics of n draws from a standard normal, every coordinate `moved`, all rows kept."""
    return FeatureStats.of(random.standard_normal((n, d)) + moved, rows=n)


def spectrum(d, power):
    return np.arange(1, d + 1) ** -float(power)


def bias(n, d, power, seed=0):
    """FD of n draws against the Gaussian that they come from, in percent of its trace."""
    variances = spectrum(d, power)
    rows = np.random.default_rng(seed).standard_normal((n, d)) * np.sqrt(variances)
    exact = Gaussian(mean=np.zeros(d), covariance=np.diag(variances))
    return 100 * gaussian_distance(Gaussian.of(rows), exact) / variances.sum()


@pytest.fixture
def random():
    return np.random.default_rng(0)


# --- the Fréchet distance ------------------------------------------------------------------------------------------


def test_the_distance_of_diagonal_gaussians_in_closed_form(random):
    a, b = random.normal(size=(2, 40))
    v, w = random.uniform(0.01, 4, (2, 40))
    expected = ((a - b) ** 2).sum() + ((np.sqrt(v) - np.sqrt(w)) ** 2).sum()
    rotation = np.linalg.qr(random.normal(size=(40, 40)))[0]
    for turn in (np.eye(40), rotation):
        one = Gaussian(mean=turn @ a, covariance=turn @ np.diag(v) @ turn.T)
        two = Gaussian(mean=turn @ b, covariance=turn @ np.diag(w) @ turn.T)
        assert gaussian_distance(one, two) == pytest.approx(expected, rel=1e-10)
        assert gaussian_distance(two, one) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(200, 32), (40, 64), (2, 3)])
def test_the_distance_from_itself_is_zero_also_without_full_rank(n, d, random):
    rows = random.normal(size=(n, d))
    own = Gaussian.of(rows)
    assert abs(gaussian_distance(own, own)) < 1e-9
    other = Gaussian.of(random.normal(size=(n, d)) + 0.2)
    scaled = gaussian_distance(Gaussian.of(3 * rows), Gaussian(mean=3 * other.mean, covariance=9 * other.covariance))
    assert scaled == pytest.approx(9 * gaussian_distance(own, other), rel=1e-9)
    assert gaussian_distance(other, own) == pytest.approx(gaussian_distance(own, other), rel=1e-9)


def test_equal_rows_are_a_point(random):
    point, other = Gaussian.of(np.ones((5, 3))), Gaussian.of(random.normal(size=(50, 3)))
    expected = ((other.mean - 1) ** 2).sum() + other.trace
    assert gaussian_distance(point, other) == pytest.approx(expected)
    assert gaussian_distance(other, point) == pytest.approx(expected)


class Projection(nn.Module):
    """A feature module, as torchmetrics takes it."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width
        self.weight = torch.randn(48, width, dtype=torch.float64) / 7

    def forward(self, images):
        return (images.flatten(1) @ self.weight).tanh()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("width", "n"), [(16, 300), (256, 100)])
def test_torchmetrics_agrees(width, n):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    module = Projection(width)
    images = [torch.rand(n, 3, 4, 4, dtype=torch.float64) + moved for moved in (0.0, 0.2)]
    ours = [FeatureStats.of(module(each).numpy(), rows=n) for each in images]
    for metric, own in (
        (FrechetInceptionDistance(feature=module, normalize=True), frechet_distance(*ours).value),
        (KernelInceptionDistance(feature=module, subsets=1, subset_size=n), kernel_distance(*ours).value),
    ):
        metric.set_dtype(torch.float64)
        for each, real in zip(images, (True, False), strict=True):
            metric.update(each, real=real)
        found = metric.compute()
        assert own == pytest.approx(float(found[0] if isinstance(found, tuple) else found), rel=1e-5)


# --- bias ----------------------------------------------------------------------------------------------------------


def test_the_bias_of_a_thousand_images_in_768_features():
    assert bias(1000, 768, 1) == pytest.approx(8.2, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "power", "n", "percent"),
    [
        *((768, 0.7, *each) for each in ((100, 98), (400, 44), (800, 19), (1000, 15))),
        *((768, 1.0, *each) for each in ((100, 60), (400, 24), (800, 11), (1000, 8))),
        *((768, 1.5, *each) for each in ((100, 16), (400, 5.0), (800, 2.3), (1000, 1.8))),
        (2048, 1.0, 1000, 23),
    ],
)
def test_the_table_of_biases(d, power, n, percent):
    assert bias(n, d, power) == pytest.approx(percent, rel=0.06, abs=0.06)


def test_bias_goes_as_one_by_n_well_above_d_and_not_below():
    means = {n: np.mean([bias(n, 64, 1, seed) for seed in range(6)]) for n in (16, 32, 64, 640, 1280, 2560)}
    values = [means[n] for n in sorted(means)]
    assert values == sorted(values, reverse=True)
    for n in (640, 1280):
        assert n * means[n] == pytest.approx(2560 * means[2560], rel=0.03)
    assert 32 * means[32] > 1.2 * 2560 * means[2560]

    def line(*sizes):
        values = [float(means[n]) for n in sizes]
        found = intercept([float(n) for n in sizes], values)
        assert found == pytest.approx(np.polyfit([1 / n for n in sizes], values, 1)[1])
        return found

    assert abs(line(640, 1280, 2560)) < 0.05
    assert line(16, 32, 64) > 2


def test_two_samples_have_nearly_twice_the_bias_of_one(random):
    a, b = normal(random, 640, 64), normal(random, 640, 64)
    exact = Gaussian(mean=np.zeros(64), covariance=np.eye(64))
    ratio = frechet_distance(a, b).value / gaussian_distance(a.gaussian, exact)
    assert 1.7 < ratio < 2.1


def test_at_infinity_the_bias_is_gone(random):
    """Against the bias of 400 images."""
    intercepts, smallest = [], []
    for _ in range(4):
        a, b = normal(random, 1600, 32), normal(random, 1600, 32)
        intercepts.append(frechet_at_infinity(a, b).value)
        smallest.append(frechet_distance(a.sample(400), b.sample(400)).value)
    assert abs(np.mean(intercepts)) < 0.05 * np.mean(smallest)
    moved = frechet_at_infinity(normal(random, 1600, 32), normal(random, 1600, 32, 0.5))
    assert moved.value == pytest.approx(32 * 0.25, rel=0.1)
    assert "infinite" not in moved.method


@pytest.mark.parametrize("n", [31, 100, 127])
def test_at_infinity_takes_more_images_than_features(n, random):
    with pytest.raises(DataError, match=rf"{n} images a side with 32 features; expected at least 128"):
        frechet_at_infinity(normal(random, n, 32), normal(random, n, 32))


# --- KID -----------------------------------------------------------------------------------------------------------


def test_kid_is_unbiased_and_negative_half_the_time(random):
    pairs = [(normal(random, 50, 64), normal(random, 50, 64)) for _ in range(400)]
    values = np.array([kernel_distance(a, b).value for a, b in pairs])
    assert abs(values.mean()) < 3 * values.std() / 20
    assert 0.4 < (values < 0).mean() < 0.65
    with_diagonals = [
        sum(sign * ((x @ y.T / 64 + 1) ** 3).mean() for x, y, sign in ((a, a, 1), (b, b, 1), (a, b, -2)))
        for a, b in ((a.rows, b.rows) for a, b in pairs[:50])
    ]
    assert np.mean(with_diagonals) == pytest.approx(0.29, abs=0.01)


def test_kid_is_the_sum_over_pairs_and_its_interval_that_of_leaving_one_out(random):
    a, b = random.normal(size=(7, 4)), random.normal(size=(5, 4)) + 1

    def literal(x, y):
        def mean(p, q):
            return np.mean(
                [(p[i] @ q[j] / 4 + 1) ** 3 for i in range(len(p)) for j in range(len(q)) if p is not q or i != j]
            )

        return mean(x, x) + mean(y, y) - 2 * mean(x, y)

    found = kernel_distance(FeatureStats.of(a), FeatureStats.of(b), level=0.9)
    assert found.value == pytest.approx(literal(a, b), rel=1e-12)
    left = [[literal(np.delete(a, i, 0), b) for i in range(7)], [literal(a, np.delete(b, i, 0)) for i in range(5)]]
    error = np.sqrt(sum((len(each) - 1) * np.var(each) for each in left))
    assert found.high - found.value == pytest.approx(1.6448536269514722 * error, rel=1e-10)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert (found.n, found.level) == (5, 0.9)


# --- intervals -----------------------------------------------------------------------------------------------------


def test_the_group_jackknife_leaves_a_twentieth_out(random):
    a, b = random.normal(size=(45, 3)), random.normal(size=(45, 3)) + 1
    found = frechet_distance(stats := FeatureStats.of(a), other := FeatureStats.of(b))
    parts = np.array_split(np.arange(45), 20)
    left = [
        [gaussian_distance(Gaussian.of(np.delete(stats.rows, part, 0)), other.gaussian) for part in parts],
        [gaussian_distance(stats.gaussian, Gaussian.of(np.delete(other.rows, part, 0))) for part in parts],
    ]
    error = np.sqrt(sum(19 / 20 * ((np.array(each) - np.mean(each)) ** 2).sum() for each in left))
    assert found.high - found.value == pytest.approx(1.959963984540054 * error, rel=1e-9)


MEASURES = {
    "FD": lambda task, one, two: frechet_distance(task, one),
    "excess": excess,
    "self-ratio": self_ratio,
    "FD, N = inf": lambda task, one, two: frechet_at_infinity(task, one),
    "KID": lambda task, one, two: kernel_distance(task, one),
}


def coverage(measure, draws, n, moved, expected=None, d=16, seed=0):
    """The share of 95 % intervals that hold the expected value, or else the mean of all values."""
    random = np.random.default_rng(seed)
    found = [
        MEASURES[measure](normal(random, n, d, moved), normal(random, n, d), normal(random, n, d)) for _ in range(draws)
    ]
    assert all(each.low < each.value < each.high for each in found)
    target = np.mean([each.value for each in found]) if expected is None else expected
    return np.mean([each.low <= target <= each.high for each in found])


@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_intervals_of_kid_cover(moved):
    assert coverage("KID", 200, 100, moved, 0.0 if moved == 0 else None) >= 0.9


@pytest.mark.parametrize("moved", [0.0, 0.3])
@pytest.mark.parametrize("measure", ["FD", "excess", "self-ratio"])
def test_intervals_of_fd_cover_at_their_n(measure, moved):
    assert coverage(measure, 100, 200, moved) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_intervals_at_infinity_cover_the_distance_of_the_populations(moved):
    assert coverage("FD, N = inf", 30, 400, moved, 16 * moved**2) >= 0.9


def test_a_level_between_none_and_all():
    estimate = Estimate(value=1.0, without={"a": np.array([1.0, 1.2])})
    assert estimate.measured(2, 0.5, "").high < estimate.measured(2, 0.99, "").high
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError, match=r"expected a value in \(0, 1\), such as 0\.95"):
            estimate.measured(2, level, "")


# --- ratios --------------------------------------------------------------------------------------------------------


def test_the_self_ratio_of_the_same_distribution_is_about_one(random):
    for _ in range(10):
        same, one, two = (normal(random, 300, 32) for _ in range(3))
        assert 0.7 < self_ratio(same, one, two).value < 1.4
    assert self_ratio(normal(random, 300, 32, 0.5), one, two).value > 3


def test_the_ratio_grows_with_n_and_excess_stays():
    ratios, excesses = {}, {}
    for n in (100, 800):
        random = np.random.default_rng(n)
        draws = [[normal(random, n, 32, moved) for moved in (0.2, 0, 0)] for _ in range(6)]
        ratios[n] = np.mean([self_ratio(*each).value for each in draws])
        excesses[n] = np.mean([excess(*each).value for each in draws])
    assert ratios[800] > 2 * ratios[100] - 1
    assert excesses[800] == pytest.approx(0.04, abs=0.005)
    assert excesses[100] == pytest.approx(excesses[800], abs=0.012)


def test_what_does_not_compare_is_refused(random):
    a, b, c = (replace(normal(random, 30, 4), space=HERE) for _ in range(3))
    smaller = a.sample(25)
    other_weights = replace(a, space=replace(HERE, fingerprint="2", extractor="b"))
    other_pixels = replace(a, space=replace(HERE, preprocessing=Preprocessing(size=(9, 9))))
    for wrong, message in (
        (other_weights, r"features of 'b' \(2\); expected those of 'a' \(1\)"),
        (other_pixels, r"preprocessing Preprocessing\(size=\(9, 9\)"),
        (smaller, "25 images against 30; expected equally many"),
    ):
        for measure in MEASURES:
            if not (wrong is smaller and measure == "KID"):
                with pytest.raises(DataError, match=message):
                    MEASURES[measure](wrong, b, c)
    with pytest.raises(DataError, match="25 images against 30"):
        excess(a, b, smaller)
    with pytest.raises(DataError, match="features of 'b'"):
        shift(other_weights, b)


def test_an_interval_takes_all_rows(random):
    part = FeatureStats.of(random.normal(size=(60, 4)), rows=50)
    for measure in ("FD", "FD, N = inf", "excess", "self-ratio"):
        with pytest.raises(DataError, match=r"50 feature rows of 60 images of features; expected all"):
            MEASURES[measure](part, part, part)
    assert abs(gaussian_distance(part.gaussian, part.gaussian)) < 1e-9


# --- shift ---------------------------------------------------------------------------------------------------------


def test_shift_is_all_of_them_at_one_n(random):
    task, reference = normal(random, 150, 8, 0.4), normal(random, 400, 8)
    found = shift(task, reference, level=0.9)
    assert (found.n, found.width, found.task, found.reference) == (150, 8, "features", "features")
    own, one, two = task.sample(150), reference.sample(150), reference.sample(150, skip=150)
    assert not {tuple(row) for row in one.rows} & {tuple(row) for row in two.rows}
    for field, measure in (("frechet", "FD"), ("kernel", "KID"), ("excess", "excess"), ("self_ratio", "self-ratio")):
        expected = MEASURES[measure](own, one, two)
        value = getattr(found, field)
        assert value.value == pytest.approx(expected.value, rel=1e-12), field
        assert (value.n, value.level) == (150, 0.9)
        assert value.high < expected.high  # of 95 %
    assert found.at_infinity.value < found.frechet.value
    assert found.notes == ()
    assert "not at infinite N" in found.frechet.method
    assert json.loads(json.dumps(found.to_dict()))["kernel"]["value"] == found.kernel.value
    assert shift(normal(random, 900, 8), reference).n == 200


def test_shift_says_what_its_n_is_too_small_for(random):
    few = shift(normal(random, 40, 64), normal(random, 80, 64))
    assert few.at_infinity is None
    assert "40 images a side are fewer than 64 features" in few.notes[0]
    assert few.notes[1] == "no FD at infinite N: that takes 256 images a side, here are 40"
    some = shift(normal(random, 40, 8), normal(random, 80, 8))
    assert some.at_infinity is not None
    assert "fewer than 3 images for each feature" in some.notes[0]


def test_shift_refuses_copies_and_names_them(random):
    rows = random.normal(size=(60, 4))
    reference = normal(random, 200, 4)
    with pytest.raises(DataError, match=r"180 images of copies, of which 60 are distinct; expected different images"):
        shift(FeatureStats.of(np.tile(rows, (3, 1)), name="copies"), reference)
    found = shift(FeatureStats.of(np.concatenate([rows, rows[:6]]), name="some"), reference)
    assert "6 of 66 images of some are copies as the extractor sees them" in found.notes[0]
    with pytest.raises(DataError, match=r"expected at least 20 and 40"):
        shift(normal(random, 19, 4), reference)
    with pytest.raises(DataError, match=r"feature rows of 60 task images and 39 of the reference"):
        shift(normal(random, 60, 4), normal(random, 39, 4))
