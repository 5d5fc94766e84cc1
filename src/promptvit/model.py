"""A tuned model: a backbone, what a method adds to it, and a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from promptvit.backbones.base import NOTHING, Backbone, BlockInput
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import ConfigError
from promptvit.methods.base import Delta, Method
from promptvit.methods.heads import HeadInit
from promptvit.methods.samples import Dataset, Samples, as_samples
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
    backbone: Backbone,
    method: Method,
    classes: int | Sequence[str],
    *,
    head: HeadInit = "paper",
    samples: Samples | Dataset | None = None,
) -> TunedModel:
    """A model that is ready to be trained on a task with `classes` (their number, or their names).

    The backbone is shared, not copied; of weights that the method trains, the model has its own. Parameters start from
    torch's global random state; `head` starts as in the paper (weight normal with a standard deviation of sqrt(2 / C),
    bias -ln 99), `truncated` (0.02, bias zero) as in SPT, or at zero, as in the default recipe of `promptvit train`.
    `samples`: the task's training images, for methods whose initial values come from them: a map-style dataset, where
    `samples[i]` is a normalised image and its label. Raises ConfigError for fewer than two classes, repeated names,
    missing samples, or a method that this kind of backbone cannot have; DataError for samples that are of no use.
    """
    model = assemble(backbone, method, class_names(classes), head)
    if method.needs_samples and samples is None:
        raise ConfigError(
            f"the method {method.kind} starts from the task's images",
            expected="samples",
            where="tune",
            fix="tune(..., samples=DATASET), where DATASET[i] is a normalised image and its label",
        )
    known = None if samples is None else as_samples(samples)
    if method.augments_samples and known is not None and not known.augmented:
        raise ConfigError(
            "augment=True with samples that are not augmented views",
            expected="augment=False: a dataset's own transform says how its images are augmented",
            where="tune",
        )
    method.start(model.delta, model.backbone, known, len(model.classes))
    return model


def assemble(backbone: Backbone, method: Method, classes: tuple[str, ...], head: HeadInit = "paper") -> TunedModel:
    """The same with random values in place of those that come from data or files: to be filled from a delta."""
    if backbone.of_task:
        raise ConfigError(
            "the backbone of a tuned model",
            expected="a pretrained one",
            where="tune",
            fix="Load it anew; load_backbone(..., tuned=FOLDER) starts from the weights that a saved task trained",
        )
    reason = method.refusal(backbone.info)
    if reason:
        raise ConfigError(
            f"{type(method).__name__} on a {backbone.info.family} backbone: {reason}",
            where="tune",
            fix="`promptvit methods --backbone NAME` lists what this backbone can have",
        )
    own = method.prepare(backbone)
    device = next(iter(own.weights().values())).device
    delta, linear = method.build(own), method.head(own.info.width, len(classes), head)
    return TunedModel(own, method, delta.to(device), linear.to(device), classes)


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """The names of `classes`, "0" to "n-1" for a number; raises ConfigError for fewer than two or repeated ones."""
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    strings = not isinstance(classes, str) and all(isinstance(name, str) for name in names)
    if not strings or len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"classes={classes!r}", expected="at least two different classes", where="tune")
    return names


class Classifier(nn.Module, ABC):
    """Images to the classes of a task, by name: a tuned model, or several as one."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing

    @abstractmethod
    def fold(self) -> nn.Module:
        """The same function for inference, from normalised images to logits; puts this one into eval mode."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where images go."""

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


