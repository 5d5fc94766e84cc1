"""Intervals, means and tests: SciPy's, references written out, and figures of the papers."""

import itertools
import statistics as plain

import numpy as np
import pytest
from scipy import stats

from promptvit.search.published import GROUP_OF, published
from promptvit.search.results import Cell, Final, Results
from promptvit.search.statistics import (
    compare,
    deviation,
    holm,
    mean_interval,
    means,
    paired_bootstrap,
    row_means,
    welch,
    wilcoxon,
)

VPT = {row.label: row for row in published() if (row.paper, row.table) == ("vpt", "Table 1")}
VTAB = [task for task, group in GROUP_OF.items() if group != "fgvc"]
DEMOS = {
    "46.88 46.25 46.14 47.41 46.44": (46.62, 0.47),
    "96.00 96.54 96.67 95.41 96.11": (96.15, 0.45),
    "52.57 49.03 52.45 51.08 52.72": (51.57, 1.40),
}


def study(values, seeds=1, groups=GROUP_OF):
    """Results with the accuracies {method: {task: share or shares}}."""
    cells = []
    for method, row in values.items():
        for task, given in row.items():
            runs = [given] * seeds if isinstance(given, float) else given
            finals = tuple(
                Final(
                    seed=seed,
                    val_top1=None,
                    test_top1=value,
                    trained_parameters=1,
                    trained_percent=1.0,
                    delta_bytes=1,
                    seconds=1.0,
                    folder="",
                )
                for seed, value in enumerate(runs)
            )
            fields = {"name": "linear"}
            group = groups.get(task, "")
            cells.append(Cell(task=task, group=group, backbone="b", method=method, fields=fields, finals=finals))
    return Results(name="s", protocol={}, cells=tuple(cells))


@pytest.mark.parametrize(("text", "expected"), DEMOS.items())
def test_means_and_deviations_of_the_released_runs(text, expected):
    values = [float(word) for word in text.split()]
    assert round(plain.mean(values), 2) == expected[0]
    assert np.std(values) == pytest.approx(expected[1], abs=0.006)  # theirs are over n, ours over n - 1
    assert deviation(values) == pytest.approx(plain.stdev(values))


