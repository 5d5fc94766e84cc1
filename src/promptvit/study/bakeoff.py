"""The bake-off behind an advice: the four ways on the task under one protocol, and whether the advice was right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.errors import DataError
from promptvit.search.plan import StudyPlan
from promptvit.search.protocol import Settings
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.results import Cell, Results
from promptvit.search.row import Row
from promptvit.study.advise import METHODS, Advice, Situation, published_logit
from promptvit.study.calibration import Record
from promptvit.study.facts import Choice
from promptvit.study.rules import LARGE_GAP, Score
from promptvit.train.config import Device

PARTS = ("images", "shots", "seed", "geometry", "validation_fraction", "train_share", "broken", "cache_gib")
"""Fields of the data that a bake-off has from the advice."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a bake-off has shown.

    - `accuracies`: mean over seeds, in percent, by choice; on test images, or on validation images without.
    - `best`: the best of them. `regret`: how far the advised one is behind it; None where the advice abstained,
      or is none of them.
    - `right`: whether the regret is below a point. `side_right`: whether a probability above a half went with prompts
      being no worse than full fine-tuning; None without a probability, or without one of them.
    """

    accuracies: Mapping[Choice, float]
    split: str
    seeds: tuple[int, ...]
    best: Choice
    regret: float | None
    right: bool | None
    side_right: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def bake_off_plan(
    name: str,
    data: DataConfig,
    backbone: BackboneSource,
    *,
    protocol: str = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    settings: Settings | None = None,
    ways: Sequence[Choice] = tuple(METHODS),
    device: Device = "auto",
) -> StudyPlan:
    """The `ways` on one task: a search for each on validation images, and final runs with `seeds`."""
    default = DataConfig()
    given: Settings = {
        f"data.{part}": getattr(data, part) for part in PARTS if getattr(data, part) != getattr(default, part)
    }
    return StudyPlan(
        name=name,
        data=(data.source,),
        rows=tuple(Row(label=way, fields={"name": METHODS[way]}) for way in ways),
        protocol=PROTOCOLS[protocol].change(settings={**given, **(settings or {})}, seeds=tuple(seeds)),
        backbones=(backbone,),
        device=device,
    )


def truth(advice: Advice, results: Results) -> Truth:
    """What the finished bake-off says of `advice`; raises DataError if a way has no final run."""
    tested = is_tested(results.cells)
    means: dict[Choice, float] = {}
    for cell in results.cells:
        if not cell.finals:
            reason = (
                cell.failures[0] if cell.failures else next((p.reason for p in cell.points if p.reason), "not done")
            )
            raise DataError(f"no final run of {cell.method}: {reason}", where="verify")
        means[_choice(cell)] = accuracy(cell, tested)
    best = max(means, key=lambda way: means[way])
    regret = means[best] - means[advice.choice] if advice.choice in means else None
    side = None
    if advice.probability is not None and {"prompts", "full"} <= means.keys():
        side = (advice.probability > 0.5) == (means["prompts"] >= means["full"])
    return Truth(
        accuracies=means,
        split="test" if tested else "val",
        seeds=tuple(final.seed for final in results.cells[0].finals),
        best=best,
        regret=regret,
        right=None if regret is None else regret < LARGE_GAP,
        side_right=side,
    )


def is_tested(cells: Iterable[Cell]) -> bool:
    """Whether all final runs have test figures."""
    return all(final.test_top1 is not None for cell in cells for final in cell.finals)


def _choice(cell: Cell) -> Choice:
    return next(way for way in METHODS if way == cell.method)


def accuracy(cell: Cell, tested: bool) -> float:
    """The mean over the final runs, in percent, on test images or else on validation images."""
    shares = [final.test_top1 if tested else final.val_top1 for final in cell.finals]
    return 100 * fmean(share for share in shares if share is not None)


def record_of(
    situation: Situation, accuracies: Mapping[Choice, float], seeds: tuple[int, ...], results: Results
) -> Record:
    """What `results` have shown of prompts, full fine-tuning and perhaps others, as a line of a calibration file."""
    return Record(
        task=situation.task,
        backbone=situation.backbone.name,
        fingerprint=situation.fingerprint,
        images=situation.images,
        classes=situation.classes,
        disparity=situation.disparity,
        similarity=situation.similarity,
        logit=published_logit(situation, Score()),
        accuracies=accuracies,
        seeds=seeds,
        protocol=results.protocol["name"],
        study=results.name,
        origin=results.origins[0] if results.origins else {},
    )
