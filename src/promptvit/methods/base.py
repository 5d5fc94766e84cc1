"""A method: a small config that says how a task is tuned and builds what is trained."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import nn

from promptvit.backbones.base import Backbone, BackboneInfo, BlockInput, Readout
from promptvit.errors import ConfigError
from promptvit.methods.heads import HeadInit, linear_head
from promptvit.methods.samples import Samples
from promptvit.registry import Registry
from promptvit.shapes import Features, Images


class Delta(nn.Module, ABC):
    """Everything a method trains beside backbone weights and the head, as a module."""

    @abstractmethod
    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """What each block of `backbone` gets for a batch of `batch` images; empty: nothing at any block."""

    def on_images(self, images: Images) -> Images:
        """What the backbone sees of `images`; most methods leave them as they are."""
        return images

    def on_features(self, features: Features, images: Images) -> Features:
        """What the head sees of `features` [B, D] of `images`; most methods leave them as they are."""
        return features


class NoDelta(Delta):
    """No parameters, no prompts."""

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """How a task is tuned. A subclass adds fields, checks them in `__post_init__`, and overrides what it changes."""

    kind: ClassVar[str]
    """The registered name of the class; delta files carry it."""
    learning_rate: ClassVar[float]
    """The peak of the default recipe, AdamW at batch 32 (docs/guides/recipe.md says how it was found)."""

    def refusal(self, info: BackboneInfo) -> str:
        """Why this cannot be done on a backbone of this kind; empty if it can."""
        return ""

    def trained(self, backbone: Backbone) -> Collection[str]:
        """Names (in `backbone.weights()`) of the backbone parameters that this method trains; most train none."""
        return ()

    def prepare(self, backbone: Backbone) -> Backbone:
        """The backbone to drive: `backbone` itself, or a copy whose trained parameters are its own.

        The copy shares every other parameter. What has `requires_grad` in it is trained and saved.
        """
        trained = self.trained(backbone)
        return backbone.own(trained) if trained else backbone

    def build(self, backbone: Backbone) -> Delta:
        """A freshly initialised delta for the prepared `backbone`, from torch's global random state."""
        return NoDelta()

    def head(self, width: int, classes: int, init: HeadInit) -> nn.Module:
        """Features [B, width] to logits [B, classes]."""
        return linear_head(width, classes, init)

    @property
    def only_head(self) -> bool:
        """Whether nothing but the head is trained, so that the features of an image never change."""
        return False

    @property
    def needs_samples(self) -> bool:
        """Whether `start` wants images of the task."""
        return False

    @property
    def augments_samples(self) -> bool:
        """Whether it wants them as training augments them."""
        return False

    def start(self, delta: Delta, backbone: Backbone, samples: Samples | None, classes: int) -> None:
        """Set initial values that come from the task's images or from files; a saved task is loaded without it."""
        return

    @property
    def readout(self) -> Readout:
        """Which rows become features."""
        return "own"

    @property
    def backbone_share(self) -> float:
        """The learning rate of backbone weights, in units of that of prompts and head."""
        return 1.0

    @property
    def backbone_trains(self) -> bool:
        """Whether the backbone is in train mode (dropout, drop path) while training; a frozen one never is."""
        return False

    def training_parts(self, backbone: Backbone) -> Iterable[nn.Module]:
        """Modules in the prepared `backbone` that are in train mode while training although the rest is not."""
        return ()

    inner: ClassVar[tuple[str, ...]] = ()
    """Fields that are methods themselves."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Method:
        """The inverse of `to_dict`."""
        return cls(**fields)


def unknown_choices(config: object) -> list[str]:
    """What is wrong with those fields of a dataclass that take one of a few names."""
    hints = get_type_hints(type(config))
    choices = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    return [
        f"{name}={getattr(config, name)!r}: expected {', '.join(known[:-1])} or {known[-1]}"
        for name, known in choices.items()
        if getattr(config, name) not in known
    ]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A registered name: a method class, whose fields all have a default, and the fields that the name fixes."""

    method: type[Method]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: str

    def build(self, **fields: Any) -> Method:
        """The method with `fields`; raises ConfigError for one it lacks or that the name fixes otherwise."""
        known = {field.name for field in dataclasses.fields(self.method)}
        problems = [
            f"{name}={value!r}: {self.method.__name__} has no such field"
            for name, value in fields.items()
            if name not in known
        ]
        problems += [
            f"{name}={fields[name]!r}: this name stands for {name}={value!r}"
            for name, value in self.fields.items()
            if fields.get(name, value) != value
        ]
        ConfigError.collect(problems, self.method.__name__)
        return self.method.from_dict({**self.fields, **fields})


METHODS: Registry[Preset] = Registry("method", "All names: `promptvit methods`", group="promptvit.methods")