def test_the_interval_is_students():
    values = [0.5, 0.52, 0.55, 0.49]
    found = mean_interval(values, 0.9)
    expected = stats.t.interval(0.9, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(expected)
    assert mean_interval([0.5]) is None
    assert deviation([0.5]) == 0


class TestMeans:
    @pytest.mark.parametrize(
        ("label", "groups", "of_groups", "of_tasks"),
        [
            ("VPT-deep", (78.49, 82.43, 55.00), 71.97, 69.43),
            ("Full", (75.89, 83.38, 47.64), 68.97, 65.57),
            ("Linear", (68.93, 77.15, 26.85), 57.64, 52.94),
            ("Bias", (73.30, 78.25, 44.10), 65.22, 62.05),
            ("VPT-shallow", (76.81, 79.68, 46.98), 67.82, 64.85),
        ],
    )
    def test_those_of_the_paper(self, label, groups, of_groups, of_tasks):
        found = means(VPT[label].values, {task: GROUP_OF[task] for task in VTAB})
        values = [mean.value for mean in found.groups.values()]
        assert values == pytest.approx(groups, abs=0.006)
        assert found.of_groups.value == pytest.approx(of_groups, abs=0.006)
        assert found.of_tasks.value == pytest.approx(of_tasks, abs=0.006)
        assert (found.of_groups.count, found.of_tasks.count) == (3, 19)

    def test_printed_groups_give_the_printed_mean(self):
        printed = [VPT["VPT-deep"].means[group] for group in ("natural", "specialized", "structured")]
        assert printed == [78.48, 82.43, 54.98]
        assert round(plain.mean(printed), 2) == 71.96

    def test_fgvc_is_in_no_mean_of_vtab(self):
        with_fgvc = means(VPT["Full"].values, GROUP_OF)
        without = means(VPT["Full"].values, {task: GROUP_OF[task] for task in VTAB})
        assert with_fgvc.of_groups == without.of_groups
        assert with_fgvc.of_tasks == without.of_tasks
        assert with_fgvc.groups["fgvc"].value == pytest.approx(88.54)

    def test_fgvc_alone(self):
        fgvc = {task: group for task, group in GROUP_OF.items() if group == "fgvc"}
        found = means(VPT["Full"].values, fgvc)
        assert found.of_tasks.value == found.of_groups.value == pytest.approx(88.54)

    def test_a_missing_task_is_named(self):
        values = {task: value for task, value in VPT["Full"].values.items() if task != "svhn"}
        found = means(values, GROUP_OF)
        assert found.groups["natural"].value is None
        assert found.groups["natural"].missing == ("svhn",)
        assert found.of_groups.missing == ("natural",)
        assert found.of_tasks.value is None
        assert found.groups["specialized"].value is not None

    def test_tasks_without_groups_have_a_mean_of_tasks_alone(self):
        found = means({"a": 0.5, "b": 0.7}, {"a": "", "b": ""})
        assert found.groups == {}
        assert (found.of_groups.value, found.of_groups.count) == (None, 0)
        assert found.of_tasks.value == pytest.approx(0.6)

    def test_of_a_study(self):
        results = study({"m": {"cifar": [0.5, 0.7], "svhn": 0.4, "kitti": 0.2}})
        found = row_means(results, ("b", "m"))
        assert found.groups["natural"].value == pytest.approx(0.5)
        assert found.of_groups.value == pytest.approx(0.35)
        assert found.of_tasks.value == pytest.approx(1.2 / 3)


def signed_ranks(differences, alternative):
    """The p value by all ways to sign the ranks."""
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    sums = np.array([np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))])
    less, greater = np.mean(sums <= observed + 1e-9), np.mean(sums >= observed - 1e-9)
    return {"less": less, "greater": greater, "two-sided": min(1, 2 * min(less, greater))}[alternative]


class TestWilcoxon:
    @pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
    @pytest.mark.parametrize("count", [1, 5, 12, 19, 40])
    def test_without_ties_it_is_scipys(self, count, alternative):
        ours, theirs = np.random.default_rng(count).normal(size=(2, count))
        found = wilcoxon(list(ours), list(theirs), alternative)
        assert found.p == pytest.approx(stats.wilcoxon(ours, theirs, alternative=alternative, method="exact").pvalue)
        assert (found.count, found.method, found.alternative) == (count, "exact", alternative)

    @pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
    def test_ties_and_zeros_as_by_hand_and_as_scipy(self, alternative):
        differences = np.array([1.0, 1.0, -1.0, 2.0, 3.0, -2.0, 0.0, 4.0, 4.0])
        found = wilcoxon(list(differences), [0.0] * 9, alternative)
        assert found.count == 8
        assert found.p == pytest.approx(signed_ranks(differences[differences != 0], alternative))
        assert found.p == pytest.approx(stats.wilcoxon(differences, alternative=alternative).pvalue)

    def test_many_pairs_are_scipys_normal_approximation(self):
        ours, theirs = np.random.default_rng(0).normal(size=(2, 60))
        found = wilcoxon(list(ours), list(theirs))
        assert found.method == "normal"
        assert found.p == pytest.approx(stats.wilcoxon(ours, theirs, method="asymptotic").pvalue)

    def test_what_is_equal_but_for_rounding_is_equal(self):
        found = wilcoxon([0.1 + 0.2, 0.5], [0.3, 0.5])
        assert (found.p, found.count) == (None, 0)

    @pytest.mark.parametrize(
        ("label", "ours", "paper"),
        [  # two of the paper's p values follow from its rounded rows; the others are of other runs, all better for VPT
            ("MLP-3", 1.91e-6, 1.9e-6),
            ("Sidetune", 1.91e-6, 1.9e-6),
            ("Full", 2.76e-3, 1.2e-3),
            ("Linear", 4.77e-5, 2.7e-5),
            ("Partial-1", 4.96e-5, 1.9e-5),
            ("Bias", 1.91e-5, 1.9e-6),
            ("VPT-shallow", 3.81e-4, 2.7e-5),
        ],
    )
    def test_vpt_deep_against_the_rest(self, label, ours, paper):
        deep, other = ([VPT[name].values[task] for task in VTAB] for name in ("VPT-deep", label))
        found = wilcoxon(deep, other, "greater")
        assert found.p == pytest.approx(ours, rel=0.005)
        assert found.p >= paper


