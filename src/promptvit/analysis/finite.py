"""Features that are numbers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from promptvit.errors import DataError


def check_finite(features: Float[np.ndarray, "n D"], where: str) -> None:
    """Raise DataError, with how many images it is of, for features that are not all finite."""
    broken = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if broken:
        raise DataError(
            f"features of {broken} of {len(features)} images are not finite", expected="numbers", where=where
        )
