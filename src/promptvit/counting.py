"""What a method would train on a backbone, counted without weights; and what a tuned model computes for an image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from promptvit.backbones.base import Backbone
from promptvit.backbones.load import load_source
from promptvit.backbones.source import BackboneSource
from promptvit.errors import ConfigError
from promptvit.methods.base import Method
from promptvit.model import TunedModel, assemble, class_names


@dataclass(frozen=True, kw_only=True)
class Count:
    """The size of a task tuned with one method.

    - `delta`: trained parameters without the head; `head`: those of the head; `trained`: both.
    - `percent_of_backbone`: 100 · trained / parameters of the backbone.
    - `tuned_percent`: 100 · trained / all parameters of the tuned model, as the papers have it.
    - `bytes`: of `delta.safetensors`.
    - `ratio`: what `tasks` such tasks store beside one backbone, in units of the backbone: (B + tasks · trained) / B.
      Where every weight is trained no backbone is stored beside them: tasks · trained / B.
    """

    delta: int
    head: int
    trained: int
    percent_of_backbone: float
    tuned_percent: float
    bytes: int
    ratio: float


def outline(source: BackboneSource) -> Backbone:
    """The backbone of `source` without values: nothing is downloaded, and it takes no memory."""
    with torch.device("meta"):
        return load_source(dataclasses.replace(source, pretrained=False, checkpoint=None, tuned=None))


def count(backbone: Backbone, method: Method, classes: int, tasks: int = 1) -> Count:
    """Count `method` on `backbone` (see `outline`) for `tasks` tasks of `classes` classes each.

    Raises ConfigError, with the reason, for a method that the backbone cannot have.
    """
    if tasks < 1:
        raise ConfigError(f"tasks={tasks}", expected="at least 1", where="count")
    with torch.device("meta"):
        model = assemble(backbone, method, class_names(classes))
    body = sum(weight.numel() for weight in backbone.weights().values())
    trained, head = model.trained_parameters(), sum(p.numel() for p in model.head.parameters())
    stored = 0 if set(backbone.trainable()) <= model.trained else body
    return Count(
        delta=trained - head,
        head=head,
        trained=trained,
        percent_of_backbone=100 * trained / body,
        tuned_percent=100 * trained / model.total_parameters(),
        bytes=safetensors_bytes(model.trained_tensors()),
        ratio=(stored + tasks * trained) / body,
    )


@torch.no_grad()
def flops(model: TunedModel) -> int:
    """Floating point operations for one image in inference, with prompts folded; a multiplication and an addition are
    two. Norms, activations and softmax are not counted."""
    was_training, info = model.training, model.backbone.info
    like, size = next(model.backbone.parameters()), model.preprocessing.size
    folded = model.fold()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        folded(like.new_zeros(1, info.channels, *size))
    model.train(was_training)
    return counter.get_total_flops()


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The size of the safetensors file of `tensors`: eight bytes, a JSON header in multiples of eight, the values."""
    header, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
