"""MLP probe: a head with hidden layers on frozen features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Method, Preset
from promptvit.methods.heads import HeadInit, linear_head
from promptvit.shapes import Features

DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class MLP(Method):
    """Only the head is trained, a multilayer perceptron on the frozen backbone's features (MLP-k of VPT, section 4.1).

    - `layers`: linear layers, k; all but the last have the width of the features and are followed by ReLU, batch
      norm and a dropout of 0.1. The paper studies 2, 3, 5 and 9.
    """

    layers: int = 3

    kind: ClassVar[str] = "mlp"
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        if self.layers < 2:
            raise ConfigError(f"layers={self.layers}", expected="at least 2; the method `linear` is one", where="MLP")

    @property
    def only_head(self) -> bool:
        """By definition."""
        return True

    def head(self, width: int, classes: int, init: HeadInit) -> nn.Module:
        """Hidden layers, whose weights are normal with a standard deviation of sqrt(2 / D), and the linear head."""
        hidden = [hidden_layer(width) for _ in range(self.layers - 1)]
        return nn.Sequential(*hidden, linear_head(width, classes, init))


def hidden_layer(width: int) -> nn.Sequential:
    """Features [B, width] to features [B, width]."""
    linear = nn.Linear(width, width)
    nn.init.normal_(linear.weight, std=math.sqrt(2 / width))
    return nn.Sequential(linear, nn.ReLU(), FeatureNorm(width), nn.Dropout(DROPOUT))


class FeatureNorm(nn.BatchNorm1d):
    """A batch norm that normalises a training batch of one image with the running statistics.

    One image has no variance; the last batch of an epoch may hold no more.
    """

    def forward(self, input: Features) -> Features:
        """The same shape, [B, D]."""
        if self.training and len(input) < 2:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


METHODS.register("mlp", Preset(method=MLP, summary="a head with hidden layers, on frozen features"))
METHODS.register("mlp-3", Preset(method=MLP, fields={"layers": 3}, summary="a head with two hidden layers"))
