"""Self-Prompt Tuning: VPT whose prompts start as patch tokens of the task's own images (Wang et al., ICML 2024,
arXiv 2402.02382)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from promptvit.backbones.base import NOTHING, Backbone, BackboneInfo, BlockInput, Readout, TokenBackbone
from promptvit.backbones.walk import walk
from promptvit.errors import ConfigError, DataError
from promptvit.methods.base import METHODS, Delta, Method, Preset, unknown_choices
from promptvit.methods.patch_tokens import (
    TOKENS_PER_CENTRE,
    Averaged,
    Clustered,
    Collector,
    Picked,
    Pool,
    compat_windows,
    draw,
    first_of_each,
    max_over,
    mean_over,
    windows,
)
from promptvit.methods.prompts import Prompts
from promptvit.methods.samples import Samples
from promptvit.methods.vpt import VPT

Source = Literal["random", "mean", "max", "kmeans"]
PAPER_LENGTHS = {"deep": 20, "shallow": 100}


@dataclass(frozen=True, kw_only=True)
class SPT(Method):
    """VPT that starts from the task's own tokens: for every block, from the patch tokens that enter it in the plain
    frozen model, before its norm. No CLS or register row is ever taken. Trained and saved as VPT.

    - `length`: prompts per block, P; null is the paper's: 20 with `deep`, 100 with `shallow`.
    - `depth`: `shallow` puts prompts before the first block, and they travel on; `deep` gives every block its own.
    - `source`: `random` takes tokens drawn uniformly; `mean` and `max` pool the tokens of P windows of an image;
      `kmeans` takes the centres of P clusters.
    - `across`: of `mean` and `max`: `average` has prompt j as the mean over images of window j; `sample` draws P of all
      pooled vectors, as the official code does.
    - `images`: at most so many distinct training images, drawn at random if there are more.
    - `balanced`: every class counts the same; without it every image does.
    - `augment`: in `promptvit train` and `fit`, images as training augments them (`--data.augment`), one view of each,
      drawn by `train.seed`; else as in evaluation.
    - `layer0_positions`: at the first block, tokens with position embedding; without it a prompt sits at no place of
      the grid, as in the paper. A backbone with a norm before its first block (CLIP) always has them; one that adds no
      positions to tokens (Swin, rotary ones) has none.
    - `capture`: `plain` reads all blocks in one forward pass without prompts; `sequential` has the prompts of earlier
      blocks in place while it reads the next, in one pass per block.
    - `seed`: of everything that is drawn. The same for the same seed, whatever the batch size or the device.
    - `dropout`: on the prompt values, drawn anew for every image.
    - `fixed`: prompts stay as they start; the head learns (Table 1a).
    - `pooling`: what is read after the last block, as in VPT.
    - `compat_pooling`: the official code's windows, of which some leave tokens out or use them twice.
    """

    length: int | None = None
    depth: Literal["shallow", "deep"] = "deep"
    source: Source = "random"
    across: Literal["average", "sample"] = "average"
    images: int = 1024
    balanced: bool = False
    augment: bool = False
    layer0_positions: bool = False
    capture: Literal["plain", "sequential"] = "plain"
    seed: int = 0
    dropout: float = 0.0
    fixed: bool = False
    pooling: Readout = "own"
    compat_pooling: bool = False

    kind: ClassVar[str] = "spt"
    learning_rate: ClassVar[float] = VPT.learning_rate

    def __post_init__(self) -> None:
        problems = unknown_choices(self)
        if self.length is not None and self.length < 1:
            problems.append(f"length={self.length}: expected at least 1 prompt; the method `linear` has none")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}: expected a probability in [0, 1)")
        if self.images < 1:
            problems.append(f"images={self.images}: expected at least 1")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed={self.seed}: expected 0 to 2**32 - 1")
        pooled = self.source in ("mean", "max")
        meaningless = {
            f"across={self.across} with source={self.source}: only mean and max pool": self.across != "average"
            and not pooled,
            f"compat_pooling with source={self.source}: only mean and max pool": self.compat_pooling and not pooled,
            "compat_pooling with length=1: the official windows divide by length - 1": self.compat_pooling
            and self.length == 1,
            "capture=sequential with depth=shallow: the first block has no earlier prompts": self.depth == "shallow"
            and self.capture == "sequential",
        }
        ConfigError.collect([*problems, *(reason for reason, holds in meaningless.items() if holds)], "SPT")

    @property
    def vpt(self) -> VPT:
        """The method that trains what this starts."""
        return VPT(
            length=self.length or PAPER_LENGTHS[self.depth],
            depth=self.depth,
            dropout=self.dropout,
            fixed=self.fixed,
            pooling=self.pooling,
        )

    def refusal(self, info: BackboneInfo) -> str:
        """VPT's."""
        return self.vpt.refusal(info)

    def build(self, backbone: Backbone) -> Delta:
        """Prompts as those of VPT, until `start`."""
        return self.vpt.build(backbone)

    @property
    def readout(self) -> Readout:
        """`pooling`."""
        return self.pooling

    @property
    def needs_samples(self) -> bool:
        """Always."""
        return True

    @property
    def augments_samples(self) -> bool:
        """`augment`."""
        return self.augment

    @torch.no_grad()
    def start(self, delta: Delta, backbone: Backbone, samples: Samples | None, classes: int) -> None:
        """Prompts from patch tokens of `samples`; nothing is changed before all of them are there."""
        assert isinstance(delta, Prompts)
        assert isinstance(backbone, TokenBackbone)
        assert samples is not None
        chosen = self.chosen(samples)
        blocks = [block for stage in delta.prompts for block in stage.unbind(0)]  # [P, D] each, views
        collectors = dict(enumerate(self.collectors(backbone, samples, chosen, len(blocks))))
        found: list[Tensor] = []
        if self.capture == "plain":
            capture(backbone, samples, chosen, collectors, self.layer0_positions)
            found = [collector.result() for collector in collectors.values()]
        else:
            for index, collector in collectors.items():
                capture(backbone, samples, chosen, {index: collector}, self.layer0_positions, found)
                found.append(collector.result())
        for prompts, values in zip(blocks, found, strict=True):
            prompts.copy_(values)

    def chosen(self, samples: Samples) -> np.ndarray:
        """The numbers of the images that tokens come from, sorted; balanced over classes if so asked."""
        generator = np.random.default_rng((self.seed, 0))
        if self.balanced and len(samples.labels.unique()) < 2:
            raise DataError(
                f"all {len(samples)} training images are of one class", expected="two or more to balance", where="SPT"
            )
        if len(samples) <= self.images:
            return np.arange(len(samples))
        order = generator.permutation(len(samples))
        if self.balanced:
            order = order[first_of_each(samples.labels.numpy()[order], generator)]
        return np.sort(order[: self.images])

    def collectors(self, backbone: TokenBackbone, samples: Samples, chosen: np.ndarray, blocks: int) -> list[Collector]:
        """One per block, with all that is drawn."""
        labels = samples.labels.numpy()[chosen] if self.balanced else None
        counts = patch_counts(backbone, samples, chosen)
        return [self.collector(index, len(chosen), counts[index], labels) for index in range(blocks)]

    def collector(self, index: int, images: int, tokens: int, labels: np.ndarray | None) -> Collector:
        """Of block `index`, for `images` images of `tokens` patch tokens, with `labels` if classes are balanced."""
        length = self.vpt.length
        generator = np.random.default_rng((self.seed, index + 1))
        if self.source in ("random", "kmeans"):
            self.check_length(length, images * tokens, f"{images} images have {tokens} patch tokens each")
            if self.source == "random":
                return Picked(draw(generator, images, tokens, length, labels), pool=lambda given: given)
            count = min(images * tokens, TOKENS_PER_CENTRE * length)
            return Clustered(draw(generator, images, tokens, count, labels), length, self.seed)
        self.check_length(length, tokens + self.compat_pooling, f"an image has {tokens} patch tokens to pool")
        pool = self.pool(tokens, length)
        if self.across == "sample":
            return Picked(draw(generator, images, length, length, labels), pool)
        return Averaged(np.full(images, 1 / images) if labels is None else class_weights(labels), pool)

    def pool(self, tokens: int, length: int) -> Pool:
        """What `mean` and `max` do with the patch tokens of an image."""
        parts = (compat_windows if self.compat_pooling else windows)(tokens, length)
        return (mean_over if self.source == "mean" else max_over)(parts)

    def check_length(self, length: int, most: int, why: str) -> None:
        """Raise ConfigError if there are too few tokens."""
        if length > most:
            raise ConfigError(
                f"length={length} with source={self.source}: {why}",
                expected=f"at most {most} prompts",
                where="SPT",
                fix="Fewer prompts, or more images",
            )


