"""What is known: accuracies of prompts and of full fine-tuning on the same tasks, as published.

Facts of Han et al., ICLR 2024: its scale study (Tables 5 and 6, one seed, supervised ViT-B/16) and its other backbones
(Tables 7 to 15). Accuracies are percent.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Group = Literal["natural", "specialized", "structured"]
SUPERVISED_VIT = "vit-supervised"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A task at one size, tuned in both ways.

    - `backbone`: what was tuned, in the words of this file.
    - `images`: training images, as the paper names the size (at 800, the final training has 1,000).
    - `full`, `prompts`: test accuracy in percent.
    """

    backbone: str
    task: str
    group: Group
    images: int
    classes: int
    full: float
    prompts: float

    @property
    def gap(self) -> float:
        """Prompts minus full fine-tuning, in points."""
        return self.prompts - self.full

    @property
    def prompts_win(self) -> bool:
        """A tie counts for prompts: they are smaller."""
        return self.prompts >= self.full

    @property
    def per_class(self) -> float:
        """Training images for each class, m."""
        return self.images / self.classes


@cache
def scale_cells() -> tuple[Cell, ...]:
    """The 66 cells of the scale study: 19 tasks of VTAB at 400 and 800 images, 14 of them at 5,000 and 10,000."""
    return tuple(
        Cell(
            backbone=SUPERVISED_VIT,
            task=row["task"],
            group=row["group"],  # type: ignore[arg-type]  # of the file
            images=int(row["n_train"]),
            classes=int(row["classes"]),
            full=float(row["ft"]),
            prompts=float(row["vpt"]),
        )
        for row in _rows("cells.csv")
    )


@cache
def other_cells() -> tuple[Cell, ...]:
    """The 57 cells of other backbones at 800 images: Swin-B, and ViT-B with MAE and MoCo-v3."""
    classes = {cell.task: cell.classes for cell in scale_cells()}
    return tuple(
        Cell(
            backbone=row["backbone"],
            task=row["task"],
            group=row["group"],  # type: ignore[arg-type]  # of the file
            images=int(row["n_train"]),
            classes=classes[row["task"]],
            full=float(row["ft"]),
            prompts=float(row["vpt"]),
        )
        for row in _rows("other_backbones.csv")
    )


def _rows(name: str) -> list[dict[str, str]]:
    text = files("promptvit.study").joinpath("assets", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def crossing(sizes: Sequence[int | float], gaps: Sequence[float]) -> float | None:
    """The number of images where the gap first changes its sign, linear in log10 of the size; None if it never does.

    `sizes` rise. A gap of exactly zero is no crossing by itself.
    """
    known = [(size, gap) for size, gap in zip(sizes, gaps, strict=True) if gap]
    for (size, gap), (later, other) in itertools.pairwise(known):
        if gap * other < 0:
            share = gap / (gap - other)
            return 10 ** (math.log10(size) + share * (math.log10(later) - math.log10(size)))
    return None
