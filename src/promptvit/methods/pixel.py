"""Prompts made of pixels: tokens, a frame, or input channels (VPT, Jia et al., ECCV 2022, sections 4.3 and 5)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from promptvit.backbones.base import NOTHING, Backbone, BackboneInfo, BlockInput, TokenBackbone
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Delta, Method, Preset, unknown_choices
from promptvit.methods.prompts import patch_embedding_bound
from promptvit.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from promptvit.shapes import Images


@dataclass(frozen=True, kw_only=True)
class Pixel(Method):
    """Prompts made of pixels; they depend on the size of the images.

    - `location`: `prepend` turns patches of pixels into tokens with the frozen patch embedding, without position; they
      travel through all blocks. `pad` puts a frame around every image, which grows. `below` adds input channels, and
      a first convolution that reads them is trained as a whole (with its batch norm).
    - `length`: patches, pixels on each side, or channels, P. A frame around patches adds whole ones: P is a multiple of
      half a patch.
    - `init`: `imagenet` is uniform in [0, 1), and the values are normalised as ImageNet's are on every forward;
      `gaussian` is standard normal, without normalisation. `paper` is `imagenet` for `pad` and for `below` on a
      ConvNet, otherwise uniform in ±sqrt(6 / (channels · patch area + width)), without normalisation.
    """

    location: Literal["prepend", "pad", "below"] = "prepend"
    length: int = 8
    init: Literal["paper", "gaussian", "imagenet"] = "paper"

    kind: ClassVar[str] = "pixel"
    learning_rate: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        problems = unknown_choices(self)
        if self.length < 1:
            problems.append(f"length={self.length}: expected at least 1; the method `linear` has no prompts")
        ConfigError.collect(problems, "Pixel")

    def refusal(self, info: BackboneInfo) -> str:
        """A ConvNet has no tokens, and a Swin no use for a frame."""
        if self.location == "prepend" and not info.depth:
            return "it has no tokens for prompts to stand beside; location=pad and location=below need none"
        if self.location == "pad" and len(set(info.widths)) > 1:
            return "merged patches and windows divide images of few sizes, and a framed image is not one of them"
        return ""

    def trained(self, backbone: Backbone) -> Collection[str]:
        """For `below`, the first convolution and the batch norm right after it."""
        return backbone.under(*_stem(backbone)) if self.location == "below" else ()

    def prepare(self, backbone: Backbone) -> Backbone:
        """For `pad`, a copy for larger images; for `below`, one with a wider first convolution.

        Raises ConfigError for a frame that does not make whole patches: pixels and prompts would be dropped.
        """
        own = super().prepare(backbone)
        if self.location == "below":
            _widen(own, self.length)
        if self.location == "pad":
            own = backbone.resized(self._framed(backbone))
            own.preprocessing = backbone.preprocessing  # images come as before, and grow in the delta
        return own

    def _framed(self, backbone: Backbone) -> tuple[int, int]:
        """Height and width of a framed image."""
        (height, width), (high, wide) = backbone.preprocessing.size, backbone.info.patch_size
        height, width = height + 2 * self.length, width + 2 * self.length
        if backbone.info.depth and (height % high or width % wide):
            raise ConfigError(
                f"a frame of length={self.length} makes images of {height}x{width}",
                expected=f"multiples of the patch, {high}x{wide}; pixels and prompts beyond the last one are dropped",
                where="Pixel",
                fix="Choose a multiple of half the patch",
            )
        return height, width

    def build(self, backbone: Backbone) -> Delta:
        """Freshly initialised pixels for images of the size of the backbone's preprocessing."""
        (height, width), channels, length = backbone.preprocessing.size, backbone.info.channels, self.length
        if self.location == "prepend":
            high, wide = backbone.info.patch_size
            return PixelPrompts(self._pixels(backbone, channels, high, wide * length))
        if self.location == "pad":
            rows = self._pixels(backbone, channels, 2 * length, width + 2 * length)
            return Frame(rows, self._pixels(backbone, channels, height, 2 * length))
        return ExtraChannels(self._pixels(backbone, length, height, width))

    def _pixels(self, backbone: Backbone, channels: int, height: int, width: int) -> Pixels:
        """Initial values by `init`; those from [0, 1) come with what normalises them."""
        values = torch.empty(channels, height, width)
        if self.init == "gaussian":
            return Pixels(nn.init.normal_(values))
        if self.init == "paper" and self.location != "pad" and backbone.info.depth:
            bound = patch_embedding_bound(backbone, backbone.info.widths[0])
            return Pixels(nn.init.uniform_(values, -bound, bound))
        statistics = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])
        if self.location == "below" or channels != len(IMAGENET_MEAN):  # not red, green and blue
            statistics = statistics.mean(dim=1, keepdim=True)
        return Pixels(nn.init.uniform_(values), statistics[..., None, None])