def capture(
    backbone: TokenBackbone,
    samples: Samples,
    chosen: np.ndarray,
    collectors: dict[int, Collector],
    positions: bool,
    before: Sequence[Tensor] = (),
) -> None:
    """Hand the patch tokens that enter each block of `collectors` to its collector, in one pass over the images needed.

    `before`: prompts [P, D] of the first blocks, in place meanwhile. Raises DataError for tokens that are not finite.
    """
    needed = np.unique(np.concatenate([collector.needed for collector in collectors.values()]))
    like = next(backbone.parameters())  # images and prompts as the backbone has it: its device and type
    inputs = [*(BlockInput(tokens=t.to(like)) for t in before), *[NOTHING] * (backbone.info.depth - len(before))]
    place_of = {int(number): place for place, number in enumerate(chosen)}
    for images, numbers in samples.batches(chosen[needed].tolist()):
        images = images.to(like)
        places = [place_of[number] for number in numbers]
        for rows in walk(backbone, images, inputs):
            if rows.index in collectors:
                bare = rows.index == 0 and not (positions or backbone.norms_embedding)
                tokens = backbone.embed_patches(images) if bare else rows.image[:, backbone.info.prefix :]
                check_finite(tokens, rows.index, numbers)
                collectors[rows.index].add(tokens, places)
            if rows.index == max(collectors):
                break


