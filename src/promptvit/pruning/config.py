"""How a run is pruned, as plain values. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from promptvit.errors import ConfigError

Importance = Literal["absolute", "squared", "taylor", "compat_signed"]
Gate = Literal["attention", "values"]
Scope = Literal["all", "block", "first"]  # as in methods/masks.py, whose import needs torch
Layout = Literal["contiguous", "interleaved"]
Search = Literal["cheap", "grid"]
Rewind = Literal["start", "early", "keep", "fresh"]

PERCENTS: dict[Search, tuple[float, ...]] = {"cheap": (20, 40, 60, 80), "grid": tuple(range(10, 100, 10))}
"""Of prompts and of segments; those of `grid` are the official ones."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How prompts are scored, which numbers of them are tried, and how the rest is trained again.

    - `search`: `cheap` measures every candidate on the validation images as it is, and trains again at most `budget` of
      different sizes; `grid` trains every candidate again, as the paper's code does.
    - `budget`: with `cheap`, the largest number of trainings.
    - `score`: of a prompt or segment, from gradients of the loss by a mask on it: the mean over images of the
      `absolute` value or of the `squared` one; `taylor` is the mean rise of the loss that its removal promises, to
      first order; `compat_signed` is the official code's mean over batches of the signed gradient, which removes the
      useful first.
    - `gate`: what the mask of a prompt multiplies: its `attention` weights, so that zero is the same as no prompt, or
      its `values`, as in the paper. Values hardly matter where a norm follows: it undoes their scale.
    - `scope`: the same prompts go at `all` blocks, as in the paper; each `block` has its own (as many); or those of the
      `first` block alone. Where all blocks share their prompts, `block` is `all`.
    - `layout`: segments of `contiguous` channels, or `interleaved` as in the official code.
    - `parts`: segments of a prompt, S.
    - `cascade`: segments are scored anew among the prompts that are kept, in one pass for each number of pruned
      prompts; without it one pass gives all scores.
    - `tokens`: numbers of pruned prompts to try, such as 2,5; null: from `percents`.
    - `segments`: numbers of pruned segments of every kept prompt to try; null: from `percents`.
    - `percents`: of prompts and of segments to prune; null is 20, 40, 60, 80 with `cheap`, and 10, 20 to 90 with
      `grid`. To prune nothing is always tried.
    - `keep_tokens`: prompts that are always kept.
    - `keep_segments`: segments of a prompt that are always kept.
    - `rewind`: where training starts again: the `start` values of the run, the `early` ones that it kept
      (`train.keep_epoch`), its trained ones (`keep`), or `fresh` random ones, as in the official code.
    - `epochs`: of each training; null: as many as the run had.
    - `tolerance`: validation accuracy, in points, that may be given up for a smaller result.
    - `compat_zero`: pruned prompts stay as rows of zeros, as in the official code.
    """

    search: Search = "cheap"
    budget: int = 3
    score: Importance = "absolute"
    gate: Gate = "attention"
    scope: Scope = "block"
    layout: Layout = "contiguous"
    parts: int = 16
    cascade: bool = False
    tokens: Sequence[int] | None = None
    segments: Sequence[int] | None = None
    percents: Sequence[float] | None = None
    keep_tokens: int = 1
    keep_segments: int = 4
    rewind: Rewind = "start"
    epochs: int | None = None
    tolerance: float = 0.0
    compat_zero: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r}: expected {', '.join(get_args(kind))}"
            for name, kind in _CHOICES.items()
            if getattr(self, name) not in get_args(kind)
        ]
        problems += [
            f"{name}={getattr(self, name)}: expected at least 1"
            for name in ("budget", "parts", "keep_tokens", "keep_segments", "epochs")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if self.keep_segments > self.parts:
            problems.append(f"keep_segments={self.keep_segments}: a prompt has {self.parts}")
        wrong = [percent for percent in self.percents or () if not 0 <= percent <= 100]
        problems += [f"percents: {percent}: expected 0 to 100" for percent in wrong]
        for name in ("tokens", "segments"):
            problems += [f"{name}: {count}: expected 0 or more" for count in getattr(self, name) or () if count < 0]
        if not 0 <= self.tolerance <= 100:
            problems.append(f"tolerance={self.tolerance}: expected points, 0 to 100")
        if self.percents is not None and self.tokens is not None and self.segments is not None:
            problems.append("percents with tokens and segments: both numbers are given already")
        ConfigError.collect(problems, "PruneConfig")

    def token_counts(self, length: int) -> list[int]:
        """The numbers of pruned prompts to try, of `length`; 0 is the first."""
        return self._counts(self.tokens, length, self.keep_tokens, "prompts")

    def segment_counts(self) -> list[int]:
        """The numbers of pruned segments to try; 0 is the first."""
        return self._counts(self.segments, self.parts, self.keep_segments, "segments")

    def _counts(self, explicit: Sequence[int] | None, total: int, keep: int, what: str) -> list[int]:
        most = max(0, total - keep)
        if explicit is None:
            percents = PERCENTS[self.search] if self.percents is None else self.percents
            return sorted({0, *(min(int(total * percent // 100), most) for percent in percents)})
        too_many = [f"{what}: {count} of {total} pruned: {keep} are always kept" for count in explicit if count > most]
        ConfigError.collect(too_many, "PruneConfig")
        return sorted({0, *explicit})


_CHOICES = {"search": Search, "score": Importance, "gate": Gate, "scope": Scope, "layout": Layout, "rewind": Rewind}
