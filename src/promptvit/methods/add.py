"""Prompts that are added to the tokens, in place of standing beside them (VPT, section 4.3, "Add")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import nn

from promptvit.backbones.base import NOTHING, Backbone, BackboneInfo, BlockInput
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Delta, Method, Preset, unknown_choices
from promptvit.methods.prompts import patch_embedding_bound


@dataclass(frozen=True, kw_only=True)
class Add(Method):
    """Learned rows that are added to the image rows, CLS and registers too; backbone frozen and in eval mode.

    They start uniform in ±sqrt(6 / (channels · patch area + width)), as prompts do.

    - `depth`: `shallow` adds before the first block, `deep` before every block.
    - `rows`: `each` row of the image has its own, which fits one image size; or `one` row is added to all of them.
    """

    depth: Literal["shallow", "deep"] = "deep"
    rows: Literal["each", "one"] = "each"

    kind: ClassVar[str] = "vpt-add"
    learning_rate: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        ConfigError.collect(unknown_choices(self), "Add")

    def refusal(self, info: BackboneInfo) -> str:
        """There must be something to add to."""
        return "" if info.widths else "it has no tokens to add to; use pixel prompts"

    def build(self, backbone: Backbone) -> Delta:
        """Freshly initialised rows."""
        info = backbone.info
        shapes = [
            (1 if self.rows == "one" else rows, width) for rows, width in zip(info.rows, info.widths, strict=True)
        ]
        bound = patch_embedding_bound(backbone, info.widths[0])
        stages = groupby(shapes[:1] if self.depth == "shallow" else shapes)
        return AddedRows([torch.empty(len(list(stage)), *shape).uniform_(-bound, bound) for shape, stage in stages])


class AddedRows(Delta):
    """`added`: one tensor [S, N or 1, D] per stage of equal sizes, for each of its S blocks; the first stages first."""

    def __init__(self, added: Sequence[Float[torch.Tensor, "_ _ _"]]) -> None:
        super().__init__()
        self.added = nn.ParameterList(nn.Parameter(stage) for stage in added)

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """Rows [N or 1, D] per block."""
        given = [BlockInput(added=rows) for stage in self.added for rows in stage.unbind(0)]
        return (*given, *[NOTHING] * (backbone.info.depth - len(given)))


METHODS.register("vpt-add", Preset(method=Add, summary="prompts added to the tokens, one to each row"))
METHODS.register("vpt-add-1", Preset(method=Add, fields={"rows": "one"}, summary="one prompt added to all rows"))