def patch_counts(backbone: TokenBackbone, samples: Samples, chosen: np.ndarray) -> list[int]:
    """Patch tokens of an image at each block."""
    info = backbone.info
    image = samples.images([int(chosen[0])]).to(next(backbone.parameters()))
    if backbone.embed(image)[0].shape[1] == info.rows[0]:
        return [rows - info.prefix for rows in info.rows]
    return [rows.image.shape[1] - info.prefix for rows in walk(backbone, image)][:-1]  # not the model's own image size


def class_weights(labels: np.ndarray) -> np.ndarray:
    """A weight per image: the same sum for every class that is there, 1 in all."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[inverse])


def check_finite(tokens: Tensor, block: int, numbers: Sequence[int]) -> None:
    """Raise DataError for an image whose tokens are NaN or infinite."""
    broken = tokens.isfinite().flatten(1).all(dim=1).logical_not().nonzero()
    if len(broken):
        raise DataError(
            f"training image {numbers[int(broken[0])]} gives tokens at block {block + 1} that are NaN or infinite",
            expected="finite features",
            where="SPT",
            fix="Check the image and its normalisation, the weights of the backbone, or use fp32",
        )


for _name, _fields, _summary in (
    ("spt", {}, "prompts that start as patch tokens of the task's images"),
    ("spt-shallow", {"depth": "shallow"}, "these before the first block, where they travel on"),
    ("spt-deep", {"depth": "deep"}, "these fresh at every block"),
):
    METHODS.register(_name, Preset(method=SPT, fields=_fields, summary=_summary))
