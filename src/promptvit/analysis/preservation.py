"""What tuning keeps of a pretrained backbone: its features, on the task's images and on others, and its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from promptvit.analysis.cka import Similarities, cka_matrix
from promptvit.analysis.layers import LayerFeatures, Row, SplitLayers, read_row, split_layers, tokens_of
from promptvit.analysis.probes import LayerProbes, probe_layers
from promptvit.backbones.base import Backbone
from promptvit.data.config import DataConfig
from promptvit.data.load import load_split, load_task
from promptvit.data.task import Split
from promptvit.errors import ConfigError
from promptvit.files import write_json
from promptvit.methods.lora import LoRA
from promptvit.model import TunedModel

FORMAT = 1
"""Of what is kept; a file of another one is made anew."""
LOW_RANK = ".lora_A.", ".lora_B."
"""In the names of the two factors that PEFT gives a layer."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Features of the same images in the pretrained backbone and in the tuned model, by row.

    `cka`: of each depth of the one (first index) with each of the other; None where a row is the same for every image.
    `cosine`: distance of the two at the same depth, the mean over `images` images.
    """

    images: int
    cka: dict[Row, Similarities]
    cosine: dict[Row, list[float]]

    def same_depth(self, row: Row) -> list[float | None]:
        """CKA of each depth with itself."""
        return [values[depth] for depth, values in enumerate(self.cka[row])]


@dataclass(frozen=True, kw_only=True)
class Preservation:
    """What is left of a pretrained backbone after tuning.

    `read`: the row that is nearer to what the head reads; `probes`: see `layer_probes`; `own`: on validation images of
    the task; `other`: on those of another task, whose features nobody tuned (forgetting), or None; `weights`: the norm
    of what was added to the weights of each block, as a share of the norm of the weights: 0 if they were kept.
    """

    read: Row
    probes: LayerProbes
    own: Similarity
    other: Similarity | None
    weights: list[float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preservation:
        """The inverse."""
        own, other = (None if values[name] is None else Similarity(**values[name]) for name in ("own", "other"))
        return cls(**{**values, "own": own, "other": other})


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An answer in a file, beside all that it depends on: `asked`, plain values, one the SHA-256 of the `delta`."""

    asked: dict[str, Any]
    found: Preservation

    def write(self, path: Path) -> None:
        """Raises OutputError."""
        write_json(path, {"asked": self.asked, "found": self.found.to_dict()})

    @classmethod
    def read(cls, path: Path) -> Kept | None:
        """None if there is no such file, or none that can be read: it is made again."""
        try:
            values = json.loads(path.read_bytes())
            kept = cls(asked=dict(values["asked"]), found=Preservation.from_dict(values["found"]))
            return kept if kept.asked["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def preservation(
    model: TunedModel, pretrained: Backbone, data: DataConfig, *, other: DataConfig | None = None, images: int = 500
) -> Preservation:
    """How far `model` is from the `pretrained` backbone that it was tuned on, for the task in `data`.

    At most `images` of the training images, of the validation images, and of the validation images of `other`; always
    the same ones. Raises ConfigError for a backbone without rows or the same images twice, and DataError for fewer than
    four images.
    """
    if other is not None and other.source == data.source:
        raise ConfigError(
            f"other={other.source!r}, the images that the model was tuned on",
            expected="images of another task",
            where="preservation",
        )
    # What is quick comes first, and refuses what cannot be had.
    weights, task = weight_distances(model, pretrained), load_task(data)
    foreign = None if other is None else (load_task(other).val, other)

    def layers(split: Split, config: DataConfig) -> SplitLayers:
        return split_layers(model, pretrained, load_split(split, model.preprocessing, config), images)

    val = layers(task.val, data)
    return Preservation(
        read=read_row(model),
        own=similarity(val),
        other=None if foreign is None else similarity(layers(*foreign)),
        probes=probe_layers(layers(task.train, data), val),
        weights=weights,
    )


def similarity(layers: SplitLayers) -> Similarity:
    """How alike features before and after tuning are."""
    before, after = layers.before, layers.after
    return Similarity(
        images=len(layers.labels),
        cka={row: cka_matrix(before[row], after[row]) for row in before},
        cosine={row: _cosine_distances(before, after, row) for row in before},
    )


def _cosine_distances(before: LayerFeatures, after: LayerFeatures, row: Row) -> list[float]:
    pairs = zip(before[row], after[row], strict=True)
    distances = (1 - (_unit(one) * _unit(other)).sum(axis=1) for one, other in pairs)  # [n] at each depth
    return [max(0.0, float(each.mean())) for each in distances]  # no rounding below 0


def _unit(rows: Float64[np.ndarray, "n D"]) -> Float64[np.ndarray, "n D"]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
def weight_distances(model: TunedModel, pretrained: Backbone) -> list[float]:
    """For each block the norm of what was added to its weights, over the norm of its weights."""
    weights = pretrained.weights()
    changes = _changes(model, weights)
    of_blocks = [pretrained.under(*unit) for unit in tokens_of(pretrained).units()]
    return [
        _norm([changes[name] for name in names if name in changes]) / _norm([weights[name] for name in names])
        for names in of_blocks
    ]


def _changes(model: TunedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was added to those of `weights` that were trained, and what an update of LoRA adds. A first convolution that
    was widened is left out; it is in no block."""
    tuned = model.backbone.weights()
    changes = {
        name: tuned[name] - weight
        for name, weight in weights.items()
        if name in model.trained and tuned[name].shape == weight.shape
    }
    if isinstance(model.method, LoRA):
        scale, (first, second) = model.method.alpha / model.method.rank, LOW_RANK
        for name, factor in tuned.items():
            if first in name:
                changes[f"{name.partition(first)[0]}.weight"] = scale * tuned[name.replace(first, second)] @ factor
    return changes


def _norm(tensors: list[Tensor]) -> float:
    """Of all values together, in 64 bits."""
    return float(np.linalg.norm([tensor.double().norm().item() for tensor in tensors]))


def reading(found: Preservation) -> str:
    """What was found, in two or three sentences."""
    probes = {moment: found.probes[moment][found.read]["linear"][-1] for moment in found.probes}
    elsewhere = "" if found.other is None else f" ({_shown(found.other.same_depth(found.read)[-1])} on other images)"
    least, most = 100 * min(found.weights), 100 * max(found.weights)
    moved = (
        f"The weights of blocks moved by {least:.2g} to {most:.2g} %." if most else "No weight of a block has moved."
    )
    return (
        f"At the last depth a linear probe is right for {_percent(probes['before'])} of the validation images before "
        f"tuning and {_percent(probes['after'])} after. Features there have a CKA of "
        f"{_shown(found.own.same_depth(found.read)[-1])} with the pretrained ones{elsewhere}. {moved}"
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