class TunedModel(Classifier):
    """Images [B, channels, height, width] -> logits [B, C]; a plain module that any loop can train.

    `delta` and `head` are trained, and those backbone tensors that the method names (`trained`). In train mode the
    backbone stays in eval mode unless the method trains it.
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
        self.preprocessing = backbone.preprocessing
        trained = [name for name, parameter in backbone.weights().items() if parameter.requires_grad]
        self.trained = frozenset([*trained, *_running_statistics(backbone)])
        self.train()

    def forward(self, images: Images) -> Logits:
        """Logits [B, C] of normalised `images`."""
        return self.head(self.features(images))

    def features(self, images: Images) -> Features:
        """What the head sees, [B, D]."""
        pixels = self.delta.on_images(images)
        features = self.backbone(pixels, self.delta(self.backbone, images.shape[0]), self.method.readout)
        return self.delta.on_features(features, images)

    def train(self, mode: bool = True) -> TunedModel:
        """Train or eval mode; a frozen backbone is always in eval mode, but for batch norms that are trained."""
        super().train(mode)
        self.backbone.train(mode and self.method.backbone_trains)
        for part in self.method.training_parts(self.backbone):
            part.train(mode)
        for _, norm in _trained_batch_norms(self.backbone):
            norm.train(mode)
        return self

    def fold(self) -> FoldedModel:
        """The same function for inference, with the prompts' keys and values computed once and kept.

        Puts this model into eval mode; the two share backbone and head.
        """
        return FoldedModel(self.eval())

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return next(self.head.parameters()).device

    def trained_tensors(self) -> dict[str, Tensor]:
        """What `save` writes: `delta.*`, `head.*`, and `backbone.*` for trained backbone tensors."""
        body = self.backbone.body()
        return {
            **{f"delta.{name}": tensor for name, tensor in self.delta.state_dict().items()},
            **{f"head.{name}": tensor for name, tensor in self.head.state_dict().items()},
            **{f"backbone.{name}": tensor for name, tensor in body.items() if name in self.trained},
        }

    def trained_parameters(self) -> int:
        """How many values are trained, head included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def total_parameters(self) -> int:
        """How many values there are in all: backbone without its own head, delta and head."""
        added = [p for module in (self.delta, self.head) for p in module.parameters()]
        return sum(tensor.numel() for tensor in (*self.backbone.weights().values(), *added))

    def save(self, folder: str | Path) -> Path:
        """Write `delta.safetensors` and `delta.json` into `folder`; see `promptvit.checkpoint`."""
        from promptvit.checkpoint import save

        return save(self, folder)


def _trained_batch_norms(backbone: Backbone) -> list[tuple[str, _BatchNorm]]:
    """Those whose scale is trained: they run on the statistics of the batch, and keep running ones."""
    modules = backbone.model.named_modules()
    norms = [(name, module) for name, module in modules if isinstance(module, _BatchNorm)]
    return [(name, norm) for name, norm in norms if norm.weight is not None and norm.weight.requires_grad]


def _running_statistics(backbone: Backbone) -> list[str]:
    norms = _trained_batch_norms(backbone)
    return [f"{name}.{buffer}" for name, norm in norms for buffer, _ in norm.named_buffers(recurse=False)]


PARTS = ("tokens", "keys", "values", "bias", "added")


class FoldedModel(nn.Module):
    """A tuned model for inference: prompts as kept keys and values."""

    def __init__(self, model: TunedModel) -> None:
        super().__init__()
        self.backbone, self.delta, self.head = model.backbone, model.delta, model.head
        self.depth = model.backbone.info.depth
        self.readout = model.method.readout
        inputs = model.backbone.fold(model.delta(model.backbone, 1), self.readout)
        for index, given in enumerate(inputs or [NOTHING] * self.depth):
            for part in PARTS:
                value = getattr(given, part)
                self.register_buffer(f"{part}_{index}", None if value is None else value.detach().clone())
        self.eval()

    def forward(self, images: Images) -> Logits:
        """Logits [B, C] of normalised `images`."""
        features = self.backbone(self.delta.on_images(images), self.inputs, self.readout)
        return self.head(self.delta.on_features(features, images))

    @property
    def inputs(self) -> tuple[BlockInput, ...]:
        """What each block gets."""
        return tuple(
            BlockInput(**{part: self._buffers[f"{part}_{index}"] for part in PARTS}) for index in range(self.depth)
        )
