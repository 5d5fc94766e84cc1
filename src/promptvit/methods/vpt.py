"""Visual prompt tuning (Jia et al., ECCV 2022): learned rows that join the tokens of one block or of every block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from promptvit.backbones.base import NOTHING, Backbone, BlockInput
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Delta, Method, Preset


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Prompts beside the tokens; backbone frozen and in eval mode (paper, sections 3.1 and 3.2).

    - `length`: prompts per block, P.
    - `depth`: `shallow` puts prompts before the first block, and they travel through all others; `deep` gives every
      block fresh ones.
    - `dropout`: on the prompt values, drawn anew for every image; the paper uses 0.1 with `deep`. Prompts then
      differ from image to image, which costs most of the speed of `deep`.
    - `project`: width of the trained prompts, brought to the backbone's by one linear layer; null trains them at
      full width.
    - `init`: `paper` is uniform in ±sqrt(6 / (channels · patch area + prompt width)), the Xavier bound of the patch
      embedding; `normal` has a standard deviation of 0.02.
    """

    length: int = 10
    depth: Literal["shallow", "deep"] = "deep"
    dropout: float = 0.0
    project: int | None = None
    init: Literal["paper", "normal"] = "paper"

    kind: ClassVar[str] = "vpt"
    learning_rate: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        problems = []
        if self.length < 1:
            problems.append(f"length={self.length}: expected at least 1 prompt; the method `linear` has none")
        if self.depth not in ("shallow", "deep"):
            problems.append(f"depth={self.depth!r}: expected shallow or deep")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}: expected a probability in [0, 1)")
        if self.project is not None and self.project < 1:
            problems.append(f"project={self.project}: expected a width of at least 1, or none")
        if self.init not in ("paper", "normal"):
            problems.append(f"init={self.init!r}: expected paper or normal")
        ConfigError.collect(problems, "VPT")

    def build(self, backbone: Backbone) -> Delta:
        """Freshly initialised prompts."""
        width = self.project or backbone.info.width
        blocks = backbone.info.depth if self.depth == "deep" else 1
        prompts = torch.empty(blocks, self.length, width)
        if self.init == "paper":
            bound = patch_embedding_bound(backbone, width)
            nn.init.uniform_(prompts, -bound, bound)
        else:
            nn.init.normal_(prompts, std=0.02)
        project = None
        if self.project is not None:
            project = nn.Linear(width, backbone.info.width)
            nn.init.normal_(project.weight, std=math.sqrt(2 / backbone.info.width))
        return Prompts(prompts, depth=backbone.info.depth, dropout=self.dropout, project=project)


class Prompts(Delta):
    """`prompts` [S, P, D] or, with a projection, [S, P, width]; the first S of `depth` blocks get a set each."""

    def __init__(
        self, prompts: Float[Tensor, "S P width"], *, depth: int, dropout: float, project: nn.Module | None
    ) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.project = project
        self.dropout = dropout
        self.depth = depth

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """Prompts [P, D] per block; [B, P, D] with an own mask for every image under dropout."""
        values = self.prompts if self.project is None else self.project(self.prompts)  # [S, P, D]
        if self.training and self.dropout > 0:
            values = values.unsqueeze(1).expand(-1, batch, -1, -1)  # [S, B, P, D]
            values = F.dropout(values, self.dropout)
        given = [BlockInput(tokens=tokens) for tokens in values.unbind(0)]
        return (*given, *[NOTHING] * (self.depth - len(given)))


def patch_embedding_bound(backbone: Backbone, width: int) -> float:
    """sqrt(6 / (channels · patch area + width)): 0.0625 for ViT-B/16 (KMnP/vpt issues 3 and 11)."""
    height, across = backbone.info.patch_size
    return math.sqrt(6 / (backbone.info.channels * height * across + width))


METHODS.register("vpt", Preset(method=VPT, summary="prompts at one block or at every block"))
METHODS.register(
    "vpt-shallow",
    Preset(method=VPT, fields={"depth": "shallow"}, summary="prompts before the first block, which travel on"),
)
METHODS.register("vpt-deep", Preset(method=VPT, fields={"depth": "deep"}, summary="fresh prompts at every block"))
