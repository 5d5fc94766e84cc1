"""Full fine-tuning: every weight of the backbone is trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from promptvit.backbones.base import Backbone
from promptvit.methods.base import METHODS, Method, Preset


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Every weight of a copy of the backbone is trained, in train mode."""

    kind: ClassVar[str] = "full"
    learning_rate: ClassVar[float] = 3e-4

    def trained(self, backbone: Backbone) -> Collection[str]:
        """All of them but fixed position embeddings."""
        return backbone.trainable()

    @property
    def backbone_trains(self) -> bool:
        """Dropout and drop path act."""
        return True


METHODS.register("full", Preset(method=Full, summary="every weight of the backbone"))
