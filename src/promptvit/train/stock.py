"""What runs of one process share: backbones, decoded images, and features that no run changes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Literal

import torch
from accelerate import Accelerator
from jaxtyping import Float32
from torch import Tensor

from promptvit.backbones.base import Backbone
from promptvit.backbones.load import load_source
from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.data.dataset import FeatureDataset, ImageDataset, Progress
from promptvit.data.load import load_split, load_task
from promptvit.data.task import Split, Task
from promptvit.data.transforms import normalise
from promptvit.model import TunedModel
from promptvit.preprocessing import Preprocessing

SplitName = Literal["train", "val", "test"]
BATCH = 64
"""Images at a time, for features."""


class Stock:
    """Each backbone, task and split is loaded once; what was not used for longest goes first.

    - `limit_bytes`: of decoded images, features and fine-tuned backbones together, beside those in use.

    A run leaves what it takes from here as it was: a method that trains backbone weights has its own copy.
    """

    def __init__(self, limit_bytes: int = 8 * 2**30) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def backbone(self, source: BackboneSource) -> Backbone:
        """The backbone that `source` describes; its state is the caller's to leave alone."""

        def load() -> tuple[Backbone, int]:
            backbone = load_source(source)
            # A pretrained one is for all runs. Fine-tuned ones are many, each for a few.
            size = 0 if source.tuned is None else sum(weight.nbytes for weight in backbone.weights().values())
            return backbone, size

        return self._get(("backbone", source), load)

    def task(self, config: DataConfig) -> Task:
        """The task of `config`."""
        return self._get(("task", config), lambda: (load_task(config), 0))

    def put_task(self, config: DataConfig, task: Task) -> None:
        """From now on `task` is that of `config`, whatever can be read there."""
        self._kept[("task", config)] = (task, 0)

    def images(
        self,
        name: SplitName,
        split: Split,
        preprocessing: Preprocessing,
        config: DataConfig,
        progress: Progress | None = None,
    ) -> ImageDataset:
        """The images of a split of the task of `config`."""

        def load() -> tuple[ImageDataset, int]:
            dataset = load_split(split, preprocessing, config, progress)
            return dataset, dataset.bytes

        return self._get(("images", name, preprocessing, dataclasses.replace(config, augment="none")), load)

    def features(self, images: ImageDataset, model: TunedModel, accelerator: Accelerator) -> FeatureDataset:
        """What the head of `model`, which is on the accelerator's device, sees of `images`; no training changes it."""
        key = ("features", id(images), id(model.backbone), model.method.readout, accelerator.mixed_precision)

        def load() -> tuple[tuple[FeatureDataset, ImageDataset], int]:
            features = FeatureDataset(frozen_features(images, model, accelerator), images.labels)
            # The images too: their identity stays theirs, and so they stay in memory.
            return (features, images), features.bytes + images.bytes

        return self._get((*key, str(accelerator.device)), load)[0]

    def _get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        if key not in self._kept:
            self._kept[key] = load()
        self._kept.move_to_end(key)
        held = sum(size for _, size in self._kept.values())
        for old in list(self._kept)[:-1]:
            size = self._kept[old][1]
            if held > self.limit_bytes and size:
                del self._kept[old]
                held -= size
        return self._kept[key][0]


@torch.no_grad()
def frozen_features(images: ImageDataset, model: TunedModel, accelerator: Accelerator) -> Float32[Tensor, "n D"]:
    """The features of all `images` in eval mode, on the CPU."""
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(images), BATCH):
        pixels, _ = images.__getitems__(range(start, min(start + BATCH, len(images))))
        with accelerator.autocast():
            features = model.features(normalise(pixels.to(accelerator.device), model.preprocessing))
        parts.append(features.float().cpu())
    model.train(was_training)
    return torch.cat(parts)
