"""Heads: features to logits."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

HeadInit = Literal["paper", "zeros"]


def linear_head(width: int, classes: int, init: HeadInit) -> nn.Linear:
    """Features [B, width] to logits [B, classes].

    `paper`: weight normal with a standard deviation of sqrt(2 / C), bias -ln 99; `zeros`: all zero.
    """
    head = nn.Linear(width, classes)
    if init == "paper":
        nn.init.normal_(head.weight, std=math.sqrt(2 / classes))
        nn.init.constant_(head.bias, -math.log(99))
    else:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return head
