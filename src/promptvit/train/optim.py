"""The optimiser's parameter groups and the learning rate of every update."""

from __future__ import annotations

import math

import torch
from torch import nn

from promptvit.model import TunedModel
from promptvit.train.config import Decays, TrainConfig


def make_optimizer(model: TunedModel, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over everything that is trained: prompts, weights, and the rest without decay."""
    groups = parameter_groups(model, config)
    rate = learning_rate(model, config)
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=rate, eps=config.adam_epsilon)
    set_learning_rate(optimizer, rate)
    return optimizer


def parameter_groups(model: TunedModel, config: TrainConfig) -> list[dict]:
    """Trained parameters by their weight decay (the delta's own; the head's; that of backbone weights; none) and by
    their `share` of the learning rate (backbone; the rest)."""
    head_decay = config.weight_decay if config.head_weight_decay is None else config.head_weight_decay
    delta_decay = config.weight_decay if config.decays == "all" else config.delta_weight_decay
    last_bias = [layer for layer in model.head.modules() if isinstance(layer, nn.Linear)][-1].bias
    groups = []
    for module, decay, share in (
        (model.delta, delta_decay, 1.0),
        (model.head, head_decay, 1.0),
        (model.backbone.model, config.weight_decay, model.method.backbone_share),
    ):
        decayed, others = [], []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                has_decay = parameter is not last_bias and _has_decay(name, parameter, config.decays)
                (decayed if has_decay else others).append(parameter)
        for own_decay, parameters in ((decay, decayed), (0.0, others)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": own_decay, "share": share})
    return groups


def _has_decay(name: str, parameter: nn.Parameter, decays: Decays) -> bool:
    if decays == "matrices":
        return parameter.ndim > 1
    return decays == "all" or "bias" not in name.rpartition(".")[2]  # tables of position biases are biases too


def learning_rate(model: TunedModel, config: TrainConfig, processes: int = 1) -> float:
    """The peak learning rate: the configured one or the method's own, times what `rate_batch` makes of it."""
    rate = model.method.learning_rate if config.learning_rate is None else config.learning_rate
    if config.rate_batch is None:
        return rate
    return rate * config.batch_size * config.accumulate * processes / config.rate_batch


def scheduled_rate(step: int, total: int, warmup: int | float, peak: float, config: TrainConfig) -> float:
    """The learning rate of `step` (from 0) of `total`, updates or epochs: linear warm-up to `peak`, then the schedule.

    That of an update is never 0, so none is wasted. That of epoch e in a warm-up of w is e / w of `peak`, as in VPT.
    """
    if step < warmup:
        return peak * ((step + (config.schedule_steps == "update")) / warmup)
    if config.schedule == "constant":
        return peak
    wave = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.final_rate + (peak - config.final_rate) * wave


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
