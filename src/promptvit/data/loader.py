"""Batches in an order that can be repeated: a resumed run sees what the unbroken one would have seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from promptvit.data.dataset import FeatureDataset, ImageDataset, collate


class EpochSampler(Sampler[int]):
    """The indices 0 to n-1, shuffled if asked; the order depends on seed and epoch, and on nothing else."""

    def __init__(self, n: int, seed: int, shuffle: bool) -> None:
        self.n, self.seed, self.shuffle = n, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def order(self) -> np.ndarray:
        """The indices of this epoch, int64 [n]."""
        if not self.shuffle:
            return np.arange(self.n)
        # Both numbers go into the seed: with seed + epoch, run 1 would repeat run 0 an epoch later.
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.n)


class FeatureLoader:
    """The batches of `make_loader` without a DataLoader around them, which costs more than the batch of a linear layer.

    Of one process; `set_epoch` is as for an EpochSampler.
    """

    def __init__(
        self,
        dataset: FeatureDataset,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        device: torch.device,
    ) -> None:
        self.features, self.labels = dataset.features.to(device), dataset.labels.to(device)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.sampler = EpochSampler(len(dataset), seed, shuffle)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        images = len(self.sampler)
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float32[Tensor, "B D"], Int64[Tensor, " B"]]]:
        features, labels = self.features, self.labels
        if self.sampler.shuffle:
            order = torch.from_numpy(self.sampler.order()).to(labels.device)
            features, labels = features[order], labels[order]
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield features[rows], labels[rows]


def make_loader(
    dataset: ImageDataset | FeatureDataset,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int,
    drop_last: bool = False,
) -> DataLoader:
    """A loader of uint8 pixels [B, 3, h, w] and int64 labels [B]; a last batch that is smaller can be left out.

    `workers` processes decode a dataset that is not cached. Before an epoch, call `loader.sampler.set_epoch`;
    for a loader that accelerate prepared, its own `set_epoch`: it overrides the sampler's at each start.
    """
    processes = 0 if dataset.cached else workers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        drop_last=drop_last,
        sampler=EpochSampler(len(dataset), seed, shuffle),
        collate_fn=collate,
        num_workers=processes,
        persistent_workers=processes > 0,
        # Without a generator of its own, every epoch would move torch's global random state.
        generator=torch.Generator().manual_seed(seed),
    )


Loader = DataLoader | FeatureLoader
