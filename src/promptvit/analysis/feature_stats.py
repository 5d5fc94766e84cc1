"""Statistics of a set of images in one feature space: a shift is measured from them, without the images.

`save` writes one safetensors file: tensors `mean`, `covariance` (float64) and `rows`, and in its metadata, under
`feature_stats`, JSON:

    format          1; a reader refuses a higher number
    name            of the images
    space           {"extractor", "fingerprint", "preprocessing"}
    count, distinct images, and how many of them are no copies
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float, Float64
from safetensors import SafetensorError, safe_open

from promptvit.analysis.gaussian import Gaussian, Rows
from promptvit.errors import DataError
from promptvit.files import write_bytes
from promptvit.preprocessing import Preprocessing

FORMAT, KEY = 1, "feature_stats"
ROWS = 2000
"""Feature rows that are kept unless told otherwise: two samples of 1,000 images, as many as a VTAB-1k task has."""
BUNDLED = ("vit_pico", "vit_pico_mae")
"""Backbones whose pretraining images have statistics in this package."""


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """What features are: only sets of one space compare. The default is that of arrays at hand.

    - `extractor`: the name of the backbone, or of Inception.
    - `fingerprint`: SHA-256 of what it computes with, its readout included.
    - `preprocessing`: how a picture becomes its input.
    """

    extractor: str = ""
    fingerprint: str = ""
    preprocessing: Preprocessing | None = None

    def check(self, other: FeatureSpace) -> None:
        """Raise DataError unless features of both are the same function of a picture."""
        fix = "Make both with the same options of promptvit data stats"
        if self.fingerprint != other.fingerprint:
            raise DataError(
                f"features of {self.extractor!r} ({self.fingerprint[:12]})",
                expected=f"those of {other.extractor!r} ({other.fingerprint[:12]})",
                where="statistics",
                fix=fix,
            )
        if self.preprocessing != other.preprocessing:
            raise DataError(
                f"preprocessing {self.preprocessing}", expected=str(other.preprocessing), where="statistics", fix=fix
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStats:
    """Statistics of `count` images called `name` in `space`; raises DataError for parts that do not belong together.

    - `distinct`: how many of the images are no copies of others.
    - `mean` [d], `covariance` [d, d]: of all of them; divisor count - 1.
    - `rows` [m, d]: features of m of them, drawn and put into random order once. So the first n are a sample.
    """

    name: str
    space: FeatureSpace
    count: int
    distinct: int
    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]
    rows: Float[np.ndarray, "m d"]

    def __post_init__(self) -> None:
        width = len(self.mean)
        fits = self.covariance.shape == (width, width) and self.rows.ndim == 2 and self.rows.shape[1] == width
        if not fits or not len(self.rows) <= self.count or not 1 <= self.distinct <= self.count:
            raise DataError(
                f"mean {list(self.mean.shape)}, covariance {list(self.covariance.shape)} and rows "
                f"{list(self.rows.shape)} of {self.count} images, {self.distinct} of them distinct",
                expected="[d], [d, d] and [m, d] with m at most the number of images",
                where=f"statistics of {self.name}",
            )
        if not all(np.isfinite(values).all() for values in (self.mean, self.covariance, self.rows)):
            raise DataError("features that are not finite", expected="numbers", where=f"statistics of {self.name}")

    @classmethod
    def of(
        cls,
        features: Rows,
        *,
        name: str = "features",
        space: FeatureSpace | None = None,
        distinct: int | None = None,
        rows: int = ROWS,
        seed: int = 0,
    ) -> FeatureStats:
        """The statistics of `features` [n, d], of which at most `rows` are kept, drawn with `seed`.

        `distinct`: how many images are no copies; None counts different rows. Raises DataError for fewer than two.
        """
        if len(features) < 2:
            raise DataError(
                f"{len(features)} image", expected="at least 2 for a covariance", where=f"statistics of {name}"
            )
        drawn = np.random.default_rng(seed).permutation(len(features))[:rows]
        gaussian = Gaussian.of(features)
        return cls(
            name=name,
            space=space or FeatureSpace(),
            count=len(features),
            distinct=_distinct(features) if distinct is None else distinct,
            mean=gaussian.mean,
            covariance=gaussian.covariance,
            rows=features[drawn],
        )

    @property
    def width(self) -> int:
        """How many features an image has, d."""
        return len(self.mean)

    @property
    def gaussian(self) -> Gaussian:
        """Mean and covariance of all images."""
        return Gaussian(mean=self.mean, covariance=self.covariance)

    def sample(self, n: int, skip: int = 0) -> FeatureStats:
        """The statistics of `n` of the images, all rows kept: those after the first `skip`. Raises DataError if fewer
        rows are there."""
        rows = self.rows[skip : skip + n]
        if len(rows) < n or n < 2:
            raise DataError(
                f"{len(self.rows)} feature rows of {self.name}",
                expected=f"at least {max(2, n) + skip}",
                where="statistics",
                fix="Make them anew from more images",
            )
        own = Gaussian.of(rows)
        return dataclasses.replace(
            self, count=n, distinct=_distinct(rows), mean=own.mean, covariance=own.covariance, rows=rows
        )

    def save(self, path: str | Path) -> Path:
        """Write the file in one step; raises OutputError."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("mean", "covariance", "rows")}
        preprocessing = self.space.preprocessing
        space = {
            "extractor": self.space.extractor,
            "fingerprint": self.space.fingerprint,
            "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        }
        about = {"format": FORMAT, "name": self.name, "space": space, "count": self.count, "distinct": self.distinct}
        write_bytes(Path(path), safetensors.numpy.save(tensors, {KEY: json.dumps(about, ensure_ascii=False)}))
        return Path(path)

    @staticmethod
    def read(path: str | Path) -> FeatureStats:
        """The statistics in a file; raises DataError if there is none, or it is damaged or of a later format."""
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})[KEY])
                _check_format(about["format"], path)
                tensors = {name: file.get_tensor(name) for name in ("mean", "covariance", "rows")}
                return FeatureStats(
                    name=about["name"],
                    space=_space(about["space"]),
                    count=about["count"],
                    distinct=about["distinct"],
                    **tensors,
                )
        except FileNotFoundError:
            raise DataError(
                f"{path} does not exist",
                expected="statistics of images",
                fix="promptvit data stats DATA --backbone NAME --out FILE.safetensors makes them",
            ) from None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read: {error!r}",
                expected="a file of promptvit data stats",
                fix="Copy it or make it again",
            ) from error


def pretraining_stats(backbone: str) -> FeatureStats:
    """The statistics of the images that a bundled backbone was pretrained on; raises DataError for other names."""
    if backbone not in BUNDLED:
        raise DataError(
            f"there are no statistics of the images that {backbone!r} was pretrained on",
            expected=f"one of {', '.join(BUNDLED)}",
            fix=f"Make them from such images: promptvit data stats FOLDER --backbone {backbone} --out FILE.safetensors",
        )
    return FeatureStats.read(str(files("promptvit.analysis") / "assets" / f"{backbone}.stats.safetensors"))


def _distinct(rows: Rows) -> int:
    return len(np.unique(rows, axis=0))


def _check_format(found: int, path: str | Path) -> None:
    if found > FORMAT:
        raise DataError(f"{path} has format {found}", expected=f"at most {FORMAT}", fix="Update promptvit")


def _space(values: dict[str, Any]) -> FeatureSpace:
    preprocessing = values["preprocessing"]
    return FeatureSpace(
        extractor=values["extractor"],
        fingerprint=values["fingerprint"],
        preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
    )
