"""Prompts out of patch tokens: which tokens of which images, pooled, averaged or clustered, in bounded memory.

What is drawn is known before any image is read (index first), so results depend neither on the batch size nor on the
device, and only images that are needed pass through the backbone.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

TOKENS_PER_CENTRE = 256
"""Tokens that k-means gets for each centre, at most: faiss samples as many, and memory stays bounded."""

Pool = Callable[[Tensor], Tensor]


class Collector(ABC):
    """What one block's prompts are made of, from one batch of patch tokens after the other."""

    @property
    @abstractmethod
    def needed(self) -> np.ndarray:
        """The places (in the list of chosen images) of those that it wants to see."""

    @abstractmethod
    def add(self, tokens: Float[Tensor, "B M D"], places: Sequence[int]) -> None:
        """The patch tokens of the images at `places`."""

    @abstractmethod
    def result(self) -> Float[Tensor, "P D"]:
        """The prompts, when all that is needed has been added; on the CPU."""


class Picked(Collector):
    """Rows at drawn (image, token) pairs [count, 2], of tokens that `pool` has gone over."""

    def __init__(self, pairs: np.ndarray, pool: Pool) -> None:
        self.pairs, self.pool = pairs, pool
        self.rows: Tensor | None = None

    @property
    def needed(self) -> np.ndarray:
        """See `Collector`."""
        return np.unique(self.pairs[:, 0])

    def add(self, tokens: Float[Tensor, "B M D"], places: Sequence[int]) -> None:
        """See `Collector`."""
        if self.rows is None:
            self.rows = tokens.new_empty(len(self.pairs), tokens.shape[-1], device="cpu")
        place_in_batch = {place: index for index, place in enumerate(places)}
        slots = np.flatnonzero(np.isin(self.pairs[:, 0], places))
        if len(slots):
            images = torch.tensor([place_in_batch[int(place)] for place in self.pairs[slots, 0]], device=tokens.device)
            chosen = torch.from_numpy(self.pairs[slots, 1]).to(tokens.device)
            self.rows[torch.from_numpy(slots)] = self.pool(tokens)[images, chosen].cpu()

    def result(self) -> Float[Tensor, "P D"]:
        """See `Collector`."""
        assert self.rows is not None
        return self.rows


class Averaged(Collector):
    """The weighted mean over images of what `pool` makes of their tokens; one weight per image, 1 in all."""

    def __init__(self, weights: np.ndarray, pool: Pool) -> None:
        self.weights, self.pool = weights, pool
        self.total: Tensor | float = 0.0

    @property
    def needed(self) -> np.ndarray:
        """See `Collector`."""
        return np.arange(len(self.weights))

    def add(self, tokens: Float[Tensor, "B M D"], places: Sequence[int]) -> None:
        """See `Collector`."""
        weights = torch.from_numpy(self.weights[list(places)])
        self.total = self.total + torch.einsum("bpd,b->pd", self.pool(tokens).cpu().double(), weights)

    def result(self) -> Float[Tensor, "P D"]:
        """See `Collector`."""
        assert isinstance(self.total, Tensor)
        return self.total


class Clustered(Picked):
    """The centres of a k-means (Lloyd, k-means++ start) over rows at drawn (image, token) pairs."""

    def __init__(self, pairs: np.ndarray, centres: int, seed: int) -> None:
        super().__init__(pairs, pool=lambda tokens: tokens)
        self.centres, self.seed = centres, seed

    def result(self) -> Float[Tensor, "P D"]:
        """See `Collector`."""
        return cluster(super().result(), self.centres, self.seed)


def cluster(tokens: Float[Tensor, "n D"], centres: int, seed: int) -> Float[Tensor, "P D"]:
    """The `centres` of the tokens; some are alike if fewer tokens differ."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(n_clusters=centres, n_init="auto", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer tokens differ than there are centres
        model.fit(tokens.to(torch.promote_types(tokens.dtype, torch.float32)).numpy())
    return torch.from_numpy(model.cluster_centers_)


def draw(
    generator: np.random.Generator, images: int, tokens: int, count: int, classes: np.ndarray | None = None
) -> np.ndarray:
    """`count` different (image, token) pairs [count, 2] of `images` times `tokens`, uniformly.

    With `classes` [images], the same number from every class (as far as it has as many; at most one more or less).
    """
    if classes is None:
        flat = generator.choice(images * tokens, count, replace=False)
    else:
        shuffled = generator.permutation(images * tokens)
        flat = shuffled[first_of_each(classes[shuffled // tokens], generator)[:count]]
    return np.stack([flat // tokens, flat % tokens], axis=1)


def first_of_each(classes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An order of places in `classes`: the first ones of all classes, in a random order, then all second ones, ...

    First and second are meant as `classes` has them: shuffle it before.
    """
    by_class = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[by_class], prepend=-1))
    rank = np.empty(len(classes), dtype=np.int64)
    rank[by_class] = np.arange(len(classes)) - np.repeat(starts, np.diff(starts, append=len(classes)))
    return np.lexsort((generator.random(len(classes)), rank))


def windows(tokens: int, count: int) -> list[slice]:
    """`count` windows in raster order that hold each of `tokens` tokens once; their sizes differ by at most 1."""
    edges = [tokens * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def compat_windows(tokens: int, count: int) -> list[slice]:
    """The official code's: `count` - 1 windows of w = tokens // (count - 1), then the last tokens % w ones, or all of
    them if none remain. Some tokens are in no window, or in two."""
    size = tokens // (count - 1)
    rest = tokens % size
    last = slice(tokens - rest, tokens) if rest else slice(0, tokens)
    return [*(slice(index * size, (index + 1) * size) for index in range(count - 1)), last]


def mean_over(parts: Sequence[slice]) -> Pool:
    """The mean token of each window: [B, M, D] to [B, P, D]."""
    return lambda tokens: torch.stack([tokens[:, part].mean(dim=1) for part in parts], dim=1)


def max_over(parts: Sequence[slice]) -> Pool:
    """The largest value of each window, in every dimension: [B, M, D] to [B, P, D]."""
    return lambda tokens: torch.stack([tokens[:, part].amax(dim=1) for part in parts], dim=1)
