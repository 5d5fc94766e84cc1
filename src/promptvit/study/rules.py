"""Rules that say "prompts" or "full fine-tuning" for a task before either is run, and how often they were right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from promptvit.study.evidence import Cell, Group

Rule = Callable[[Cell], bool]
"""Whether it says "prompts"."""
LARGE_GAP = 1.0
"""Points of accuracy."""
SMALL, LARGE = 800, 5000


@dataclass(frozen=True, kw_only=True)
class Score:
    """A logistic regression for the probability that prompts win; the default is fitted on the 66 cells of the scale
    study, to two digits.

    - `slope`: on log10 of the training images a class. `dissimilar`: added where a task is like image classification
      but its images are unlike the pretraining images.
    """

    intercept: float = 5.87
    slope: float = -2.41
    dissimilar: float = -0.94

    def logit(self, per_class: float, dissimilar: bool) -> float:
        """Of the probability, with `per_class` training images a class."""
        return self.intercept + self.slope * math.log10(per_class) + self.dissimilar * dissimilar

    def probability(self, per_class: float, dissimilar: bool) -> float:
        """That prompts win; not clipped."""
        return sigmoid(self.logit(per_class, dissimilar))

    @classmethod
    def fit(cls, cells: Sequence[Cell]) -> Score:
        """The same regression (C = 1) on other cells; "specialized" stands for low disparity and dissimilar images."""
        intercept, slope, dissimilar = fit_logistic(_columns(cells, ("specialized",)), cells)
        return cls(intercept=intercept, slope=slope, dissimilar=dissimilar)


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit))."""
    return 1 / (1 + math.exp(-logit))


RULES: dict[str, Rule] = {
    "always prompts": lambda cell: True,
    "always full": lambda cell: False,
    "quadrants, whatever the size": lambda cell: cell.group != "specialized",
    "quadrants up to 1,000 images, then natural alone": lambda cell: (
        cell.group != "specialized" if cell.images <= 1000 else cell.group == "natural"
    ),
    "up to 1,000 images, then natural alone": lambda cell: cell.images <= 1000 or cell.group == "natural",
    "up to 50 images a class": lambda cell: cell.per_class <= 50,
    "up to 120 images a class": lambda cell: cell.per_class <= 120,
    "score above a half": lambda cell: Score().probability(cell.per_class, cell.group == "specialized") > 0.5,
}
"""By name; the score was fitted on the cells themselves."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a rule did on some cells.

    - `right` of `cells`. `large_gap`, `few_images`, `many_images`: shares of those right where the two ways differ by
      a point or more, with at most 800 images, and with at least 5,000; None where there are no such cells.
    - `regret`: mean of the points lost by going the way that the rule says.
    """

    right: int
    cells: int
    large_gap: float | None
    few_images: float | None
    many_images: float | None
    regret: float

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.right / self.cells


def judge(answers: Sequence[bool], cells: Sequence[Cell]) -> Verdict:
    """The verdict on `answers` ("prompts"), one for each of `cells`."""
    right = np.array([answer == cell.prompts_win for answer, cell in zip(answers, cells, strict=True)])
    gaps, images = np.array([abs(cell.gap) for cell in cells]), np.array([cell.images for cell in cells])

    def share(chosen: np.ndarray) -> float | None:
        return float(right[chosen].mean()) if chosen.any() else None

    return Verdict(
        right=int(right.sum()),
        cells=len(cells),
        large_gap=share(gaps >= LARGE_GAP - 1e-9),
        few_images=share(images <= SMALL),
        many_images=share(images >= LARGE),
        regret=float(np.where(right, 0.0, gaps).mean()),
    )


def fit_logistic(columns: np.ndarray, cells: Sequence[Cell]) -> list[float]:
    """Intercept and coefficients of the L2-regularised logistic regression (C = 1) of "prompts win" on `columns`
    [cells, features]."""
    from sklearn.linear_model import LogisticRegression  # takes a second: only when something is fitted

    model = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8)
    model.fit(columns, [cell.prompts_win for cell in cells])
    return np.concatenate([model.intercept_, np.ravel(model.coef_)]).tolist()


def _columns(cells: Sequence[Cell], groups: Sequence[Group]) -> np.ndarray:
    """[cells, 1 + groups]: log10 of the images a class, and whether the task is of each group."""
    return np.array([[math.log10(cell.per_class), *(float(cell.group == group) for group in groups)] for cell in cells])


def leave_one_task_out(cells: Sequence[Cell], answer: Callable[[Sequence[Cell]], Rule]) -> list[bool]:
    """What the rule that `answer` makes of the cells of all other tasks says of each cell."""
    rules = {task: answer([cell for cell in cells if cell.task != task]) for task in {cell.task for cell in cells}}
    return [rules[cell.task](cell) for cell in cells]


def fitted(groups: Sequence[Group]) -> Callable[[Sequence[Cell]], Rule]:
    """What makes a rule of cells: the regression on images a class and `groups`."""

    def make(cells: Sequence[Cell]) -> Rule:
        intercept, *weights = fit_logistic(_columns(cells, groups), cells)
        return lambda cell: bool(intercept + _columns([cell], groups)[0] @ weights > 0)

    return make


def verdicts(cells: Sequence[Cell], rules: Mapping[str, Rule] = RULES) -> dict[str, Verdict]:
    """Every rule's, and those of two regressions with each task left out."""
    found = {name: judge([rule(cell) for cell in cells], cells) for name, rule in rules.items()}
    left_out: dict[str, tuple[Group, ...]] = {
        "regression on images a class": (),
        "regression on images a class and group": ("natural", "specialized"),
    }
    for name, groups in left_out.items():
        answers = leave_one_task_out(cells, fitted(groups))
        found[f"{name}, each task left out"] = judge(answers, cells)
    return found


def interval(
    answers: Sequence[bool], cells: Sequence[Cell], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, ...]:
    """A 95 % interval of the share that is right: tasks are drawn with replacement, since the cells of one depend on
    each other."""
    right = np.array([answer == cell.prompts_win for answer, cell in zip(answers, cells, strict=True)], dtype=float)
    tasks = sorted({cell.task for cell in cells})
    place = np.array([tasks.index(cell.task) for cell in cells])
    hits, sizes = np.bincount(place, right), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(tasks), size=(draws, len(tasks)))
    shares = hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return tuple(np.quantile(shares, (0.025, 0.975)).tolist())
