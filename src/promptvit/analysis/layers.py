"""Features at every depth of a transformer: what its rows say of an image before, between and behind its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from promptvit.analysis.finite import check_finite
from promptvit.analysis.images import batches, choose
from promptvit.backbones.base import Backbone, TokenBackbone
from promptvit.backbones.walk import walk
from promptvit.data.dataset import ImageDataset
from promptvit.errors import ConfigError, DataError
from promptvit.model import TunedModel
from promptvit.shapes import Images

Row = Literal["cls", "patch"]
"""The CLS row of an image, or the mean of its patch rows. Models without CLS token have `patch` alone."""
LayerFeatures = dict[Row, list[Float64[np.ndarray, "_ _"]]]
"""Features [n, D] at L+1 depths: as they enter each block (after patch merging), and leave the last, without a norm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitLayers:
    """Features of the same images in the pretrained backbone (`before`) and in the tuned model (`after`), and their
    labels."""

    before: LayerFeatures
    after: LayerFeatures
    labels: Int64[np.ndarray, " n"]


def split_layers(model: TunedModel, pretrained: Backbone, dataset: ImageDataset, images: int = 500) -> SplitLayers:
    """Features at every depth of at most `images` images of `dataset`, the same ones each time.

    `pretrained`: the backbone that `model` was tuned on. Raises what `layer_features` raises, and ConfigError for
    another backbone, or that of a tuned model.
    """
    if pretrained.of_task or pretrained.fingerprint != model.backbone.fingerprint:
        raise ConfigError(
            "the backbone of a tuned model" if pretrained.of_task else "another backbone than that of the model",
            expected="the pretrained one",
            where="split_layers",
        )
    pixels, labels = choose(dataset, images, "split_layers")
    before, after = (
        layer_features(of, batches(pixels, model.preprocessing, model.device)) for of in (pretrained, model)
    )
    return SplitLayers(before=before, after=after, labels=labels.numpy())


@torch.no_grad()
def layer_features(model: TunedModel | Backbone, batches: Iterable[Images]) -> LayerFeatures:
    """Features at L+1 depths of normalised images that are where the model is; of a tuned model with its prompts.

    The model is in eval mode meanwhile. Raises ConfigError for a backbone without rows (a ConvNet), and DataError for
    no images or features that are not finite.
    """
    tokens_of(model)
    was_training = model.training
    model.eval()
    try:
        parts = [_pooled(model, images) for images in batches if len(images)]
    finally:
        model.train(was_training)
    if not parts:
        raise DataError("no images", expected="at least one", where="layer_features")
    features: LayerFeatures = {
        row: [np.concatenate(at_depth) for at_depth in zip(*(part[row] for part in parts), strict=True)]
        for row in parts[0]
    }
    for each in features.values():
        for depth, rows in enumerate(each):
            check_finite(rows, f"layer_features, depth {depth}")
    return features


def tokens_of(model: TunedModel | Backbone) -> TokenBackbone:
    """The transformer in `model`; raises ConfigError if it is none."""
    backbone = model.backbone if isinstance(model, TunedModel) else model
    if not isinstance(backbone, TokenBackbone):
        raise ConfigError(
            f"a {backbone.info.family} backbone, which has no rows between its blocks",
            expected="a transformer: ViT, EVA or Swin",
            where="layer_features",
        )
    return backbone


def read_row(model: TunedModel) -> Row:
    """The row that is nearer to what the head reads: `cls` where that is the CLS row, else `patch`."""
    own = model.method.readout == "own" and model.backbone.info.readout == "token"
    return "cls" if own and model.backbone.info.cls else "patch"


def _pooled(model: TunedModel | Backbone, images: Images) -> LayerFeatures:
    backbone = tokens_of(model)
    if isinstance(model, TunedModel):
        rows = walk(backbone, model.delta.on_images(images), model.delta(backbone, len(images)))
    else:
        rows = walk(backbone, images)
    cls, patch = [], []
    for at in rows:
        cls.append(_values(at.image[:, 0]))
        patch.append(_values(at.image[:, backbone.info.prefix :].mean(dim=1)))
    return {"cls": cls, "patch": patch} if backbone.info.cls else {"patch": patch}


def _values(rows: Tensor) -> Float64[np.ndarray, "n D"]:
    return rows.double().cpu().numpy()
