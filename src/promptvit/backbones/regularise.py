"""Drop path and dropout of a model that is trained whole."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from torch import nn

from promptvit.backbones.base import Backbone
from promptvit.errors import ConfigError

PLACES = ("drop_path", "drop_path1", "drop_path2")
"""What timm calls the ends of residual branches."""


def set_drop_path(backbone: Backbone, rate: float) -> None:
    """Leave out residual branches of single images, more often with depth: from 0 at the first block to `rate`.

    Raises ConfigError if the blocks have no place for it.
    """
    units = backbone.units()
    for (name, *_), share in zip(units, torch.linspace(0, rate, len(units), device="cpu").tolist(), strict=True):
        block = backbone.model.get_submodule(name)
        places = [place for place, _ in block.named_children() if place in PLACES]
        if not places:
            raise ConfigError(
                f"drop_path={rate}: {name} is a {type(block).__name__}, which has none",
                expected="null",
                where="Full",
            )
        for place in places:
            setattr(block, place, DropPath(share))


def set_dropout(backbone: Backbone, rate: float) -> None:
    """Dropout as in the first ViT: after the embedding and twice in each MLP, none in the attention."""
    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = rate if name == "pos_drop" or ".mlp." in name else 0.0
