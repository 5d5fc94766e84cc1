"""Confidence intervals by the jackknife: how an estimate moves when a part of one of its samples is left out.

Nothing is drawn with replacement. Resampled images are copies, and copies raise every distance between samples, so
that percentile intervals of a bootstrap lie beside the estimate that they are of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float64

from promptvit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A `value` on `n` images of each sample, and `low` to `high`, its interval of confidence `level` by `method`."""

    value: float
    low: float
    high: float
    n: int
    level: float
    method: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A `value`, and for each sample that it rests on, by name, what it is `without` each part of that sample."""

    value: float
    without: Mapping[str, Float64[np.ndarray, " parts"]]

    def measured(self, n: int, level: float, method: str) -> Measured:
        """The value plus and minus its standard error times the normal quantile of `level`; variances of samples add.

        Raises ConfigError for a level that is none. Source: Efron and Stein (Annals of Statistics, 1981).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level={level}", expected="a value in (0, 1), such as 0.95", where="an interval")
        variance = sum((len(values) - 1) * float(values.var()) for values in self.without.values())
        reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
        return Measured(
            value=self.value, low=self.value - reach, high=self.value + reach, n=n, level=level, method=method
        )


def combine(function: Callable[..., Any], *estimates: Estimate) -> Estimate:
    """The estimate `function` of others, on whose values it is arithmetic. Samples of one name are one sample."""
    names = {name for estimate in estimates for name in estimate.without}
    return Estimate(
        value=float(function(*(estimate.value for estimate in estimates))),
        without={
            name: function(*(estimate.without.get(name, estimate.value) for estimate in estimates)) for name in names
        },
    )
