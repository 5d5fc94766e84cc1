"""A tuned model: a backbone, what a method adds to it, and a head."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from promptvit.backbones.base import NOTHING, Backbone, BlockInput
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import ConfigError
from promptvit.methods.base import Delta, Method
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Features, Images, Logits

Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The classes of one image, most probable first: `names`, their `labels` and `probabilities`."""

    names: tuple[str, ...]
    labels: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.names[0]


def tune(
    backbone: Backbone, method: Method, classes: int | Sequence[str], *, head: Literal["paper", "zeros"] = "paper"
) -> TunedModel:
    """A model that is ready to be trained on a task with `classes` (their number, or their names).

    The backbone is shared, not copied, unless the method trains weights of it. Parameters start from torch's global
    random state; `head` starts as in the paper (weight normal with a standard deviation of sqrt(2 / C), bias -ln 99)
    or at zero, as the default recipe of `promptvit train` has it. Raises ConfigError for fewer than two classes or
    repeated names.
    """
    names = class_names(classes)
    trained = frozenset(method.trained(backbone))
    own = copy.deepcopy(backbone) if trained else backbone
    for name, parameter in own.model.named_parameters() if trained else ():
        parameter.requires_grad_(name in trained)
    return TunedModel(own, method, method.build(own), linear_head(own.info.width, len(names), head), names)


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """The names of `classes`, "0" to "n-1" for a number; raises ConfigError for fewer than two or repeated ones."""
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    strings = not isinstance(classes, str) and all(isinstance(name, str) for name in names)
    if not strings or len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"classes={classes!r}", expected="at least two different classes", where="tune")
    return names


class TunedModel(nn.Module):
    """Images [B, channels, height, width] -> logits [B, C]; a plain module that any loop can train.

    `delta` and `head` are trained, and those backbone tensors that the method names. In train mode the backbone
    stays in eval mode unless the method trains it.
    """

    def __init__(
        self, backbone: Backbone, method: Method, delta: Delta, head: nn.Module, classes: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.delta = delta
        self.head = head
        self.method = method
        self.classes = classes
        self.preprocessing: Preprocessing = backbone.preprocessing
        self.train()

    def forward(self, images: Images) -> Logits:
        """Logits [B, C] of normalised `images`."""
        return self.head(self.features(images))

    def features(self, images: Images) -> Features:
        """What the head sees, [B, D]."""
        return self.backbone(images, self.delta(images.shape[0]))

    def train(self, mode: bool = True) -> TunedModel:
        """Train or eval mode; a frozen backbone is always in eval mode."""
        super().train(mode)
        self.backbone.train(mode and self.method.backbone_trains)
        return self

    def fold(self) -> FoldedModel:
        """The same function for inference, with the prompts' keys and values computed once and kept.

        Puts this model into eval mode; the two share backbone and head.
        """
        return FoldedModel(self.eval())

    @torch.no_grad()
    def predict(self, images: Picture | Sequence[Picture], *, top: int = 5, batch_size: int = 64) -> list[Prediction]:
        """The `top` classes of each image: paths, PIL images, or uint8 arrays [height, width, 3].

        Raises BrokenImageError for a file that cannot be decoded.
        """
        if top < 1 or batch_size < 1:
            raise ConfigError(f"top={top}, batch_size={batch_size}", expected="at least 1", where="predict")
        pictures = [images] if isinstance(images, Picture) else list(images)
        was_training = self.training
        folded = self.fold()
        predictions = []
        try:
            for start in range(0, len(pictures), batch_size):
                pixels = [prepare(picture, self.preprocessing) for picture in pictures[start : start + batch_size]]
                batch = normalise(torch.stack(pixels).to(self.device), self.preprocessing)
                best = folded(batch).float().softmax(dim=-1).topk(min(top, len(self.classes)))
                predictions += map(self._prediction, best.values.tolist(), best.indices.tolist())
        finally:
            self.train(was_training)
        return predictions

    def _prediction(self, probabilities: list[float], labels: list[int]) -> Prediction:
        return Prediction(
            names=tuple(self.classes[label] for label in labels),
            labels=tuple(labels),
            probabilities=tuple(probabilities),
        )

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return next(self.head.parameters()).device

    def trained_tensors(self) -> dict[str, Tensor]:
        """What `save` writes: `delta.*`, `head.*`, and `backbone.*` for trained backbone tensors."""
        trained = set(self.method.trained(self.backbone))
        body = self.backbone.body()
        return {
            **{f"delta.{name}": tensor for name, tensor in self.delta.state_dict().items()},
            **{f"head.{name}": tensor for name, tensor in self.head.state_dict().items()},
            **{f"backbone.{name}": tensor for name, tensor in body.items() if name in trained},
        }

    def trained_parameters(self) -> int:
        """How many values are trained, head included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def total_parameters(self) -> int:
        """How many values there are in all: backbone without its own head, delta and head."""
        added = [p for module in (self.delta, self.head) for p in module.parameters()]
        return sum(tensor.numel() for tensor in (*self.backbone.body().values(), *added))

    def save(self, folder: str | Path) -> Path:
        """Write `delta.safetensors` and `delta.json` into `folder`; see `promptvit.checkpoint`."""
        from promptvit.checkpoint import save

        return save(self, folder)


PARTS = ("tokens", "keys", "values")


class FoldedModel(nn.Module):
    """A tuned model for inference: prompts as kept keys and values."""

    def __init__(self, model: TunedModel) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.depth = model.backbone.info.depth
        for index, given in enumerate(model.backbone.fold(model.delta(1)) or [NOTHING] * self.depth):
            for part in PARTS:
                value = getattr(given, part)
                self.register_buffer(f"{part}_{index}", None if value is None else value.detach().clone())
        self.eval()

    def forward(self, images: Images) -> Logits:
        """Logits [B, C] of normalised `images`."""
        return self.head(self.backbone(images, self.inputs))

    @property
    def inputs(self) -> tuple[BlockInput, ...]:
        """What each block gets."""
        return tuple(
            BlockInput(**{part: self._buffers[f"{part}_{index}"] for part in PARTS}) for index in range(self.depth)
        )


def linear_head(width: int, classes: int, init: Literal["paper", "zeros"]) -> nn.Linear:
    """Features [B, width] to logits [B, classes]."""
    head = nn.Linear(width, classes)
    if init == "paper":
        nn.init.normal_(head.weight, std=math.sqrt(2 / classes))
        nn.init.constant_(head.bias, -math.log(99))
    else:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return head
