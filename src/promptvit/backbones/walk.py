"""What stands between the blocks of a backbone: the rows that enter each of them, for methods and analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptvit.backbones.base import NOTHING, BlockInput, Positions, TokenBackbone, add, per_image
from promptvit.shapes import Images


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows at one of L+1 depths: as they enter block `index`, or with `index` = L as they leave the last one.

    `x` [B, N+P, D]: all of them, those of the image first. What comes next is computed from this very tensor, so that
    its gradient can be asked for.
    """

    index: int
    x: Tensor
    image_rows: int
    positions: Positions

    @property
    def image(self) -> Tensor:
        """CLS, registers and patches [B, N, D]."""
        return self.x[:, : self.image_rows]

    @property
    def prompts(self) -> Tensor:
        """Fresh prompts, or those that travel [B, P, D]; P may be 0."""
        return self.x[:, self.image_rows :]


def walk(backbone: TokenBackbone, images: Images, inputs: Sequence[BlockInput] = ()) -> Iterator[Rows]:
    """The rows at L+1 depths, before the norms of blocks and without the final norm.

    A block is computed when the rows behind it are asked for. This is the drive of `TokenBackbone.forward`, with every
    row computed.
    """
    inputs = inputs or [NOTHING] * backbone.info.depth
    x, positions = backbone.embed(images)  # [B, N, D]
    rows = x.shape[1]
    for index, given in enumerate(inputs):
        if given.tokens is not None:
            x = x[:, :rows]
        x, rows = backbone.enter(index, x, rows, positions)
        if given.added is not None:
            x = add(x, given.added, rows)
        if given.tokens is not None:
            x = torch.cat([x, per_image(given.tokens, x.shape[0])], dim=1)  # [B, N+P, D]
        yield Rows(index=index, x=x, image_rows=rows, positions=positions)
        x = backbone.block(index, x, given.inside, x.shape[1], positions)
    yield Rows(index=len(inputs), x=x, image_rows=rows, positions=positions)
