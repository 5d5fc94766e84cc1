"""The training images of a run, for methods whose initial values come from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from promptvit.data.config import Augmentation
from promptvit.data.dataset import ImageDataset
from promptvit.data.transforms import augment, normalise
from promptvit.methods.samples import Samples
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Images


class TrainingSamples(Samples):
    """Images of `dataset` on `device`, as in evaluation, or one augmented view of each that depends on `seed` alone."""

    def __init__(
        self,
        dataset: ImageDataset,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        batch_size: int,
        augmentation: Augmentation = "none",
        seed: int = 0,
    ) -> None:
        self.dataset, self.preprocessing, self.device, self.batch_size = dataset, preprocessing, device, batch_size
        self.augmentation: Augmentation = augmentation
        self.augmented = augmentation != "none"
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """See `Samples`."""
        return self.dataset.labels

    def images(self, numbers: Sequence[int]) -> Images:
        """See `Samples`."""
        pixels, _ = self.dataset.__getitems__(numbers)
        if self.augmented:  # one by one: what an image becomes must not depend on its neighbours
            views = [self._view(pixels[place : place + 1], number) for place, number in enumerate(numbers)]
            pixels = torch.cat(views)
        return normalise(pixels.to(self.device), self.preprocessing)

    def _view(self, pixels: Tensor, number: int) -> Tensor:
        # Both numbers go through a hash: torch takes the low 32 bits of a seed alone.
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        return augment(pixels, self.augmentation, self.preprocessing, generator)