class Pixels(nn.Module):
    """Learned `values` [channels, height, width], and what normalises them: mean and standard deviation, or nothing."""

    statistics: Tensor | None

    def __init__(
        self, values: Float[Tensor, "channels h w"], statistics: Float[Tensor, "2 colours 1 1"] | None = None
    ) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("statistics", statistics, persistent=False)

    def forward(self) -> Float[Tensor, "channels h w"]:
        """The values as a backbone sees them."""
        if self.statistics is None:
            return self.values
        mean, std = self.statistics
        return (self.values - mean) / std


class PixelPrompts(Delta):
    """Patches side by side, [channels, patch height, P · patch width], as prompts of the first block."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """P tokens at the first block, which travel on."""
        tokens = cast(TokenBackbone, backbone).embed_patches(self.pixels()[None])[0]  # [P, D]
        return (BlockInput(tokens=tokens), *[NOTHING] * (backbone.info.depth - 1))


class Frame(Delta):
    """P pixels around the image: `rows` [channels, 2P, W + 2P] above and below it, `columns` [channels, H, 2P] left and
    right; the first half of each comes first."""

    def __init__(self, rows: Pixels, columns: Pixels) -> None:
        super().__init__()
        self.rows = rows
        self.columns = columns

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        return ()

    def on_images(self, images: Images) -> Float[Tensor, "B channels taller wider"]:
        """Framed images [B, channels, H + 2P, W + 2P]."""
        columns, rows = self.columns(), self.rows()
        _check_size(images, (columns.shape[1], rows.shape[2] - columns.shape[2]))
        left, right = columns.expand(len(images), -1, -1, -1).chunk(2, dim=3)
        top, bottom = rows.expand(len(images), -1, -1, -1).chunk(2, dim=2)
        return torch.cat([top, torch.cat([left, images, right], dim=3), bottom], dim=2)


class ExtraChannels(Delta):
    """P more input channels, [P, H, W]."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        return ()

    def on_images(self, images: Images) -> Float[Tensor, "B more height width"]:
        """Images with more channels, [B, channels + P, H, W]."""
        channels = self.pixels()
        _check_size(images, tuple(channels.shape[1:]))
        return torch.cat([images, channels.expand(len(images), -1, -1, -1)], dim=1)


def _stem(backbone: Backbone) -> list[str]:
    """The names of the first convolution and of the batch norm right after it, if there is one."""
    modules = list(backbone.model.named_modules())
    place = [name for name, _ in modules].index(backbone.first_convolution)
    following = modules[place + 1 : place + 2]
    return [backbone.first_convolution, *(name for name, module in following if isinstance(module, _BatchNorm))]


def _widen(own: Backbone, channels: int) -> None:
    """Give the first convolution of a structural copy `channels` more inputs: new filters uniform in ±v, bias zero."""
    convolution = cast(nn.Conv2d, own.model.get_submodule(own.first_convolution))
    bound = patch_embedding_bound(own, convolution.out_channels)
    weight = convolution.weight.detach()
    added = torch.empty_like(weight[:, :1]).repeat(1, channels, 1, 1).uniform_(-bound, bound)
    convolution.weight = nn.Parameter(torch.cat([weight, added], dim=1))
    convolution.in_channels += channels
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def _check_size(images: Tensor, size: tuple[int, int]) -> None:
    if tuple(images.shape[2:]) != size:
        raise ConfigError(
            f"images of {images.shape[2]}x{images.shape[3]} pixels",
            expected=f"{size[0]}x{size[1]}",
            where="pixel prompts",
            fix="Prompts made of pixels fit one image size; resize the images",
        )


for _name, _fields, _summary in (
    ("pixel", {}, "prompts made of pixels: beside the tokens, around the image, or as input channels"),
    ("pixel-prepend", {"location": "prepend"}, "patches of pixels as prompts before the first block"),
    ("pixel-pad", {"location": "pad"}, "a frame of pixels around every image"),
    ("pixel-below", {"location": "below"}, "extra input channels, and a trained first convolution"),
):
    METHODS.register(_name, Preset(method=Pixel, fields=_fields, summary=_summary))
