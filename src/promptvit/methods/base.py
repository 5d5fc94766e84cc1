"""A method: a small config that says how a task is tuned and builds what is trained."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from promptvit.backbones.base import Backbone, BlockInput
from promptvit.errors import ConfigError
from promptvit.registry import Registry


class Delta(nn.Module, ABC):
    """Everything a method trains beside backbone weights and the head, as a module."""

    @abstractmethod
    def forward(self, batch: int) -> tuple[BlockInput, ...]:
        """What each block gets for a batch of `batch` images; empty: nothing at any block."""


class NoDelta(Delta):
    """No parameters, no prompts."""

    def forward(self, batch: int) -> tuple[BlockInput, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """How a task is tuned. A subclass adds fields, checks them in `__post_init__` and builds its delta."""

    kind: ClassVar[str]
    """The registered name of the class; delta files carry it."""
    learning_rate: ClassVar[float]
    """The peak of the default recipe, AdamW at batch 32 (docs/guides/recipe.md says how it was found)."""

    @abstractmethod
    def build(self, backbone: Backbone) -> Delta:
        """A freshly initialised delta for `backbone`, from torch's global random state."""

    def trained(self, backbone: Backbone) -> Collection[str]:
        """Names (in `backbone.body()`) of the backbone tensors that this method trains; most train none."""
        return ()

    @property
    def backbone_trains(self) -> bool:
        """Whether the backbone is in train mode (dropout, drop path) while training; a frozen one never is."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A registered name: a method class and the fields that the name fixes."""

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
        return self.method(**{**self.fields, **fields})


METHODS: Registry[Preset] = Registry("method", "All names: `promptvit methods`", group="promptvit.methods")
