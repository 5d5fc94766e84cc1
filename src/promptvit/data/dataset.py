"""A split as a torch dataset: decoded once into memory if it fits, else again for every batch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from promptvit.data.config import BrokenPolicy
from promptvit.data.decode import decode, fit, quiet_pillow
from promptvit.data.task import Split
from promptvit.errors import BrokenImageError, DataError
from promptvit.preprocessing import Preprocessing

Progress = Callable[[int], None]
Batch = tuple[UInt8[Tensor, "B 3 height width"], Int64[Tensor, " B"]]


class ImageDataset(Dataset):
    """Pairs of uint8 pixels [3, *stored_size] and a label; pixels are copies, so the cache stays as it is.

    - `broken`: raise BrokenImageError at the first image that cannot be decoded, or leave all of them out.
    - `cache_bytes`: keep the decoded split in memory if it is no larger than this.
    - `progress`: called with the number of images done so far, while they are decoded or checked.

    Every file is decoded once here, cached or not: a broken one stops a run before it starts, not in its
    middle. Raises DataError if no image is left.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        broken: BrokenPolicy = "error",
        cache_bytes: int = 2 * 2**30,
        progress: Progress | None = None,
    ) -> None:
        if not len(split):
            raise DataError("a split without images", expected="at least one")
        shape = (len(split), 3, *preprocessing.stored_size)
        self.preprocessing = preprocessing
        self.split = split
        self._pixels = torch.empty(shape, dtype=torch.uint8) if math.prod(shape) <= cache_bytes else None
        self.skipped = tuple(self._read_all(broken, progress))
        if self.skipped:
            self._leave_out({error.path for error in self.skipped})
        self.labels = torch.from_numpy(self.split.labels.copy())  # [n]

    @property
    def cached(self) -> bool:
        """Whether all pixels are in memory."""
        return self._pixels is not None

    @property
    def bytes(self) -> int:
        """How much memory the decoded pixels take."""
        return 0 if self._pixels is None else self._pixels.nbytes

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int]:
        pixels = self._decode(index) if self._pixels is None else self._pixels[index].clone()
        return pixels, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch, collated already: pixels [B, 3, h, w] and labels [B]. DataLoader calls this."""
        rows = torch.as_tensor(indices)
        if self._pixels is not None:
            return self._pixels[rows], self.labels[rows]
        return torch.stack([self._decode(index) for index in indices]), self.labels[rows]

    def _decode(self, index: int) -> UInt8[Tensor, "3 height width"]:
        image = self.split.images[index]
        rgb = Image.fromarray(image) if isinstance(image, np.ndarray) else decode(image)
        return fit(rgb, self.preprocessing)

    def _read_all(self, broken: BrokenPolicy, progress: Progress | None) -> list[BrokenImageError]:
        """Decode every image, into the cache if there is one; return the broken ones, or raise the first."""
        if self._pixels is None and isinstance(self.split.images, np.ndarray):
            return []  # nothing to keep, and pixels in memory cannot be broken

        def read(index: int) -> BrokenImageError | None:
            try:
                pixels = self._decode(index)
            except BrokenImageError as error:
                if broken == "error":
                    raise
                return error
            if self._pixels is not None:
                self._pixels[index] = pixels
            return None

        errors = []
        # Pillow lets go of the interpreter lock while it decodes and resizes, so threads do run side by side.
        with quiet_pillow(), ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
            for done, error in enumerate(pool.map(read, range(len(self.split))), start=1):
                errors += [error] if error else []
                if progress:
                    progress(done)
        return errors

    def _leave_out(self, broken: set[Path]) -> None:
        keep = [index for index, image in enumerate(self.split.images) if image not in broken]
        if not keep:
            raise DataError(f"all {len(self.split)} images are broken", fix=f"The first one: {self.skipped[0].reason}")
        self.split = self.split.select(keep)
        if self._pixels is not None:
            self._pixels = self._pixels[keep]


class FeatureDataset(Dataset):
    """Features [n, D] of images and their labels [n], read as an ImageDataset is read."""

    cached = True

    def __init__(self, features: Float32[Tensor, "n D"], labels: Int64[Tensor, " n"]) -> None:
        self.features, self.labels = features, labels

    @property
    def bytes(self) -> int:
        """How much memory the features take."""
        return self.features.nbytes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Float32[Tensor, " D"], int]:
        return self.features[index].clone(), int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Float32[Tensor, "B D"], Int64[Tensor, " B"]]:
        """A whole batch: features [B, D] and labels [B]."""
        rows = torch.as_tensor(indices)
        return self.features[rows], self.labels[rows]


def collate(batch: Any) -> Any:
    """The batch as it is, for a DataLoader over one of these datasets: it was collated when it was read."""
    return batch
