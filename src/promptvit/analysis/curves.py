"""What the curves of a run say: whether it overfits, the gap between training and validation, and how fast it learns.

Overfitting is what shows in the validation loss: smoothed, it has its minimum before 80 % of the epochs, and its end is
more than 5 % above that. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from promptvit.errors import ConfigError, DataError

EARLY, RISE = 0.8, 0.05
"""Overfitting: the minimum comes before this share of the epochs, and the end is higher by more than this share."""
REACHED = 0.95
TINY = 1e-6
"""A loss below this is zero, of which nothing is a share."""
NEEDED = ("train_loss", "val_loss", "train_top1", "val_top1")

EpochRow = dict[str, Any]
"""A row of `metrics.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What the epochs of a run come to.

    `first_train_loss`, `last_train_loss`; `best_epoch`: of the smoothed validation loss; `rise`: its end above that
    minimum, as a share of it; `overfits`: None for a single epoch, or if validation images were trained on; `gap`: the
    last validation loss minus the last training loss; `accuracy_gap`: training accuracy minus validation accuracy;
    `best_top1` on validation images, and `reached`, the first epoch with 95 % of it; `area`: the mean of the validation
    accuracy over all epochs.
    """

    epochs: int
    first_train_loss: float
    last_train_loss: float
    best_epoch: int
    rise: float
    overfits: bool | None
    gap: float
    accuracy_gap: float
    best_top1: float
    reached: int
    area: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def overfitting(rows: Sequence[EpochRow], *, held_out: bool = True) -> Curves:
    """What `rows`, one for each epoch in their order, say; `held_out`: validation images were not trained on.

    Raises DataError for no rows, values that are missing or not finite.
    """
    train_loss, val_loss, train_top1, val_top1 = _columns(rows)
    epochs, smooth = len(rows), smoothed(val_loss)
    best = int(smooth.argmin())
    rise = float((smooth[-1] - smooth[best]) / max(smooth[best], TINY))
    known = held_out and epochs > 1
    return Curves(
        epochs=epochs,
        first_train_loss=float(train_loss[0]),
        last_train_loss=float(train_loss[-1]),
        best_epoch=best + 1,
        rise=rise,
        overfits=best + 1 < EARLY * epochs and rise > RISE if known else None,
        gap=float(val_loss[-1] - train_loss[-1]),
        accuracy_gap=float(train_top1[-1] - val_top1[-1]),
        best_top1=float(val_top1.max()),
        reached=int(np.argmax(val_top1 >= REACHED * val_top1.max())) + 1,
        area=float(val_top1.mean()),
    )


def smoothed(values: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
    """The mean of each value and its neighbours: on each side a twentieth of all, so none for fewer than 20."""
    side = len(values) // 20
    return np.array([values[max(0, at - side) : at + side + 1].mean() for at in range(len(values))])


def reading(curves: Curves) -> str:
    """The same in two sentences."""
    if curves.epochs == 1:
        return "A single epoch: there is no curve to read."
    falls = curves.last_train_loss <= curves.first_train_loss
    course = (
        f"Training loss {'falls' if falls else 'rises'} from {curves.first_train_loss:.3g} to "
        f"{curves.last_train_loss:.3g}"
    )
    side = "below" if curves.accuracy_gap >= 0 else "above"
    speed = (
        f"95 % of the best validation accuracy ({100 * curves.best_top1:.1f} %) is there after epoch {curves.reached}; "
        f"at the end validation is {100 * abs(curves.accuracy_gap):.1f} points {side} training."
    )
    if curves.overfits is None:
        return f"{course}; validation images were trained on, so their loss says nothing of overfitting."
    end = "ends there" if curves.best_epoch == curves.epochs else f"ends {100 * curves.rise:.0f} % above"
    verdict = "it overfits" if curves.overfits else "it does not overfit"
    return (
        f"{course}, validation loss has its minimum at epoch {curves.best_epoch} of {curves.epochs} and {end}: "
        f"{verdict}. {speed}"
    )


def read_rows(folder: Path) -> list[EpochRow]:
    """The rows of the run in `folder`, of a pruned one those of the training that was chosen.

    Raises ConfigError if it has none, as a run of which masks alone were chosen, and DataError for a damaged file.
    """
    path = trained_in(folder, _summary(folder)) / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {path.name}",
            expected="the folder of a run with an epoch or more",
            fix="Train one: promptvit train --help",
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", expected="a line of JSON for each epoch") from None


def trained_in(folder: Path, summary: dict[str, Any]) -> Path:
    """Where the rows of the epochs are: a pruned run that was trained again has them in a folder of its own."""
    return folder / summary.get("pruning", {}).get("chosen", {}).get("folder", "")


def _summary(folder: Path) -> dict[str, Any]:
    """Nothing of a run that is not done."""
    try:
        return json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}


def _columns(rows: Sequence[EpochRow]) -> Float64[np.ndarray, "4 T"]:
    if not rows:
        raise DataError("no epochs", expected="at least one", where="curves")
    try:
        columns = np.array([[row[name] for row in rows] for name in NEEDED], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"rows without {error}", expected=f"{', '.join(NEEDED)} in each", where="curves") from None
    for name, values in zip(NEEDED, columns, strict=True):
        broken = [(place, value) for place, value in enumerate(values) if not math.isfinite(value)]
        for place, value in broken[:1]:
            raise DataError(f"{name} is {value} at epoch {place + 1}", expected="numbers", where="curves")
    return columns
