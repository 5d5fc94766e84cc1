"""Side tuning (Zhang et al., ECCV 2020): a small network beside the frozen backbone, mixed into its features."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptvit.backbones.base import Backbone, BackboneInfo, BlockInput
from promptvit.errors import BackboneError, ConfigError
from promptvit.methods.base import METHODS, Delta, Method, Preset, unknown_choices
from promptvit.methods.samples import Samples
from promptvit.shapes import Features, Images

GRID = 6  # AlexNet's features are pooled to 6x6
SMALLEST = 64  # pixels; AlexNet's strides leave nothing of less
SECONDS = 20  # that a server may be silent


@dataclass(frozen=True, kw_only=True)
class Side(Method):
    """AlexNet beside the frozen backbone, all of it trained (Sidetune of VPT, section 4.1).

    It sees the images as the backbone does, those below 64 pixels enlarged to 64. Its features, by one linear layer
    without bias, and the backbone's are averaged with weights 1 - s and s; s starts at one half and is trained.

    - `weights`: `imagenet` starts from torchvision's, which are downloaded once; `random` needs no network.
    """

    weights: Literal["imagenet", "random"] = "imagenet"

    kind: ClassVar[str] = "side"
    learning_rate: ClassVar[float] = 3e-4

    def __post_init__(self) -> None:
        ConfigError.collect(unknown_choices(self), "Side")

    def refusal(self, info: BackboneInfo) -> str:
        """AlexNet wants colours."""
        return "" if info.channels == 3 else f"AlexNet takes images of 3 channels, not {info.channels}"

    def build(self, backbone: Backbone) -> Delta:
        """A side network with random weights."""
        return SideNetwork(backbone.info.width)

    def start(self, delta: Delta, backbone: Backbone, samples: Samples | None, classes: int) -> None:
        """Loads the ImageNet weights; raises BackboneError if they cannot be had."""
        assert isinstance(delta, SideNetwork)
        if self.weights == "imagenet":
            delta.features.load_state_dict(imagenet_features())


class SideNetwork(Delta):
    """AlexNet's convolutions as torchvision numbers them, one linear layer to `width`, and the mixing weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = alexnet_features()
        self.pool = nn.AdaptiveAvgPool2d(GRID)
        self.project = nn.Linear(256 * GRID**2, width, bias=False)
        self.mix = nn.Parameter(torch.zeros(()))
        """The share of the backbone before the sigmoid."""

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """Nothing at any block."""
        return ()

    def on_features(self, features: Features, images: Images) -> Features:
        """The weighted average [B, D] of backbone and side network."""
        height, width = (max(size, SMALLEST) for size in images.shape[2:])
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, size=(height, width), mode="bilinear")
        side = self.project(self.pool(self.features(images)).flatten(1))  # [B, D]
        share = self.mix.sigmoid()
        return share * features + (1 - share) * side


def alexnet_features() -> nn.Sequential:
    """Images [B, 3, h, w] to maps [B, 256, h', w']; the convolutions of "One weird trick" (Krizhevsky, 2014)."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(kernel_size=3, stride=2)

    def relu() -> nn.Module:
        return nn.ReLU(inplace=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), relu(), pool()),
        *(nn.Conv2d(64, 192, kernel_size=5, padding=2), relu(), pool()),
        *(nn.Conv2d(192, 384, kernel_size=3, padding=1), relu()),
        *(nn.Conv2d(384, 256, kernel_size=3, padding=1), relu()),
        *(nn.Conv2d(256, 256, kernel_size=3, padding=1), relu(), pool()),
    )


def imagenet_features() -> dict[str, Tensor]:
    """torchvision's AlexNet weights, without the classifier; raises BackboneError if they cannot be had."""
    from torchvision.models import AlexNet_Weights  # slow to import, and seldom needed

    weights = AlexNet_Weights.IMAGENET1K_V1
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)  # torch.hub sets none: without a network it could wait for ever
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # the network, the file and its format raise of all kinds here
        raise BackboneError(
            f"AlexNet's weights could not be loaded: {error}",
            where="Side",
            fix=f"Save {weights.url} in {torch.hub.get_dir()}/checkpoints, or start with weights=random "
            "(--method.weights random)",
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    start = "features."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


METHODS.register("side", Preset(method=Side, summary="AlexNet beside the frozen backbone, mixed into its features"))
