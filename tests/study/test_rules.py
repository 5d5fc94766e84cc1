import pytest

from promptvit.study.advise import without
from promptvit.study.evidence import scale_cells
from promptvit.study.rules import Score, fit_logistic, interval, judge, leave_one_task_out, verdicts
from promptvit.study.rules import _columns as columns

CELLS = scale_cells()
PUBLISHED = {  # right of 66; share with a gap of a point; with <= 800 images; with >= 5,000; regret
    "always prompts": (40, 0.59, 0.87, 0.25, 1.37),
    "always full": (26, 0.41, 0.13, 0.75, 3.89),
    "quadrants, whatever the size": (46, 0.73, 0.82, 0.54, 0.96),
    "quadrants up to 1,000 images, then natural alone": (54, 0.88, 0.82, 0.82, 0.36),
    "up to 1,000 images, then natural alone": (56, 0.86, 0.87, 0.82, 0.57),
    "up to 50 images a class": (53, 0.88, 0.76, 0.86, 0.69),
    "up to 120 images a class": (57, 0.88, 0.87, 0.86, 0.37),
    "score above a half": (61, 0.94, 0.95, 0.89, 0.22),
    "regression on images a class, each task left out": (57, 0.88, 0.89, 0.82, 0.48),
    "regression on images a class and group, each task left out": (58, 0.88, 0.95, 0.79, 0.38),
}


def test_rules_are_as_right_as_the_specification_says():
    found = verdicts(CELLS)
    assert found.keys() == PUBLISHED.keys()
    for name, (right, *shares) in PUBLISHED.items():
        verdict = found[name]
        assert (verdict.right, verdict.cells) == (right, 66), name
        seen = [verdict.large_gap, verdict.few_images, verdict.many_images, verdict.regret]
        assert seen == pytest.approx(shares, abs=0.0051), name


def test_the_score_is_the_regression_to_two_digits():
    fitted = fit_logistic(columns(CELLS, ("natural", "specialized")), CELLS)
    assert fitted == pytest.approx([5.870, -2.414, -0.162, -0.942], abs=0.001)
    without_natural = Score.fit(CELLS)
    assert without_natural.intercept == pytest.approx(5.784, abs=0.002)
    assert without_natural.slope == pytest.approx(-2.390, abs=0.001)
    assert without_natural.dissimilar == pytest.approx(-0.918, abs=0.001)


@pytest.mark.parametrize(
    ("per_class", "other", "dissimilar"),
    [(8, 0.98, 0.94), (20, 0.94, 0.86), (80, 0.78, 0.59), (120, 0.70, 0.48), (200, 0.58, 0.35), (1000, 0.20, 0.09)],
)
def test_the_score_by_images_a_class(per_class, other, dissimilar):
    score = Score()
    per_class = float(per_class)
    assert score.probability(per_class, False) == pytest.approx(other, abs=0.0051)
    assert score.probability(per_class, True) == pytest.approx(dissimilar, abs=0.0051)


def test_the_advisor_is_no_worse_than_the_simple_rule_on_tasks_it_has_not_seen():
    answers = leave_one_task_out(CELLS, without)
    assert judge(answers, CELLS).right == 59  # the simple rule: 57
    low, high = interval(answers, CELLS)
    assert 0.75 < low < 59 / 66 < high < 1.0


def test_a_task_that_is_left_out_does_not_count():
    turned = [cell for cell in CELLS if cell.task != "svhn"]
    assert Score.fit(turned) != Score.fit(CELLS)
    seen = []
    leave_one_task_out(CELLS[:40], lambda cells: seen.append({cell.task for cell in cells}) or (lambda cell: True))
    assert all(len(tasks) == 18 for tasks in seen)


def test_shares_of_nothing_are_none():
    (cell,) = (cell for cell in CELLS if cell.gap == 0)
    verdict = judge([True], [cell])
    assert (verdict.right, verdict.large_gap, verdict.many_images, verdict.regret) == (1, None, None, 0.0)