class TestBootstrap:
    def test_it_is_scipys_of_the_differences_and_seeded(self):
        ours, theirs = np.random.default_rng(1).normal(size=(2, 19))
        found = paired_bootstrap(list(ours), list(theirs), seed=3)
        again = stats.bootstrap((ours - theirs,), np.mean, rng=np.random.default_rng(3)).confidence_interval
        assert found is not None
        assert (found.low, found.high) == pytest.approx((again.low, again.high))
        assert found.mean == pytest.approx(np.mean(ours - theirs))
        assert found == paired_bootstrap(list(ours), list(theirs), seed=3)
        assert found != paired_bootstrap(list(ours), list(theirs), seed=4)

    def test_many_pairs_have_the_intervals_of_each_alone(self):
        draw = np.random.default_rng(2)
        tasks = {"a": VTAB, "b": VTAB, "c": VTAB[:5], "d": VTAB[:1]}
        values = {label: {task: float(draw.normal(0.5, 0.1)) for task in names} for label, names in tasks.items()}
        for pair in compare(study(values)):
            ours, theirs = ([values[row[1]][task] for task in pair.tasks] for row in (pair.first, pair.second))
            alone = paired_bootstrap(ours, theirs)
            assert (pair.difference is None) == (alone is None) == (len(pair.tasks) == 1)
            if pair.difference is not None and alone is not None:
                assert (pair.difference.low, pair.difference.high) == pytest.approx((alone.low, alone.high), rel=1e-12)

    def test_equal_differences_and_single_tasks(self):
        found = paired_bootstrap([0.5, 0.6], [0.4, 0.5])
        assert found is not None
        assert (found.low, found.high) == (found.mean, found.mean)
        assert paired_bootstrap([0.5], [0.4]) is None


def test_welch_is_scipys():
    ours, theirs = [0.5, 0.52, 0.51], [0.55, 0.6, 0.57, 0.56]
    assert welch(ours, theirs) == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    assert welch([0.5], theirs) is None
    assert welch([0.5, 0.5], [0.6, 0.6]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


class TestCompare:
    def test_wins_ties_losses_and_holm(self):
        values = {label: {t: VPT[label].values[t] / 100 for t in VTAB} for label in ("Full", "Linear", "VPT-deep")}
        full_linear, full_deep, linear_deep = compare(study(values))
        assert (full_deep.first, full_deep.second) == (("b", "Full"), ("b", "VPT-deep"))
        assert (full_deep.wins, full_deep.ties, full_deep.losses) == (3, 0, 16)
        assert full_deep.tested == 0
        assert full_linear.holm == pytest.approx(holm([full_linear.test.p, full_deep.test.p, linear_deep.test.p])[0])

    def test_only_tasks_that_both_have(self):
        (pair,) = compare(study({"m": {"cifar": 0.5, "svhn": 0.4}, "n": {"svhn": 0.4, "kitti": 0.3}}))
        assert pair.tasks == ("svhn",)
        assert (pair.wins, pair.ties, pair.losses, pair.test.p, pair.difference) == (0, 1, 0, None, None)
        assert compare(study({"m": {"cifar": 0.5}, "n": {"svhn": 0.4}})) == ()

    def test_seeds_are_compared_task_by_task(self):
        ours = {"cifar": [0.5, 0.51, 0.505], "svhn": [0.5, 0.6, 0.4], "kitti": 0.5}
        theirs = {"cifar": [0.6, 0.61, 0.605], "svhn": [0.52, 0.6, 0.41], "kitti": 0.4}
        (pair,) = compare(study({"m": ours, "n": theirs}))
        assert (pair.better, pair.worse, pair.tested) == (0, 1, 2)
