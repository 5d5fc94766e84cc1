"""The optimiser's parameter groups and the learning rate of every update."""

from __future__ import annotations

import math

import torch
from torch import nn

from promptvit.model import TunedModel
from promptvit.train.config import TrainConfig


def make_optimizer(model: TunedModel, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over everything that is trained: prompts, weights, and the rest without decay."""
    groups = parameter_groups(model, config)
    rate = learning_rate(model, config)
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=rate)
    set_learning_rate(optimizer, rate)
    return optimizer


def parameter_groups(model: TunedModel, config: TrainConfig) -> list[dict]:
    """Trained parameters by their weight decay (the delta's own; the head's; backbone weights; biases and norms) and by
    their `share` of the learning rate (backbone; the rest)."""
    head_decay = config.weight_decay if config.head_weight_decay is None else config.head_weight_decay
    groups = []
    for module, decay, share in (
        (model.delta, config.delta_weight_decay, 1.0),
        (model.head, head_decay, 1.0),
        (model.backbone.model, config.weight_decay, model.method.backbone_share),
    ):
        trained = [p for p in module.parameters() if p.requires_grad]
        for own_decay, parameters in (
            (decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            if parameters:
                groups.append({"params": parameters, "weight_decay": own_decay, "share": share})
    return groups


def learning_rate(model: TunedModel, config: TrainConfig) -> float:
    """The peak learning rate: the configured one, or the method's own."""
    return model.method.learning_rate if config.learning_rate is None else config.learning_rate


def schedule_factor(update: int, total: int, warmup: int, config: TrainConfig) -> float:
    """The share of the peak learning rate for `update` (from 0) of `total`: linear warm-up, then the schedule.

    Never 0, so no update is wasted.
    """
    if update < warmup:
        return (update + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, total - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """`rate`, of which a group has its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def make_loss(config: TrainConfig, labels: torch.Tensor, classes: int) -> nn.CrossEntropyLoss:
    """Cross-entropy; with balanced weights, class c of n_c training images weighs n / (C · n_c)."""
    weights = None
    if config.class_weights == "balanced":
        counts = torch.bincount(labels, minlength=classes).clamp(min=1)
        weights = labels.numel() / (classes * counts.float())
    return nn.CrossEntropyLoss(weight=weights, label_smoothing=config.label_smoothing)
