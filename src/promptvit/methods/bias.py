"""Bias tuning: the bias vectors of the backbone are trained, as in BitFit and TinyTL."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from promptvit.backbones.base import Backbone
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Method, Preset


@dataclass(frozen=True, kw_only=True)
class Bias(Method):
    """All biases of a copy of the backbone are trained, those of norms included (Bias of VPT, section 4.1).

    - `position_tables`: the relative position biases of Swin too, which the paper counts among the biases.
    """

    position_tables: bool = False

    kind: ClassVar[str] = "bias"
    learning_rate: ClassVar[float] = 2e-3

    def trained(self, backbone: Backbone) -> Collection[str]:
        """Selected by the tensors' own names; raises ConfigError for tables that the backbone does not have."""
        biases = backbone.biases()
        if not self.position_tables:
            return biases
        with_tables = backbone.biases(position_tables=True)
        if len(with_tables) == len(biases):
            raise ConfigError(
                f"position_tables=True: the {backbone.info.family} backbone has no relative position biases",
                expected="a backbone with windows, such as Swin, or position_tables=False",
                where="Bias",
            )
        return with_tables


METHODS.register("bias", Preset(method=Bias, summary="all bias vectors of the backbone"))
