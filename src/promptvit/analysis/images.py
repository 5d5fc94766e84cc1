"""The images that an analysis looks at: the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from promptvit.data.dataset import Batch, ImageDataset
from promptvit.data.transforms import normalise
from promptvit.errors import ConfigError
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Images

BATCH_SIZE = 32


def choose(dataset: ImageDataset, wanted: int, where: str) -> Batch:
    """Pixels and labels of at most `wanted` images, without regard to order: lists may be sorted by class, or cycle."""
    if wanted < 1:
        raise ConfigError(f"images={wanted}", expected="at least 1", where=where)
    return dataset.__getitems__(sorted(np.random.default_rng(0).permutation(len(dataset))[:wanted].tolist()))


def batches(
    pixels: UInt8[Tensor, "n 3 height width"], preprocessing: Preprocessing, device: torch.device
) -> Iterator[Images]:
    """The images as a model on `device` sees them, a few at a time."""
    return (normalise(part.to(device), preprocessing) for part in pixels.split(BATCH_SIZE))
