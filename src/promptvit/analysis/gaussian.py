"""A Gaussian fitted to feature rows, and the Fréchet distance of two of them. All in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64

Rows = Float[np.ndarray, "_ d"]
"""A row of d features for each image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """A `mean` [d] and a `covariance` [d, d], symmetric and positive semidefinite."""

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, rows: Rows) -> Gaussian:
        """Mean and covariance (divisor n - 1) of at least two rows."""
        assert len(rows) > 1, len(rows)
        exact = rows.astype(np.float64)  # sums of squares in float32 are off by more than small distances are large
        mean = exact.mean(axis=0)
        centred = exact - mean
        return cls(mean=mean, covariance=centred.T @ centred / (len(rows) - 1))

    @property
    def trace(self) -> float:
        """The total variance."""
        return float(self.covariance.trace())

    @cached_property
    def factor(self) -> Float64[np.ndarray, "d r"]:
        """F with F Fᵀ = covariance and as many columns as that has rank: null directions, whose eigenvalues are noise,
        would add the root of that noise to every distance."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance |µa - µb|² + tr Sa + tr Sb - 2 tr (Sb^½ Sa Sb^½)^½.

    Symmetric up to rounding. The factor of `b` is kept for the next distance from it. Source: Heusel et al. (NeurIPS
    2017), equation 6; the spectrum of Fᵀ Sa F, F Fᵀ = Sb, is that of Sb^½ Sa Sb^½ without its null directions.
    """
    shared = np.linalg.eigvalsh(b.factor.T @ a.covariance @ b.factor)
    between = float(np.square(a.mean - b.mean).sum())
    return between + a.trace + b.trace - 2 * float(np.sqrt(shared.clip(min=0)).sum())
