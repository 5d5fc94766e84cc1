"""Partial fine-tuning: the last blocks or stages of the backbone are trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from promptvit.backbones.base import Backbone
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Method, Preset, unknown_choices


@dataclass(frozen=True, kw_only=True)
class Partial(Method):
    """The last blocks and the final norm of a copy of the backbone are trained (Partial-k of VPT, section 4.1).

    - `count`: how many of the last units are trained.
    - `unit`: a `block`, with the patch merging behind it, or a `stage`; a plain transformer is one stage.
    """

    count: int = 1
    unit: Literal["block", "stage"] = "block"

    kind: ClassVar[str] = "partial"
    learning_rate: ClassVar[float] = 5e-4

    def __post_init__(self) -> None:
        problems = unknown_choices(self)
        if self.count < 1:
            problems.append(f"count={self.count}: expected at least 1; the method `linear` trains no block")
        ConfigError.collect(problems, "Partial")

    def trained(self, backbone: Backbone) -> Collection[str]:
        """The last units and the final norm; raises ConfigError if there are fewer units."""
        units = backbone.units() if self.unit == "block" else backbone.stages()
        if self.count > len(units):
            raise ConfigError(
                f"count={self.count}",
                expected=f"at most {len(units)}: the {backbone.info.family} backbone has no more {self.unit}s",
                where="Partial",
                fix="The method `full` trains everything",
            )
        last = [name for unit in units[-self.count :] for name in unit]
        return backbone.under(*last, *backbone.last())


METHODS.register("partial", Preset(method=Partial, summary="the last blocks or stages of the backbone"))
for _count in (1, 2, 4):
    METHODS.register(
        f"partial-{_count}",
        Preset(
            method=Partial,
            fields={"count": _count, "unit": "block"},
            summary="the last block" if _count == 1 else f"the last {_count} blocks",
        ),
    )
