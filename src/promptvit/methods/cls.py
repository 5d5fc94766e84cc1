"""CLS tuning: the CLS token is trained, a prompt that the backbone brings along."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from promptvit.backbones.base import Backbone, BackboneInfo
from promptvit.methods.base import METHODS, Method, Preset

TOKEN = "cls_token"
"""Its name in every timm model that has one."""


@dataclass(frozen=True, kw_only=True)
class Cls(Method):
    """The CLS token of a copy of the backbone is trained (CLS-learned of VPT, figure 9).

    - `reinit`: start it anew from a normal distribution with a standard deviation of 1e-6, not from the pretrained
      token.
    """

    reinit: bool = False

    kind: ClassVar[str] = "cls"
    learning_rate: ClassVar[float] = 5e-3

    def refusal(self, info: BackboneInfo) -> str:
        """There must be one."""
        return "" if info.cls else "there is no CLS token"

    def trained(self, backbone: Backbone) -> Collection[str]:
        """One tensor [1, 1, D]."""
        return (TOKEN,)

    def prepare(self, backbone: Backbone) -> Backbone:
        """The copy, with a new token if asked for."""
        own = super().prepare(backbone)
        if self.reinit:
            nn.init.normal_(own.weights()[TOKEN], std=1e-6)
        return own


METHODS.register("cls", Preset(method=Cls, summary="the CLS token"))
METHODS.register("cls-reinit", Preset(method=Cls, fields={"reinit": True}, summary="the CLS token, from almost zero"))
