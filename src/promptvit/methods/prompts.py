"""Prompt rows as a module: which block gets which, drawn anew where dropout says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from promptvit.backbones.base import NOTHING, Backbone, BlockInput
from promptvit.methods.base import Delta


class Prompts(Delta):
    """Prompts for `blocks` blocks in a row, from block `first` on.

    `prompts` [S, P, width]: one tensor per stage of equal width, with a set for each of its blocks; with `shared` one
    tensor [1, P, width], which all blocks use. `project` brings them to the width of the tokens. `ends`: behind the
    last of these blocks no prompt rows travel on. `trained`: whether the values ever change; they are saved either way.
    """

    def __init__(
        self,
        prompts: Sequence[Float[Tensor, "_ P _"]],
        *,
        first: int,
        blocks: int,
        shared: bool,
        ends: bool,
        dropout: float,
        project: nn.Module | None,
        trained: bool,
    ) -> None:
        super().__init__()
        self.prompts = nn.ParameterList(nn.Parameter(stage, requires_grad=trained) for stage in prompts)
        self.project = project
        self.dropout = dropout
        self.first, self.blocks, self.shared, self.ends = first, blocks, shared, ends

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """Prompts [P, D] per block; [B, P, D] with an own mask for every image and block under dropout."""
        given = [BlockInput(tokens=tokens) for stage in self.prompts for tokens in self.drawn(stage, batch).unbind(0)]
        stop = self.first + self.blocks
        behind = [NOTHING] * (backbone.info.depth - stop)
        if self.ends and behind:
            behind[0] = BlockInput(tokens=self.prompts[-1].new_empty(0, backbone.info.widths[stop]))
        return (*[NOTHING] * self.first, *given, *behind)

    def drawn(self, stage: Tensor, batch: int) -> Tensor:
        """The prompts of a stage as its blocks get them: [S, P, D], or [S, B, P, D] under dropout."""
        values = stage if self.project is None else self.project(stage)  # [S, P, D]
        if self.shared:
            values = values.expand(self.blocks, -1, -1)
        if self.training and self.dropout > 0:
            values = values.unsqueeze(1).expand(-1, batch, -1, -1)  # [S, B, P, D]
            values = F.dropout(values, self.dropout)
        return values


def patch_embedding_bound(backbone: Backbone, width: int) -> float:
    """sqrt(6 / (channels · patch area + width)): 0.0625 for ViT-B/16 (KMnP/vpt issues 3 and 11)."""
    height, across = backbone.info.patch_size
    return math.sqrt(6 / (backbone.info.channels * height * across + width))
