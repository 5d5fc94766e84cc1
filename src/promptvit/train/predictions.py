"""What a model said of every image of a split: what confusions and mistakes are read from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from promptvit.data.task import Split
from promptvit.errors import DataError
from promptvit.shapes import Labels, Logits
from promptvit.train.evaluate import first_classes

DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions for the n images of a split, in its order; raises DataError if the columns differ in length.

    - `source`: `data.source` of the images. `split`: val or test.
    - `images`: files relative to the source, if they are below it; or the numbers of images that are not files.
    - `labels`, `predicted`: classes by number, the right and the predicted ones.
    - `confidence`, `of_label`: the probabilities of the predicted and of the right classes, rounded to 4 digits.
    """

    source: str
    split: str
    images: tuple[str | int, ...]
    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    confidence: tuple[float, ...]
    of_label: tuple[float, ...]

    def __post_init__(self) -> None:
        columns = (self.images, self.labels, self.predicted, self.confidence, self.of_label)
        if len({len(column) for column in columns}) != 1:
            raise DataError(f"columns of {', '.join(str(len(column)) for column in columns)} values", expected="equal")

    @classmethod
    def of(cls, logits: Logits, labels: Labels, images: Split, *, source: str, split: str) -> Predictions:
        """From `logits` [n, C] and `labels` [n] of the images of a split, in its order."""
        shares = logits.double().softmax(dim=1)  # [n, C]
        predicted = first_classes(logits)[:, 0]
        return cls(
            source=source,
            split=split,
            images=_names(images, Path(source).expanduser()),
            labels=tuple(labels.tolist()),
            predicted=tuple(predicted.tolist()),
            confidence=_rounded(shares, predicted),
            of_label=_rounded(shares, labels),
        )

    def confusion(self, classes: int) -> Int64[np.ndarray, "C C"]:
        """How many images of each class (rows) are predicted as each class (columns)."""
        counts = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(counts, (np.array(self.labels), np.array(self.predicted)), 1)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Predictions:
        """The inverse of `to_dict`; raises DataError for what is none."""
        try:
            columns = {
                name: tuple(values[name]) for name in ("images", "labels", "predicted", "confidence", "of_label")
            }
            return cls(source=values["source"], split=values["split"], **columns)
        except (TypeError, KeyError) as error:
            raise DataError(f"no predictions: {error!r}", expected="those of a run") from None


def _names(images: Split, root: Path) -> tuple[str | int, ...]:
    if not isinstance(images.images, tuple):
        return tuple(range(len(images)))
    return tuple(
        str(path.relative_to(root) if path.is_relative_to(root) else path.absolute()) for path in images.images
    )


def _rounded(shares: torch.Tensor, classes: Labels) -> tuple[float, ...]:
    return tuple(round(share, DIGITS) for share in shares.gather(1, classes[:, None])[:, 0].tolist())
