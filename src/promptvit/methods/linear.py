"""Linear probe: nothing but the head is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from promptvit.methods.base import METHODS, Method, Preset


@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """Only the head is trained, on the frozen backbone's features."""

    kind: ClassVar[str] = "linear"
    learning_rate: ClassVar[float] = 1e-2

    @property
    def only_head(self) -> bool:
        """By definition."""
        return True


METHODS.register("linear", Preset(method=Linear, summary="the head alone, on frozen features"))
