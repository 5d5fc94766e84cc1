"""Heads: features to logits."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

HeadInit = Literal["paper", "truncated", "zeros"]


def linear_head(width: int, classes: int, init: HeadInit) -> nn.Linear:
    """Features [B, width] to logits [B, classes].

    `paper`: weight normal with a standard deviation of sqrt(2 / C), bias -ln 99 (VPT); `truncated`: weight truncated
    normal with one of 0.02, bias zero (SPT); `zeros`: all zero.
    """
    head = nn.Linear(width, classes)
    nn.init.zeros_(head.bias)
    if init == "paper":
        nn.init.normal_(head.weight, std=math.sqrt(2 / classes))
        nn.init.constant_(head.bias, -math.log(99))
    elif init == "truncated":
        nn.init.trunc_normal_(head.weight, std=0.02)
    else:
        nn.init.zeros_(head.weight)
    return head
