"""Full fine-tuning: every weight of the backbone is trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from promptvit.backbones.base import Backbone, BackboneInfo
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Method, Preset


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Every weight of a copy of the backbone is trained, in train mode (Full of VPT, section 4.1).

    The paper has a drop path of 0.5 with Swin-B and Swin-L, 0.3 with Swin-S, 0.2 with Swin-T and 0.1 with MAE; none
    and a dropout of 0.1 with the supervised ViT; neither with MoCo-v3.

    - `drop_path`: share of images for which the last block's branches are left out, rising linearly from 0 at the
      first; null leaves the model as timm builds it (0.1 for Swin). A ResNet has none.
    - `dropout`: after the embedding (where timm has one there) and twice in each MLP of a transformer, none in the
      attention; null leaves the model as timm builds it.
    """

    drop_path: float | None = None
    dropout: float | None = None

    kind: ClassVar[str] = "full"
    learning_rate: ClassVar[float] = 3e-4

    def __post_init__(self) -> None:
        rates = {"drop_path": self.drop_path, "dropout": self.dropout}
        problems = [
            f"{name}={rate}: expected a probability in [0, 1)"
            for name, rate in rates.items()
            if rate is not None and not 0 <= rate < 1
        ]
        ConfigError.collect(problems, "Full")

    def refusal(self, info: BackboneInfo) -> str:
        """Dropout has its places in a transformer."""
        return "dropout acts in a transformer's blocks" if self.dropout is not None and not info.depth else ""

    def trained(self, backbone: Backbone) -> Collection[str]:
        """All of them but fixed position embeddings."""
        return backbone.trainable()

    def prepare(self, backbone: Backbone) -> Backbone:
        """The copy, with drop path and dropout as configured."""
        from promptvit.backbones.regularise import set_drop_path, set_dropout  # imports timm, which is slow

        own = super().prepare(backbone)
        if self.drop_path is not None:
            set_drop_path(own, self.drop_path)
        if self.dropout is not None:
            set_dropout(own, self.dropout)
        return own

    @property
    def backbone_trains(self) -> bool:
        """Dropout and drop path act."""
        return True


METHODS.register("full", Preset(method=Full, summary="every weight of the backbone"))
