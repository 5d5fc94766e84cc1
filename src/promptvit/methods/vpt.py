"""Visual Prompt Tuning: learned rows that join the tokens (Jia et al., ECCV 2022, arXiv 2203.12119)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal

import torch
from torch import nn

from promptvit.backbones.base import Backbone, BackboneInfo, Readout, TokenBackbone
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Delta, Method, Preset, unknown_choices
from promptvit.methods.bias import Bias
from promptvit.methods.cls import Cls
from promptvit.methods.full import Full
from promptvit.methods.linear import Linear
from promptvit.methods.prompts import Prompts, patch_embedding_bound
from promptvit.methods.prototypes import class_means
from promptvit.methods.samples import Samples

WEIGHTS: dict[str, Method] = {
    "none": Linear(),
    "bias": Bias(),
    "cls": Cls(),
    "cls-reinit": Cls(reinit=True),
    "all": Full(),
}
"""The methods that train the backbone weights of each choice of `weights`."""
PROTOTYPES = {"final-cls": slice(-1, None), "cls-nolastl": slice(None, -1), "cls-nofirstl": slice(1, None)}
"""Which of the L+1 class means, from the embedding to the last block, the sets of prompts start from."""


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Prompts beside the tokens; the backbone is in eval mode (paper, sections 3.1, 3.2 and 4.3).

    - `length`: prompts per block, P.
    - `depth`: `shallow` puts prompts before the first block, and they travel through all others; `deep` gives every
      block fresh ones.
    - `blocks`: with `deep`, how many blocks get prompts; null: all of them.
    - `end`: whether these are the `first` or the `last` blocks.
    - `after`: with prompts in the first blocks, those of the last one travel on (`keep`) or end there (`drop`).
    - `shared`: with `deep`, one set of prompts for all these blocks.
    - `dropout`: on the prompt values, drawn anew for every image; the paper uses 0.1 with `deep`. Prompts then
      differ from image to image, which costs most of the speed of `deep`.
    - `project`: width of the trained prompts, brought to the backbone's by one linear layer; null trains them at
      full width.
    - `init`: `paper` is uniform in ±sqrt(6 / (channels · patch area + prompt width)), the Xavier bound of the patch
      embedding; `normal` has a standard deviation of 0.02. The others take one prompt per class, and start it at the
      mean CLS row of the class's training images: after the last block (`final-cls`), as it enters each block
      (`cls-nolastl`), or as it leaves each block (`cls-nofirstl`).
    - `fixed`: prompts stay as they start; their dropout acts.
    - `weights`: backbone weights that are trained too: every `bias`, the `cls` token (`cls-reinit` starts it anew, at
      almost zero), or `all`.
    - `pooling`: what is read after the last block: the backbone's `own` readout, or the mean of the `image` patches,
      of the `prompt` rows, or of `all` rows but CLS and registers (how the paper reads MAE and Swin with prompts).
    """

    length: int = 10
    depth: Literal["shallow", "deep"] = "deep"
    blocks: int | None = None
    end: Literal["first", "last"] = "first"
    after: Literal["keep", "drop"] = "keep"
    shared: bool = False
    dropout: float = 0.0
    project: int | None = None
    init: Literal["paper", "normal", "final-cls", "cls-nolastl", "cls-nofirstl"] = "paper"
    fixed: bool = False
    weights: Literal["none", "bias", "cls", "cls-reinit", "all"] = "none"
    pooling: Readout = "own"

    kind: ClassVar[str] = "vpt"
    learning_rate: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        problems = unknown_choices(self)
        if self.length < 1:
            problems.append(f"length={self.length}: expected at least 1 prompt; the method `linear` has none")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}: expected a probability in [0, 1)")
        if self.project is not None and self.project < 1:
            problems.append(f"project={self.project}: expected a width of at least 1, or none")
        if self.blocks is not None and self.blocks < 1:
            problems.append(f"blocks={self.blocks}: expected at least 1, or none for all")
        ConfigError.collect([*problems, *self._contradictions()], "VPT")

    def _contradictions(self) -> list[str]:
        """Fields that are fine by themselves but mean nothing together."""
        shallow, some, projected = self.depth == "shallow", self.blocks is not None, self.project is not None
        last, drop, from_classes = self.end == "last", self.after == "drop", self.init in PROTOTYPES
        sets_differ, reads_prompts = self.init in ("cls-nolastl", "cls-nofirstl"), self.pooling in ("prompt", "all")
        meaningless = {
            "blocks with depth=shallow: prompts enter at one block; use depth=deep": shallow and some,
            "end=last without blocks: it says which of the `blocks`": last and not some,
            "after=drop without blocks: nothing comes after the last block": drop and not some and not shallow,
            "after=drop with depth=shallow: use depth=deep, blocks=1": drop and shallow,
            "after=drop with end=last: nothing comes after the last block": drop and last,
            "shared with one block: its prompts are one set already": self.shared and (shallow or self.blocks == 1),
            f"pooling={self.pooling} with after=drop: no prompt is left to be read": drop and reads_prompts,
            "fixed with project: there is nothing to learn a projection for": self.fixed and projected,
            f"init={self.init} with project: class means have full width": from_classes and projected,
            f"init={self.init} with blocks: class means are for all blocks": from_classes and some,
            f"init={self.init} with weights=cls-reinit: class means are those of the pretrained CLS token": from_classes
            and self.weights == "cls-reinit",
            f"init={self.init} with shared: each block starts from its own class means": sets_differ and self.shared,
        }
        return [reason for reason, holds in meaningless.items() if holds]

    def refusal(self, info: BackboneInfo) -> str:
        """Blocks, a CLS token or one width may be missing."""
        if not info.widths:
            return "prompts need tokens to join; use pixel prompts"
        problems = []
        if self.blocks is not None and self.blocks > info.depth:
            problems.append(f"blocks={self.blocks}: it has {info.depth}")
        if len(set(info.widths)) > 1:
            same = {"shared": self.shared, f"project={self.project}": self.project is not None}
            problems += [f"{field}: its blocks differ in width" for field, given in same.items() if given]
        if info.readout == "map" and self.pooling != "own" and self.weights in ("bias", "all"):
            problems.append(f"weights={self.weights} with pooling={self.pooling}: its attention pooling is not read")
        if self.needs_samples and not info.cls:
            problems.append(f"init={self.init}: there is no CLS token")
        reason = WEIGHTS[self.weights].refusal(info)
        if reason:
            problems.append(f"weights={self.weights}: {reason}")
        return "; ".join(problems)

    def trained(self, backbone: Backbone) -> Collection[str]:
        """Those that `weights` names."""
        return WEIGHTS[self.weights].trained(backbone)

    def prepare(self, backbone: Backbone) -> Backbone:
        """A copy with these weights of its own."""
        return WEIGHTS[self.weights].prepare(backbone)

    @property
    def backbone_share(self) -> float:
        """Their learning rate is that of the method that trains them alone."""
        return WEIGHTS[self.weights].learning_rate / self.learning_rate

    def build(self, backbone: Backbone) -> Delta:
        """Freshly initialised prompts; those from class means are as with `paper` until `start`."""
        info = backbone.info
        blocks = 1 if self.depth == "shallow" else self.blocks or info.depth
        first = info.depth - blocks if self.end == "last" else 0
        widths = [self.project or width for width in info.widths[first : first + blocks]]
        bound = patch_embedding_bound(backbone, self.project or info.widths[0])  # of the first stage, for all
        prompts = []
        for width, stage in groupby(widths[:1] if self.shared else widths):
            prompts.append(torch.empty(len(list(stage)), self.length, width))
            if self.init == "normal":
                nn.init.normal_(prompts[-1], std=0.02)
            else:
                nn.init.uniform_(prompts[-1], -bound, bound)
        project = None
        if self.project is not None:
            project = nn.Linear(self.project, info.width)
            nn.init.normal_(project.weight, std=math.sqrt(2 / info.width))
        return Prompts(
            prompts,
            first=first,
            blocks=blocks,
            shared=self.shared,
            ends=self.after == "drop",
            dropout=self.dropout,
            project=project,
            trained=not self.fixed,
        )

    @property
    def needs_samples(self) -> bool:
        """Whether prompts start from class means."""
        return self.init in PROTOTYPES

    def start(self, delta: Delta, backbone: Backbone, samples: Samples | None, classes: int) -> None:
        """Copy the class means, row c from class c; raises ConfigError unless there is one prompt per class."""
        if not self.needs_samples:
            return
        assert isinstance(delta, Prompts)
        assert isinstance(backbone, TokenBackbone)
        assert samples is not None
        if self.length != classes:
            raise ConfigError(
                f"length={self.length} with init={self.init}", expected=f"one prompt per class, {classes}", where="VPT"
            )
        means = class_means(backbone, samples, classes)[PROTOTYPES[self.init]]  # [1 or L, C, D]
        (prompts,) = delta.prompts
        with torch.no_grad():
            prompts.copy_(means[: len(prompts)])

    @property
    def readout(self) -> Readout:
        """`pooling`."""
        return self.pooling


for _name, _fields, _summary in (
    ("vpt", {}, "prompts at one block, some blocks or every block"),
    ("vpt-shallow", {"depth": "shallow"}, "prompts before the first block, which travel on"),
    ("vpt-deep", {"depth": "deep"}, "fresh prompts at every block"),
    ("vpt-shared", {"depth": "deep", "shared": True}, "one set of prompts for every block"),
    ("vpt-fixed", {"fixed": True}, "random prompts that stay as they are; the head learns"),
    ("vpt-bias", {"weights": "bias"}, "prompts and every bias of the backbone"),
    ("vpt-cls", {"weights": "cls"}, "prompts and the CLS token"),
    ("mixed", {"weights": "all"}, "prompts and every weight of the backbone"),
):
    METHODS.register(_name, Preset(method=VPT, fields=_fields, summary=_summary))
