"""The task's own training images, for methods whose initial values come from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from promptvit.errors import ConfigError, DataError
from promptvit.shapes import Images


@runtime_checkable
class Dataset(Protocol):
    """A map-style dataset of torch: `dataset[i]` is a normalised image [channels, height, width] and a label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Samples(ABC):
    """Images by number, from 0 to n-1, in an order that does not change; read `batch_size` at a time."""

    batch_size: int = 32
    augmented: bool = False
    """Whether these are views as training augments them."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are, n."""

    @property
    @abstractmethod
    def labels(self) -> Int64[Tensor, " n"]:
        """The class of each, on the CPU."""

    @abstractmethod
    def images(self, numbers: Sequence[int]) -> Images:
        """The images of these `numbers`, normalised."""

    def batches(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[Images, list[int]]]:
        """Images and their numbers: of all, or of those asked for."""
        chosen = list(range(len(self)) if numbers is None else numbers)
        for start in range(0, len(chosen), self.batch_size):
            part = chosen[start : start + self.batch_size]
            yield self.images(part), part


class DatasetSamples(Samples):
    """A map-style dataset of normalised images and labels; labels are read, with their images, when first asked for."""

    def __init__(self, dataset: Dataset, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}", expected="at least 1", where="DatasetSamples")
        self.dataset, self.batch_size = dataset, batch_size
        self._labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """See `Samples`."""
        if self._labels is None:
            self._labels = torch.tensor([self._item(number)[1] for number in range(len(self))])
        return self._labels

    def images(self, numbers: Sequence[int]) -> Images:
        """See `Samples`."""
        images = [self._item(number)[0] for number in numbers]
        for number, image in zip(numbers, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"samples[{number}] has shape {list(image.shape)}",
                    expected=f"{list(images[0].shape)}, as samples[{numbers[0]}] has",
                    where="samples",
                    fix="A transform brings all images to one size",
                )
        return torch.stack(images)

    def _item(self, number: int) -> tuple[Tensor, int]:
        """Image and label; raises DataError for anything else."""
        item = self.dataset[number]
        if isinstance(item, tuple | list) and len(item) == 2:
            image, label = item[0], _class_of(item[1])
            if isinstance(image, Tensor) and image.ndim == 3 and image.is_floating_point() and label is not None:
                return image, label
        raise DataError(
            f"samples[{number}] is {_described(item)}",
            expected="a normalised image [channels, height, width] of floats, and its label from 0 on",
            where="samples",
            fix="A loader's `dataset` has single images; a transform turns pictures into normalised tensors",
        )


def as_samples(given: object) -> Samples:
    """Samples as they are, or a dataset as samples; raises ConfigError for what has no length or cannot be read by
    number, and DataError for an empty one."""
    if not isinstance(given, Samples):
        if not isinstance(given, Dataset) or isinstance(given, Mapping):
            raise ConfigError(
                f"samples is a {type(given).__name__}",
                expected="a map-style dataset: dataset[i] is a normalised image and its label",
                where="tune",
                fix="Of a DataLoader, hand over its `dataset`",
            )
        given = DatasetSamples(given)
    if len(given) == 0:
        raise DataError("no training images", expected="at least one", where="samples")
    return given


def _class_of(label: object) -> int | None:
    """A whole number from 0 on, of whatever type; None for anything else."""
    value = label.tolist() if isinstance(label, Tensor | np.ndarray | np.generic) else label
    return value if isinstance(value, int) and value >= 0 else None


def _described(item: object) -> str:
    parts = item if isinstance(item, tuple | list) else [item]
    kinds = [f"{p.dtype} {list(p.shape)}" if isinstance(p, Tensor) else repr(p)[:40] for p in parts]
    return f"a {type(item).__name__} of {', '.join(kinds)}"
