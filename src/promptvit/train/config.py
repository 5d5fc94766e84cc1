"""What a run is: the whole configuration, as plain values. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
HeadInit = Literal["zeros", "paper", "truncated"]  # as in methods/heads.py, whose import needs torch
ClassWeights = Literal["none", "balanced"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a task is trained; raises ConfigError with all problems at once.

    - `epochs`: passes over the training images.
    - `batch_size`: images per step and process.
    - `accumulate`: batches per update.
    - `optimizer`: `adamw` with betas 0.9 and 0.999, or `sgd` with `momentum`.
    - `learning_rate`: of prompts, backbone weights and head at the peak; null is the method's own.
    - `momentum`: of sgd.
    - `weight_decay`: of head and backbone weights; biases and norms have none.
    - `delta_weight_decay`: of prompts.
    - `head_weight_decay`: of the head's weights alone; null is `weight_decay`.
    - `warmup_epochs`: the learning rate rises linearly, update by update; then the schedule.
      At most half of all updates.
    - `schedule`: `cosine` to 0 at the end, or `constant`.
    - `label_smoothing`: share of the target that goes to all classes alike.
    - `class_weights`: `balanced` weighs a class by the inverse of its number of images.
    - `head`: `zeros` starts the head at zero; `paper` (VPT) has a weight of standard deviation sqrt(2 / classes);
      `truncated` (SPT) one of 0.02, and bias zero.
    - `clip_norm`: the largest norm of all gradients together; null is no clipping.
    - `precision`: `bf16` and `fp16` are autocast; weights stay in fp32.
    - `checkpointing`: recompute blocks in the backward pass, for less memory.
    - `device`: `auto` takes an accelerator if there is one.
    - `keep_epoch`: prompts and head are kept as they are after this epoch, for `promptvit prune --rewind early`;
      those of the start always are.
    - `seed`: of initial values, order, augmentation and dropout.
    - `tensorboard`: curves into `tb/` (extra `track`).
    """

    epochs: int = 20
    batch_size: int = 32
    accumulate: int = 1
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.01
    delta_weight_decay: float = 0.0
    head_weight_decay: float | None = None
    warmup_epochs: float = 2.0
    schedule: Schedule = "cosine"
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    head: HeadInit = "zeros"
    clip_norm: float | None = 1.0
    precision: Precision = "fp32"
    checkpointing: bool = False
    device: Device = "auto"
    keep_epoch: int | None = None
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)}: expected at least 1"
            for name in ("epochs", "batch_size", "accumulate")
            if getattr(self, name) < 1
        ]
        problems += [
            f"{name}={getattr(self, name)}: expected 0 or more"
            for name in ("weight_decay", "delta_weight_decay", "warmup_epochs", "seed")
            if not getattr(self, name) >= 0
        ]
        if self.head_weight_decay is not None and not self.head_weight_decay >= 0:
            problems.append(f"head_weight_decay={self.head_weight_decay}: expected 0 or more, or null")
        problems += [
            f"{name}={getattr(self, name)}: expected above 0"
            for name in ("learning_rate", "clip_norm")
            if getattr(self, name) is not None and not getattr(self, name) > 0
        ]
        if self.keep_epoch is not None and not 1 <= self.keep_epoch <= self.epochs:
            problems.append(f"keep_epoch={self.keep_epoch}: expected one of the {self.epochs} epochs, or null")
        if self.seed >= 2**32:
            problems.append(f"seed={self.seed}: expected below 2**32")
        if self.learning_rate is not None and self.learning_rate > 1e30:
            problems.append(f"learning_rate={self.learning_rate}: expected at most 1e30")
        problems += [
            f"{name}={getattr(self, name)}: expected a value in [0, 1)"
            for name in ("momentum", "label_smoothing")
            if not 0 <= getattr(self, name) < 1
        ]
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                problems.append(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(choices))}")
        ConfigError.collect(problems, "TrainConfig")


_CHOICES = {
    "optimizer": Optimizer,
    "schedule": Schedule,
    "class_weights": ClassWeights,
    "head": HeadInit,
    "precision": Precision,
    "device": Device,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All of a run: data, backbone, method (`name` and the method's own fields) and training."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneSource = field(default_factory=BackboneSource)
    method: dict[str, Any] = field(default_factory=lambda: {"name": "vpt-deep"})
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.method.get("name"), str):
            raise ConfigError(
                f"method={self.method!r}", expected="a `name`, and the method's fields", where="RunConfig"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`; other keys are not looked at. Raises ConfigError for what is no configuration."""
        try:
            return cls(
                data=DataConfig(**values["data"]),
                backbone=BackboneSource.from_dict(values["backbone"]),
                method=values["method"],
                train=TrainConfig(**values["train"]),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"not a configuration of a run: {error}", where="RunConfig") from None

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, complete."""
        return dataclasses.asdict(self)
