"""timm's `ResNet` family: ResNet, ResNeXt, SE-ResNet, their deep stems and what else timm builds with that class."""

from __future__ import annotations

from typing import ClassVar, cast

from timm.models.resnet import ResNet
from torch import nn

from promptvit.backbones.base import BackboneInfo
from promptvit.backbones.conv import ConvBackbone, describe_convolutional, refuse_unpooled

STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNetBackbone(ConvBackbone[ResNet]):
    """A timm `ResNet`; frozen batch norms run on their stored statistics."""

    drives: ClassVar[tuple[type[nn.Module], ...]] = (ResNet,)
    heads: ClassVar[tuple[str, ...]] = ("fc.",)

    @staticmethod
    def check(model: nn.Module) -> None:
        """Raise BackboneError for a model that does not pool."""
        assert isinstance(model, ResNet)
        refuse_unpooled(model, model.global_pool)

    @staticmethod
    def describe(model: nn.Module) -> BackboneInfo:
        """From the modules themselves."""
        assert isinstance(model, ResNet)
        return describe_convolutional(
            "resnet",
            cast(int, model.head_hidden_size),
            convolution=model.get_submodule(_first_convolution(model)),
            pooling=model.global_pool,
            activation=model.act1,
            norm=model.bn1,
        )

    def units(self) -> list[list[str]]:
        """The residual blocks of all stages, each with its own downsampling."""
        lengths = [len(cast(nn.Sequential, self.model.get_submodule(stage))) for stage in STAGES]
        return [[f"{stage}.{index}"] for stage, n in zip(STAGES, lengths, strict=True) for index in range(n)]

    def stages(self) -> list[list[str]]:
        """timm's `layer1` to `layer4`."""
        return [[stage] for stage in STAGES]

    def last(self) -> list[str]:
        """Nothing: the last block's output is pooled as it is."""
        return []

    @property
    def first_convolution(self) -> str:
        """The stem's; a deep stem has three."""
        return _first_convolution(self.model)

    @property
    def checkpointing(self) -> bool:
        """timm's own flag, `set_grad_checkpointing`."""
        return self.model.grad_checkpointing

    def set_checkpointing(self, enabled: bool) -> None:
        """Sets timm's own flag."""
        self.model.set_grad_checkpointing(enabled)


def _first_convolution(model: ResNet) -> str:
    return "conv1.0" if isinstance(model.conv1, nn.Sequential) else "conv1"
