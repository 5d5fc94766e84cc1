"""timm's `ConvNeXt` family: ConvNeXt and ConvNeXt V2."""

from __future__ import annotations

from typing import ClassVar, cast

from timm.models.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtStage
from torch import nn

from promptvit.backbones.base import BackboneInfo
from promptvit.backbones.conv import ConvBackbone, describe_convolutional, refuse_unpooled


class ConvNeXtBackbone(ConvBackbone[ConvNeXt]):
    """A timm `ConvNeXt`; its final LayerNorm (`head.norm`) belongs to the body."""

    drives: ClassVar[tuple[type[nn.Module], ...]] = (ConvNeXt,)
    heads: ClassVar[tuple[str, ...]] = ("head.fc.",)

    @staticmethod
    def check(model: nn.Module) -> None:
        """Raise BackboneError for a model that does not pool."""
        assert isinstance(model, ConvNeXt)
        refuse_unpooled(model, model.head.global_pool)

    @staticmethod
    def describe(model: nn.Module) -> BackboneInfo:
        """From the modules themselves."""
        assert isinstance(model, ConvNeXt)
        block = cast(ConvNeXtBlock, cast(ConvNeXtStage, model.stages[0]).blocks[0])
        return describe_convolutional(
            "convnext",
            model.head_hidden_size,
            convolution=model.stem[0],
            pooling=model.head.global_pool,
            activation=block.mlp.act,
            norm=block.norm,
        )

    def units(self) -> list[list[str]]:
        """timm's `blocks` of all stages; the downsampling before a stage belongs to the block before it."""
        units: list[list[str]] = []
        for index, stage in enumerate(self.model.stages):
            if units:
                units[-1].append(f"stages.{index}.downsample")
            units += [[f"stages.{index}.blocks.{block}"] for block in range(len(cast(ConvNeXtStage, stage).blocks))]
        return units

    def stages(self) -> list[list[str]]:
        """timm's `stages`, each with the downsampling before it."""
        return [[f"stages.{index}"] for index in range(len(self.model.stages))]

    def last(self) -> list[str]:
        """The final norm, before or after pooling, and the hidden layer of the few heads that have one."""
        return ["norm_pre", "head.norm", "head.pre_logits"]

    @property
    def first_convolution(self) -> str:
        """The stem's."""
        return "stem.0"

    @property
    def checkpointing(self) -> bool:
        """timm's own flag, which all stages share."""
        return cast(ConvNeXtStage, self.model.stages[0]).grad_checkpointing

    def set_checkpointing(self, enabled: bool) -> None:
        """Sets timm's own flag."""
        self.model.set_grad_checkpointing(enabled)
