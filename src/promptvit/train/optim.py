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
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=rate)


def parameter_groups(model: TunedModel, config: TrainConfig) -> list[dict]:
    """Trained parameters by their weight decay: the delta's own, weights of backbone and head, biases and norms."""
    delta = [p for p in model.delta.parameters() if p.requires_grad and p.ndim > 1]
    weights, others = [], [p for p in model.delta.parameters() if p.requires_grad and p.ndim < 2]
    for module in (model.backbone.model, model.head):
        for parameter in module.parameters():
            if parameter.requires_grad:
                (weights if parameter.ndim > 1 else others).append(parameter)
    decays = ((delta, config.delta_weight_decay), (weights, config.weight_decay), (others, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in decays if params]


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
    """The same rate for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_loss(config: TrainConfig, labels: torch.Tensor, classes: int) -> nn.CrossEntropyLoss:
    """Cross-entropy; with balanced weights, class c of n_c training images weighs n / (C · n_c)."""
    weights = None
    if config.class_weights == "balanced":
        counts = torch.bincount(labels, minlength=classes).clamp(min=1)
        weights = labels.numel() / (classes * counts.float())
    return nn.CrossEntropyLoss(weight=weights, label_smoothing=config.label_smoothing)
