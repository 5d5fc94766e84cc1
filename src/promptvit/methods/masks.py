"""Masks: which visual prompts, and which segments of them, are pruned (E2VPT, arXiv 2307.13770)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from promptvit.errors import ConfigError
from promptvit.methods.base import unknown_choices

Layout = Literal["contiguous", "interleaved"]
Scope = Literal["all", "block", "first"]


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The pruned prompts and segments, as plain lists of indices.

    A prompt of width D has S segments. Raises ConfigError, with all problems at once, for indices that are not there
    or stand twice, and for a set without any prompt.

    - `length`: prompts per block before pruning, P.
    - `scope`: one set for `all` blocks, a set for each `block`, or one for the `first` block while all others keep
      everything (`first` is what the official code does on Swin).
    - `tokens`: for each set, the pruned prompts.
    - `segments`: for each set and each of its P prompts, the pruned segments.
    - `parts`: segments of a prompt, S; the paper has 16.
    - `layout`: of segments: `contiguous` has channel c in segment c * S // D, `interleaved` in c mod S (the official
      code).
    - `compat_zero`: pruned prompts stay, as rows of zeros, as in the official code; without it they are gone. A row of
      zeros is not an absent one: the norm turns it into its bias, and it draws attention.
    """

    length: int
    scope: Scope = "all"
    tokens: Sequence[Sequence[int]] = ((),)
    segments: Sequence[Sequence[Sequence[int]]] = ()
    parts: int = 16
    layout: Layout = "contiguous"
    compat_zero: bool = False

    def __post_init__(self) -> None:
        try:
            tokens = tuple(tuple(int(index) for index in each) for each in self.tokens)
            segments = tuple(
                tuple(tuple(int(index) for index in each) for each in prompts) for prompts in self.segments
            )
        except (TypeError, ValueError):
            raise ConfigError(
                f"tokens={self.tokens!r}, segments={self.segments!r}",
                expected="lists of lists of numbers, and one more list around those of segments",
                where="Masks",
            ) from None
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "segments", segments or ((),) * len(tokens))
        ConfigError.collect(list(self._problems()), "Masks")

    def _problems(self) -> Sequence[str]:
        problems = unknown_choices(self)
        if self.length < 1 or self.parts < 1:
            problems.append(f"length={self.length}, parts={self.parts}: expected at least 1")
        if not self.tokens or len(self.segments) != len(self.tokens):
            problems.append(
                f"{len(self.tokens)} sets of tokens, {len(self.segments)} of segments: expected as many, not none"
            )
        if self.scope != "block" and len(self.tokens) > 1:
            problems.append(f"{len(self.tokens)} sets with scope={self.scope}: expected one")
        for tokens in self.tokens:
            problems += _wrong("prompts", tokens, self.length)
            if len(set(tokens)) >= self.length:
                problems.append(f"all {self.length} prompts pruned: expected one to be kept")
        for prompts in self.segments:
            if len(prompts) not in (0, self.length):
                problems.append(f"segments of {len(prompts)} prompts: expected none, or those of each of {self.length}")
            for pruned in prompts:
                problems += _wrong("segments", pruned, self.parts)
                if len(set(pruned)) >= self.parts:
                    problems.append(f"all {self.parts} segments of a prompt pruned: prune the prompt")
        return list(dict.fromkeys(problems))

    @property
    def prunes_segments(self) -> bool:
        """Whether any segment of a prompt goes."""
        return any(pruned for prompts in self.segments for pruned in prompts)

    def kept_tokens(self, blocks: int) -> Bool[np.ndarray, "L P"]:
        """Which prompts of each of `blocks` blocks are kept."""
        kept = np.ones((blocks, self.length), dtype=bool)
        for block, number in self._sets(blocks):
            kept[block, list(self.tokens[number])] = False
        return kept

    def kept_segments(self, blocks: int) -> Bool[np.ndarray, "L P S"]:
        """Which segments are kept; none of a pruned prompt."""
        kept = np.repeat(self.kept_tokens(blocks)[:, :, None], self.parts, axis=2)
        for block, number in self._sets(blocks):
            for prompt, pruned in enumerate(self.segments[number]):
                kept[block, prompt, list(pruned)] = False
        return kept

    def _sets(self, blocks: int) -> list[tuple[int, int]]:
        """The blocks that are pruned, each with the number of its set."""
        if self.scope == "block" and len(self.tokens) != blocks:
            raise ConfigError(
                f"{len(self.tokens)} sets of masks for prompts at {blocks} blocks",
                expected="one per block",
                where="Masks",
                fix="These masks belong to another run",
            )
        if self.scope == "block":
            return [(block, block) for block in range(blocks)]
        return [(block, 0) for block in range(blocks if self.scope == "all" else 1)]


def segment_of(width: int, parts: int, layout: Layout) -> Int64[np.ndarray, " D"]:
    """The segment of each of `width` channels; raises ConfigError unless all `parts` segments are of one size."""
    if width % parts:
        raise ConfigError(
            f"{parts} segments of prompts of width {width}", expected="a divisor of the width", where="Masks"
        )
    channels = np.arange(width)
    return channels * parts // width if layout == "contiguous" else channels % parts


def _wrong(what: str, indices: Sequence[int], count: int) -> list[str]:
    if len(set(indices)) < len(indices):
        return [f"{what} {list(indices)}: one stands twice"]
    if any(not 0 <= index < count for index in indices):
        return [f"{what} {list(indices)}: expected numbers from 0 to {count - 1}"]
    return []
