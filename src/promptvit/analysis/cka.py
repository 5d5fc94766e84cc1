"""Linear CKA: how alike two sets of features of the same images are, whatever their width, rotation, shift and scale.

Source: Kornblith et al. (ICML 2019), with the unbiased estimator of HSIC of Song et al. (JMLR 2012). The biased one is
far from 0 for features that have nothing in common, unless there are many more images than dimensions: 0.88 for 100
images and 768 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from promptvit.analysis.finite import check_finite
from promptvit.errors import DataError

FEWEST = 4
"""Images that the unbiased estimator needs."""
ROUNDING = 1e-12
"""A share of squares that is no more than this is rounding of 32 bits."""

Rows = Float[np.ndarray, "_ _"] | Float[Tensor, "_ _"]
Similarities = list[list[float | None]]
"""CKA of each set with each; None where it has no value."""


def linear_cka(x: Rows, y: Rows, *, biased: bool = False) -> float | None:
    """CKA of features `x` [n, D] and `y` [n, D'] of the same n images: 1 for equal ones, about 0 for unrelated ones.

    The unbiased estimate of unrelated features may be below 0. `biased`: the original estimator, in [0, 1]. None for
    features that are the same for every image, or (unbiased) equally far from one another for every two. Raises
    DataError for another number of images, fewer than four, or values that are not finite.
    """
    return cka_matrix([x], [y], biased=biased)[0][0]


def cka_matrix(xs: Sequence[Rows], ys: Sequence[Rows], *, biased: bool = False) -> Similarities:
    """`linear_cka` of each of `xs` (rows) with each of `ys` (columns)."""
    left = [_gram(x, biased) for x in xs]
    columns = [[_product(one, other) for one in left] for other in (_gram(y, biased) for y in ys)]
    return [list(row) for row in zip(*columns, strict=True)]


def is_constant(x: Float[np.ndarray, "n D"]) -> bool:
    """Whether rows [n, D] are all the same, but for rounding in 32 bits."""
    return bool(np.square(x - x.mean(axis=0)).sum() <= ROUNDING * np.square(x).sum())


def _gram(rows: Rows, biased: bool) -> Float64[np.ndarray, "n n"] | None:
    """Centred inner products of every two rows, of norm 1; None if nothing is left of them.

    HSIC is the inner product of two such matrices, so CKA is the cosine of the angle between them.
    """
    x = np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows).astype(np.float64)
    _check(x)
    if is_constant(x):
        return None
    x = x - x.mean(axis=0)
    gram = x @ x.T
    trace = np.trace(gram)
    if not biased:
        gram = _without_bias(gram)
    norm = np.linalg.norm(gram)
    return gram / norm if norm > ROUNDING * trace else None


def _without_bias(gram: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n n"]:
    """No image is compared with itself: zeros on the diagonal, and each row of the rest sums to zero."""
    n = len(gram)
    gram = gram - np.diag(np.diag(gram))
    sums = gram.sum(axis=0)
    gram = gram - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    return gram - np.diag(np.diag(gram))


def _product(one: Float64[np.ndarray, "n n"] | None, other: Float64[np.ndarray, "m m"] | None) -> float | None:
    if one is None or other is None:
        return None
    if one.shape != other.shape:
        raise DataError(
            f"features of {len(one)} and of {len(other)} images", expected="of the same images", where="linear_cka"
        )
    return float(np.vdot(one, other))


def _check(x: Float64[np.ndarray, "n D"]) -> None:
    if len(x) < FEWEST:
        raise DataError(f"{len(x)} images", expected=f"at least {FEWEST}", where="linear_cka")
    check_finite(x, "linear_cka")
