"""Images as features, for statistics: by a pretrained backbone as it is, without prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from promptvit.analysis.feature_stats import ROWS, FeatureSpace, FeatureStats
from promptvit.analysis.gaussian import Rows
from promptvit.backbones.base import Backbone
from promptvit.data.config import DataConfig
from promptvit.data.dataset import ImageDataset
from promptvit.data.load import load_split, load_task
from promptvit.data.transforms import normalise
from promptvit.errors import ConfigError, DataError
from promptvit.files import digest
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Features
from promptvit.train.stock import BATCH, SplitName

Progress = Callable[[str, int, int], Any]
"""Told what is done, how much of it, and out of how much."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A function from images to features, with what identifies it.

    - `space`: the space that features are in.
    - `preprocessing`: how a picture becomes stored pixels.
    - `read`: features [B, d] of stored pixels uint8 [B, 3, height, width].
    """

    space: FeatureSpace
    preprocessing: Preprocessing
    read: Callable[[UInt8[Tensor, "B 3 height width"]], Features]

    @staticmethod
    def of(backbone: Backbone) -> Extractor:
        """The features that `backbone` alone reads, on its device; raises ConfigError for that of a tuned model."""
        if backbone.of_task:
            raise ConfigError("the backbone of a tuned model", expected="the pretrained one", where="Extractor")
        preprocessing = backbone.preprocessing
        device = next(backbone.parameters()).device
        return Extractor(
            space=FeatureSpace(
                extractor=backbone.source.name or type(backbone.model).__name__,
                fingerprint=backbone.fingerprint,
                preprocessing=preprocessing,
            ),
            preprocessing=preprocessing,
            read=lambda pixels: backbone(normalise(pixels.to(device), preprocessing)),
        )


def feature_stats(
    extractor: Extractor, images: ImageDataset, *, name: str, rows: int = ROWS, progress: Progress | None = None
) -> FeatureStats:
    """The statistics of `images`, which are read as `extractor` wants them. Raises DataError for a single image."""
    features, distinct = read_features(extractor, images, progress)
    return FeatureStats.of(features, name=name, space=extractor.space, distinct=distinct, rows=rows)


@torch.no_grad()
def read_features(extractor: Extractor, images: ImageDataset, progress: Progress | None = None) -> tuple[Rows, int]:
    """The features [n, d] of `images`, and how many of these are no copies: one that the extractor gets twice, pixel by
    pixel, counts once."""
    parts, seen = [], set()
    for start in range(0, len(images), BATCH):
        pixels, _ = images.__getitems__(range(start, min(start + BATCH, len(images))))
        seen.update(digest(image.numpy().tobytes()) for image in pixels)
        parts.append(extractor.read(pixels).float().cpu().numpy())
        if progress:
            progress("features", start + len(pixels), len(images))
    return np.concatenate(parts), len(seen)


def task_stats(
    extractor: Extractor,
    data: DataConfig,
    split: SplitName = "train",
    images: int | None = None,
    progress: Progress | None = None,
) -> FeatureStats:
    """The statistics of a split of the task in `data`, or of `images` of it, drawn with the seed 0.

    Of `data` only what chooses images counts: they are read as `extractor` wants them. Raises DataError for a split
    that the task does not have.
    """
    task = load_task(data)
    chosen = {"train": task.train, "val": task.val, "test": task.test}[split]
    if chosen is None:
        raise DataError(f"the task {task.name} has no {split} images", expected="train or val", where="statistics")
    if images is not None:
        if images < 2:
            raise ConfigError(f"images={images}", expected="at least 2", where="statistics")
        chosen = chosen.select(np.sort(np.random.default_rng(0).permutation(len(chosen))[:images]))
    total = len(chosen)
    told = None if progress is None else lambda done: progress("images", done, total)
    read = load_split(chosen, extractor.preprocessing, data, told)
    return feature_stats(extractor, read, name=f"{task.name} {split}", progress=progress)
