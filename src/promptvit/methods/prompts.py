"""Prompt rows as a module: which block gets which, drawn anew where dropout says so; all of them, or those kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from promptvit.backbones.base import NOTHING, Backbone, BlockInput
from promptvit.errors import ConfigError
from promptvit.methods.base import Delta
from promptvit.methods.masks import Masks, segment_of


class Prompts(Delta):
    """Prompts for `blocks` blocks in a row, from block `first` on.

    `prompts` [S, P, width]: one tensor per stage of equal width, with a set for each of its blocks; with `shared` one
    tensor [1, P, width], which all blocks use. `project` brings them to the width of the tokens. `ends`: behind the
    last of these blocks no prompt rows travel on. `trained`: whether the values ever change; they are saved either way.
    `kept` [P, width], for each of `prompts`: the values that are there; all others are zero and stored nowhere.
    """

    def __init__(
        self,
        prompts: Sequence[Float[Tensor, "_ _ _"]],
        *,
        first: int,
        blocks: int,
        shared: bool,
        ends: bool,
        dropout: float,
        project: nn.Module | None,
        trained: bool,
        kept: Sequence[Bool[np.ndarray, "_ _"]] | None = None,
    ) -> None:
        super().__init__()
        whole = [np.ones(stage.shape[1:], dtype=bool) for stage in prompts]
        self.places = nn.ModuleList(_Places(values) for values in (whole if kept is None else kept))
        stored = [places.take(stage) for places, stage in zip(self._places(), prompts, strict=True)]
        self.prompts = nn.ParameterList(nn.Parameter(stage, requires_grad=trained) for stage in stored)
        self.project = project
        self.dropout = dropout
        self.first, self.blocks, self.shared, self.ends, self.trained = first, blocks, shared, ends, trained

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """Prompts [P, D] per block; [B, P, D] with an own mask for every image and block under dropout."""
        given = [BlockInput(tokens=tokens) for stage in self.stages() for tokens in self.drawn(stage, batch).unbind(0)]
        stop = self.first + self.blocks
        behind = [NOTHING] * (backbone.info.depth - stop)
        if self.ends and behind:
            behind[0] = BlockInput(tokens=self.prompts[-1].new_empty(0, backbone.info.widths[stop]))
        return (*[NOTHING] * self.first, *given, *behind)

    def stages(self) -> Iterator[Tensor]:
        """The prompts [S, P, width] of each stage, with zeros in place of pruned values."""
        for stage, places in zip(self.prompts, self._places(), strict=True):
            yield places.put(stage)

    def _places(self) -> list[_Places]:
        return [cast(_Places, places) for places in self.places]

    def drawn(self, stage: Tensor, batch: int) -> Tensor:
        """The prompts of a stage as its blocks get them: [S, P, D], or [S, B, P, D] under dropout."""
        values = stage if self.project is None else self.project(stage)  # [S, P, D]
        if self.shared:
            values = values.expand(self.blocks, -1, -1)
        if self.training and self.dropout > 0:
            values = values.unsqueeze(1).expand(-1, batch, -1, -1)  # [S, B, P, D]
            values = F.dropout(values, self.dropout)
        return values

    def pruned(self, masks: Masks) -> Prompts:
        """The same values without those that `masks` prunes; blocks that keep the same ones share a tensor.

        Raises ConfigError for masks that do not fit these prompts.
        """
        sets = [block for stage in self.prompts for block in stage.unbind(0)]  # [P, width] each
        self._check(masks, sets)
        tokens, segments = masks.kept_tokens(len(sets)), masks.kept_segments(len(sets))
        groups: list[tuple[Tensor, np.ndarray]] = []
        numbers = range(len(sets))
        for _, group in groupby(numbers, lambda i: (sets[i].shape[1], tokens[i].tobytes(), segments[i].tobytes())):
            same = list(group)
            stage, (rows, parts) = torch.stack([sets[i] for i in same]), (tokens[same[0]], segments[same[0]])
            width = stage.shape[-1]
            if masks.prunes_segments:
                values = parts[:, segment_of(width, masks.parts, masks.layout)]
            else:
                values = np.repeat(rows[:, None], width, axis=1)  # of any width
            if not masks.compat_zero:
                stage, values = stage[:, np.flatnonzero(rows)], values[rows]
            groups.append((stage.detach(), values))
        return Prompts(
            [stage for stage, _ in groups],
            first=self.first,
            blocks=self.blocks,
            shared=self.shared,
            ends=self.ends,
            dropout=self.dropout,
            project=self.project,
            trained=self.trained,
            kept=[values for _, values in groups],
        )

    def _check(self, masks: Masks, sets: Sequence[Tensor]) -> None:
        length = sets[0].shape[0]
        problems = {
            f"masks of {masks.length} prompts for {length}: they belong to another run": masks.length != length,
            "segments of projected prompts: a projection mixes them": self.project is not None
            and masks.prunes_segments,
            "compat_zero with projected prompts: a projection with a bias moves zeros": self.project is not None
            and masks.compat_zero,
        }
        ConfigError.collect([reason for reason, holds in problems.items() if holds], "Masks")


class _Places(nn.Module):
    """Where the `kept` values of prompts [P, width] stand."""

    numbers: Tensor

    def __init__(self, kept: Bool[np.ndarray, "P width"]) -> None:
        super().__init__()
        self.shape, self.whole = kept.shape, bool(kept.all())
        self.register_buffer("numbers", torch.from_numpy(np.flatnonzero(kept)), persistent=False)

    def take(self, stage: Float[Tensor, "S P width"]) -> Tensor:
        """Its kept values [S, n], or the prompts as they are if that is all."""
        return stage if self.whole else stage.flatten(1)[:, self.numbers.to(stage.device)]

    def put(self, values: Tensor) -> Float[Tensor, "S P width"]:
        """These values in their places among zeros."""
        if self.whole:
            return values
        zeros = values.new_zeros(len(values), math.prod(self.shape))
        return zeros.index_copy(1, self.numbers, values).unflatten(1, self.shape)


def patch_embedding_bound(backbone: Backbone, width: int) -> float:
    """sqrt(6 / (channels · patch area + width)): 0.0625 for ViT-B/16 (KMnP/vpt issues 3 and 11)."""
    height, across = backbone.info.patch_size
    return math.sqrt(6 / (backbone.info.channels * height * across + width))
