"""The things that are timed: training steps and inference calls, all on one backbone, one batch and one seed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import promptvit as pv
from benchmarks.literal import LiteralVPT
from benchmarks.measure import Step
from promptvit.backbones.base import Backbone, BlockInput
from promptvit.methods.prompts import Prompts
from promptvit.model import TunedModel

BACKBONE = "vit_small_patch16_224"
CLASSES = 100
TASKS = 8


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A backbone with random weights and a batch: `images` [B, 3, 224, 224], `labels` [B]."""

    backbone: Backbone
    images: Tensor
    labels: Tensor

    @property
    def timm_model(self) -> VisionTransformer:
        """The backbone's own module."""
        return cast(VisionTransformer, self.backbone.model)

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.images.device


def bench(batch: int, device: torch.device, seed: int) -> Bench:
    """Everything from one seed."""
    torch.manual_seed(seed)
    backbone = pv.load_backbone(BACKBONE, pretrained=False).to(device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    return Bench(backbone=backbone, images=images, labels=torch.randint(CLASSES, (batch,), device=device))


def ours(on: Bench, length: int, depth: Literal["shallow", "deep"] = "deep") -> TunedModel:
    """promptvit's VPT."""
    return pv.tune(on.backbone, pv.VPT(length=length, depth=depth), CLASSES).to(on.device)


def literal(on: Bench, model: TunedModel) -> LiteralVPT:
    """The paper's loop with the same backbone and copies of the prompts and the head of `model`."""
    prompts = cast(Prompts, model.delta).prompts[0].detach().clone()
    return LiteralVPT(on.timm_model, prompts, copy.deepcopy(model.head))


class NoPrompts(nn.Module):
    """The step with P = 0: prompts of zero rows in every block that still ask for a gradient.

    The backward pass goes through the whole trunk, as it does with P > 0.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompts = nn.Parameter(torch.empty(backbone.info.depth, 0, backbone.info.width))
        self.head = nn.Linear(backbone.info.width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of `images` [B, channels, height, width]."""
        return self.head(self.backbone(images, [BlockInput(tokens=tokens) for tokens in self.prompts.unbind(0)]))


class MixedTasks(nn.Module):
    """One batch, `TASKS` tasks: kept keys and values [TASKS, H, P, d] per block and heads, gathered by task."""

    def __init__(self, on: Bench, length: int) -> None:
        super().__init__()
        self.backbone = on.backbone
        models = [ours(on, length) for _ in range(TASKS)]
        folded = [model.fold().inputs for model in models]
        self.keys = [torch.stack([_present(given.keys) for given in block]) for block in zip(*folded, strict=True)]
        self.values = [torch.stack([_present(given.values) for given in block]) for block in zip(*folded, strict=True)]
        heads = [cast(nn.Linear, model.head) for model in models]
        self.weight = torch.stack([head.weight.detach() for head in heads])  # [TASKS, C, D]
        self.bias = torch.stack([head.bias.detach() for head in heads])  # [TASKS, C]
        self.tasks = torch.arange(len(on.images), device=on.device) % TASKS  # [B]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C], those of each image by the prompts and the head of its task."""
        gathered = zip(self.keys, self.values, strict=True)
        given = [BlockInput(keys=k[self.tasks], values=v[self.tasks]) for k, v in gathered]  # [B, H, P, d]
        features = self.backbone(images, given)
        return torch.einsum("bd,bcd->bc", features, self.weight[self.tasks]) + self.bias[self.tasks]


def bare(on: Bench) -> nn.Module:
    """timm's own forward and a linear layer."""
    return nn.Sequential(on.timm_model, nn.Linear(on.backbone.info.width, CLASSES)).to(on.device).eval()


def training(on: Bench, model: nn.Module) -> Step:
    """Forward, cross-entropy, backward and an SGD step; no gradient is left behind."""
    model.to(on.device)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)

    def step() -> None:
        F.cross_entropy(model(on.images), on.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(on: Bench, model: nn.Module, batch: int) -> Step:
    """Logits of the first `batch` images, without gradients."""
    images = on.images[:batch]

    @torch.inference_mode()
    def call() -> Tensor:
        return model(images)

    return call


@torch.no_grad()
def difference(on: Bench, one: nn.Module, other: nn.Module) -> float:
    """The largest absolute difference between the logits of two models."""
    return (one(on.images) - other(on.images)).abs().max().item()


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "every block of VPT-deep folds to keys and values"
    return tensor
