"""A backbone without tokens: timm's own forward, for ConvNets."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import nn

from promptvit.backbones.base import Backbone, BackboneInfo, BlockInput, Readout
from promptvit.backbones.plain import norm_name
from promptvit.errors import BackboneError, ConfigError
from promptvit.shapes import Features, Images

Model = TypeVar("Model", ConvNeXt, ResNet)


class ConvBackbone(Backbone, Generic[Model], ABC):
    """A ConvNet: no block takes prompts, and images may have any size."""

    model: Model

    @staticmethod
    def image_size(model: nn.Module) -> None:
        """Any."""
        return

    def forward(self, images: Images, inputs: Sequence[BlockInput] = (), readout: Readout = "own") -> Features:
        """Features [B, D] of `images` [B, channels, height, width]; raises ConfigError for prompts, which have no
        place here, and for other readouts than the model's own."""
        if inputs or readout != "own":
            raise ConfigError(
                f"{len(inputs)} block inputs and readout={readout!r}",
                expected="no inputs and the model's own readout",
                where=f"a {self.info.family} backbone",
                fix="A ConvNet has no tokens; prompts made of pixels work on it",
            )
        channels = cast(nn.Conv2d, self.model.get_submodule(self.first_convolution)).in_channels
        if images.shape[1] != channels:
            raise ConfigError(f"images of shape {list(images.shape)}", expected=f"{channels} channels", where="forward")
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def fold(self, inputs: Sequence[BlockInput], readout: Readout = "own") -> tuple[BlockInput, ...]:
        """Nothing."""
        return ()

    def resized(self, size: tuple[int, int]) -> Backbone:
        """The same weights; only what preprocessing aims at changes."""
        twin = self.own()
        twin.preprocessing = dataclasses.replace(self.preprocessing, size=size)
        return twin


def describe_convolutional(
    family: str, width: int, *, convolution: nn.Module, pooling: nn.Module, activation: nn.Module, norm: nn.Module
) -> BackboneInfo:
    """The sizes of a ConvNet with features of `width`; it has no tokens, and its grid (0 here) is up to the image."""
    convolution = cast(nn.Conv2d, convolution)
    return BackboneInfo(
        family=family,
        width=width,
        widths=(),
        heads=(),
        rows=(),
        head_width=0,
        prefix=0,
        cls=False,
        patch_size=cast(tuple[int, int], convolution.kernel_size),
        grid=(0, 0),
        channels=convolution.in_channels,
        readout=cast(str, pooling.pool_type),
        activation=type(activation).__name__,
        norm=norm_name(norm),
    )


def refuse_unpooled(model: nn.Module, pooling: nn.Module) -> None:
    """Raise BackboneError for a model that returns a map of features, not one vector."""
    if not pooling.pool_type:
        raise BackboneError(
            "global_pool='' gives a map of features, not one vector",
            expected="avg, max or another pooling of timm's",
            where=type(model).__name__,
            fix="Build the timm model with one of these",
        )
