"""What a run is: the whole configuration, as plain values. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
ScheduleSteps = Literal["update", "epoch"]
Decays = Literal["matrices", "weights", "all"]
HeadInit = Literal["zeros", "paper", "truncated"]  # as in methods/heads.py, whose import needs torch
ClassWeights = Literal["none", "balanced"]
Test = Literal["once", "every-epoch"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a task is trained; raises ConfigError with all problems at once.

    - `epochs`: passes over the training images.
    - `batch_size`: images per step and process.
    - `drop_last`: leave out the last batch of an epoch if it is not full.
    - `accumulate`: batches per update.
    - `optimizer`: `adamw` with betas 0.9 and 0.999, or `sgd` with `momentum`.
    - `learning_rate`: of prompts, backbone weights and head at the peak; null is the method's own.
    - `rate_batch`: `learning_rate` is meant for an update of so many images, and grows in proportion to those that an
      update has, on all processes; null: it is taken as it is.
    - `momentum`: of sgd.
    - `adam_epsilon`: of adamw, added to the root of the second moment.
    - `weight_decay`: of head and backbone weights.
    - `delta_weight_decay`: of prompts.
    - `head_weight_decay`: of the head's weights alone; null is `weight_decay`.
    - `start_decay`: of trained backbone weights, to the values that they start from in place of zero (L2-SP).
    - `decays`: what has a weight decay: `matrices`, so neither biases nor norms; `weights` (VPT with AdamW), all but
      biases; `all` (VPT with SGD), everything but the bias of the head's last layer, prompts too by `weight_decay`.
    - `warmup_epochs`: the learning rate rises linearly; then the schedule. At most half of all updates; with
      `schedule_steps=epoch` it must leave an epoch.
    - `schedule`: `cosine` down to `final_rate`, or `constant`.
    - `schedule_steps`: every `update` has its own learning rate, the first above 0; or every `epoch` (VPT), where the
      first of a warm-up has none.
    - `final_rate`: what the cosine would reach one update (or epoch) after the last.
    - `label_smoothing`: share of the target that goes to all classes alike.
    - `class_weights`: `balanced` weighs a class by the inverse of its number of images.
    - `head`: `zeros` starts the head at zero; `paper` (VPT) has a weight of standard deviation sqrt(2 / classes);
      `truncated` (SPT) one of 0.02, and bias zero.
    - `head_from`: a run or delta of the same classes whose head is the start of this one, in place of `head`: linear,
      then full; null is none.
    - `clip_norm`: the largest norm of all gradients together; null is no clipping.
    - `precision`: `bf16` and `fp16` are autocast; weights stay in fp32.
    - `checkpointing`: recompute blocks in the backward pass, for less memory.
    - `device`: `auto` takes an accelerator if there is one.
    - `test`: the test images are evaluated `once`, at the end; or after `every-epoch`, only to compare with papers that
      choose the epoch on them. The result is the last epoch's all the same.
    - `keep_epoch`: prompts and head are kept as they are after this epoch, for `promptvit prune --rewind early`;
      those of the start always are.
    - `seed`: of initial values, order, augmentation and dropout.
    - `tensorboard`: curves into `tb/` (extra `track`).
    """

    epochs: int = 20
    batch_size: int = 32
    drop_last: bool = False
    accumulate: int = 1
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    rate_batch: int | None = None
    momentum: float = 0.9
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.01
    delta_weight_decay: float = 0.0
    head_weight_decay: float | None = None
    start_decay: float = 0.0
    decays: Decays = "matrices"
    warmup_epochs: float = 2.0
    schedule: Schedule = "cosine"
    schedule_steps: ScheduleSteps = "update"
    final_rate: float = 0.0
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    head: HeadInit = "zeros"
    head_from: str | None = None
    clip_norm: float | None = 1.0
    precision: Precision = "fp32"
    checkpointing: bool = False
    device: Device = "auto"
    test: Test = "once"
    keep_epoch: int | None = None
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)}: expected at least 1"
            for name in ("epochs", "batch_size", "accumulate", "rate_batch")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        problems += [
            f"{name}={getattr(self, name)}: expected 0 or more"
            for name in ("weight_decay", "delta_weight_decay", "start_decay", "warmup_epochs", "final_rate", "seed")
            if not getattr(self, name) >= 0
        ]
        if self.head_weight_decay is not None and not self.head_weight_decay >= 0:
            problems.append(f"head_weight_decay={self.head_weight_decay}: expected 0 or more, or null")
        problems += [
            f"{name}={getattr(self, name)}: expected above 0"
            for name in ("learning_rate", "adam_epsilon", "clip_norm")
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
        ConfigError.collect([*problems, *self._contradictions()], "TrainConfig")
        if self.head_from is not None:  # a resumed run may be somewhere else
            object.__setattr__(self, "head_from", str(Path(self.head_from).expanduser().absolute()))

    def _contradictions(self) -> list[str]:
        """What is wrong with fields beside others."""
        problems = []
        if self.schedule == "constant" and self.final_rate > 0:
            problems.append(f"final_rate={self.final_rate} with schedule=constant: expected 0")
        if self.learning_rate is not None and self.rate_batch is None and self.final_rate > self.learning_rate:
            problems.append(f"final_rate={self.final_rate}: expected at most learning_rate={self.learning_rate}")
        if self.schedule_steps == "epoch" and self.warmup_epochs > self.epochs - 1:
            problems.append(
                f"warmup_epochs={self.warmup_epochs} with schedule_steps=epoch: expected at most {self.epochs - 1}, or "
                f"none of {self.epochs} epochs has the peak learning rate"
            )
        if self.decays == "all" and self.delta_weight_decay > 0:
            problems.append(f"delta_weight_decay={self.delta_weight_decay} with decays=all: prompts have weight_decay")
        if self.decays == "all" and self.head_weight_decay is not None:
            problems.append(f"head_weight_decay={self.head_weight_decay} with decays=all: the head has weight_decay")
        return problems


_CHOICES = {
    "optimizer": Optimizer,
    "decays": Decays,
    "schedule": Schedule,
    "schedule_steps": ScheduleSteps,
    "class_weights": ClassWeights,
    "head": HeadInit,
    "precision": Precision,
    "device": Device,
    "test": Test,
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
