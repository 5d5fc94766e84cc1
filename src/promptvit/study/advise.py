"""Advice: prompts, full fine-tuning, LoRA-class or linear, with what it rests on; abstains where that is thin.

A pure function of `Situation`; what is known of a task and its images is gathered in `gather.py`. The score and its
limits are documented in docs/guides/advise.md.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from promptvit.errors import ConfigError
from promptvit.study.calibration import Record, offset
from promptvit.study.evidence import SUPERVISED_VIT, Cell, other_cells, scale_cells
from promptvit.study.facts import OUTSIDE, BackboneFacts, Choice, Disparity, Kind, Similarity
from promptvit.study.rules import LARGE_GAP, Score, sigmoid

Confidence = Literal["high", "medium", "low"]
METHODS: dict[Choice, str] = {"prompts": "vpt-deep", "full": "full", "lora": "lora", "linear": "linear"}
"""The registered method that stands for each choice."""
LEAST, MOST = 0.10, 0.90
"""No probability outside: 19 tasks on one backbone do not say more."""
UNSURE = (0.40, 0.60)
BUDGET_PROMPTS = 0.25
"""With a budget that full fine-tuning breaks, prompts are the answer from this probability on."""
FEW_IMAGES = 1000
"""Up to here LoRA-class methods were measured beside prompts (V-PETL-Bench and others, at 1,000 images)."""
SMALLEST = 20_000_000
"""Parameters of a backbone from which on it is of the evidence's kind: a ViT-S has 22 million."""
MEASURED_IMAGES = (400, 10_000)
SATURATED = 0.98
"""A linear probe that is right this often, by the lower end of its interval, leaves nothing to win."""
ROWS = 8
OWN_WINS = 5
"""So many of one's own studies, or more, may speak for LoRA-class or linear, and alone where nothing is published."""
NATURAL_LIKE, OTHERWISE = 12 / 21, 2 / 36
"""Wins of prompts on Swin, MAE and MoCo-v3: on natural tasks, and on all others."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Accuracy of a linear probe of the frozen features by cross-validation, with a 95 % interval."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a task may cost; None is no limit. Raises ConfigError for less than 1.

    - `parameters`: trained ones, head included. `bytes`: of the saved task.
    """

    parameters: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        limits = {"parameters": self.parameters, "bytes": self.bytes}
        problems = [
            f"{name}={limit}: expected at least 1" for name, limit in limits.items() if limit is not None and limit < 1
        ]
        ConfigError.collect(problems, "Budget")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Trained parameters and bytes of one way to tune the task."""

    parameters: int
    bytes: int

    def fits(self, budget: Budget) -> bool:
        """Whether the budget allows it."""
        limits = ((self.parameters, budget.parameters), (self.bytes, budget.bytes))
        return all(limit is None or size <= limit for size, limit in limits)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is known before anything is trained.

    - `options`: of the command line, that name data and backbone. `fingerprint`: of the backbone; empty if it is not
      loaded.
    - `images`: training images; `distinct`: how many of those looked at differ, as a share.
    - `disparity`, `similarity`: of the task and of its images, with the reasons that say so.
    - `sizes`: of each way to tune it. `probe`: None if the images were not looked at.
    """

    task: str
    images: int
    classes: int
    backbone: BackboneFacts
    fingerprint: str = ""
    options: tuple[str, ...] = ()
    kind: Kind = "auto"
    disparity: Disparity
    disparity_reason: str = ""
    similarity: Similarity
    similarity_reason: str = ""
    distinct: float = 1.0
    probe: Probe | None = None
    sizes: Mapping[Choice, Size] = dataclasses.field(default_factory=dict)

    @property
    def per_class(self) -> float:
        """Training images a class."""
        return self.images / self.classes


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do, and why.

    - `choice`; `method`: its registered name, or empty. `probability`: that prompts beat full fine-tuning, in
      [0.1, 0.9]; None where there is no evidence.
    - `also`: other methods worth a run. `evidence`: the rows that stand nearest; `expected_gap`: their mean of prompts
      minus full, in points.
    - `violated`: assumptions of the evidence that do not hold here. `needs`: what would make it surer.
    - `bake_off`: the command that decides it.
    """

    choice: Choice
    method: str
    probability: float | None
    confidence: Confidence
    reasons: tuple[str, ...]
    also: tuple[str, ...] = ()
    evidence: tuple[Cell | Record, ...] = ()
    expected_gap: float | None = None
    violated: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    bake_off: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def advise_on(
    situation: Situation,
    budget: Budget | None = None,
    own: Sequence[Record] = (),
    score: Score | None = None,
) -> Advice:
    """The advice for `situation`, within `budget`.

    - `own`: records of the user's studies; those on this backbone move the probability.
    - `score`: another fit of the published evidence (for leaving tasks out).
    """
    mine = [record for record in own if record.fingerprint and record.fingerprint == situation.fingerprint]
    reason = outside(situation, len(mine))
    if reason:
        return Advice(
            choice="abstain",
            method="",
            probability=None,
            confidence="low",
            reasons=(f"outside the evidence: {reason}",),
            needs=("runs of both",),
            bake_off=bake_off(situation),
        )
    logit = published_logit(situation, score or Score())
    moved = offset(mine)
    probability = min(max(sigmoid(logit + moved), LEAST), MOST)
    reasons = [*_reasons(situation), *([_own_reason(mine, moved)] if mine else [])]
    rows = nearest_rows(situation, mine)
    common = {
        "probability": probability,
        "confidence": confidence(situation, probability),
        "evidence": rows,
        "expected_gap": float(np.mean([row.gap for row in rows])) if rows else None,
        "violated": violated(situation),
        "needs": needs(situation),
        "bake_off": bake_off(situation),
    }
    choice, why = _choose(situation, budget or Budget(), probability, mine)
    also = tuple(METHODS[each] for each in _also(situation, choice, budget or Budget(), probability))
    return Advice(choice=choice, method=METHODS.get(choice, ""), reasons=(*reasons, why), also=also, **common)


def outside(situation: Situation, own: int = 0) -> str:
    """Why no evidence speaks of this at all, not even `own` studies on the backbone; empty if some does."""
    backbone = situation.backbone
    if situation.kind in OUTSIDE:
        return f"{situation.kind} tasks were not measured"
    if backbone.family not in ("vit", "eva", "swin"):
        return f"no study compares prompts and full fine-tuning on a {backbone.family} under one recipe"
    if backbone.pretraining == "other" and own < OWN_WINS:
        return (
            f"how {backbone.name} was pretrained is none of supervised, MAE and MoCo-v3, and of {OWN_WINS} studies of "
            f"your own on it there are {own}"
        )
    if backbone.pretraining == "random":
        return f"{backbone.name} has random weights"
    if situation.classes < 2 or situation.images < situation.classes:
        return f"{situation.images} training images of {situation.classes} classes"
    if situation.distinct < 0.5:
        return f"only {situation.distinct:.0%} of the images differ from each other"
    return ""


def published_logit(situation: Situation, score: Score) -> float:
    """Of the probability that prompts win by the published evidence; what is unknown is the mean of both cases."""
    cases = [
        (disparity, similarity)
        for disparity in _cases(situation.disparity, ("low", "high"))
        for similarity in _cases(situation.similarity, ("similar", "dissimilar"))
    ]
    probabilities = [_published(situation, score, *case) for case in cases]
    mean = min(max(float(np.mean(probabilities)), 1e-6), 1 - 1e-6)
    return math.log(mean / (1 - mean))


def _cases(known: str, both: tuple[str, str]) -> tuple[str, ...]:
    return both if known == "unknown" else (known,)


def _published(situation: Situation, score: Score, disparity: str, similarity: str) -> float:
    if situation.backbone.pretraining == "other":
        return 0.5  # nothing is published: one's own studies decide
    natural = disparity == "low" and similarity == "similar"
    if situation.backbone.family == "swin" or situation.backbone.pretraining != "supervised":
        return NATURAL_LIKE if natural else OTHERWISE
    if situation.per_class <= 2 and disparity == "high":
        return 0.5
    return score.probability(situation.per_class, disparity == "low" and similarity == "dissimilar")


def confidence(situation: Situation, probability: float) -> Confidence:
    """High without doubt, medium with one: an unknown input, a backbone that is no supervised plain transformer, a
    number of images that was not measured, a probability that is not clear. A backbone far smaller than any that was
    measured is two."""
    data_matters = situation.disparity != "high"
    doubts = [
        situation.disparity == "unknown",
        data_matters and situation.similarity == "unknown",
        situation.backbone.family != "vit" or situation.backbone.pretraining != "supervised",
        not MEASURED_IMAGES[0] <= situation.images <= MEASURED_IMAGES[1],
        0.2 <= probability <= 0.8,
        *[situation.backbone.parameters < SMALLEST] * 2,
    ]
    levels: tuple[Confidence, ...] = ("high", "medium", "low")
    return levels[min(sum(doubts), 2)]


def violated(situation: Situation) -> tuple[str, ...]:
    """Assumptions of the evidence that do not hold here."""
    found = []
    if situation.backbone.parameters < SMALLEST:
        found.append(
            f"measured on backbones of 86 million parameters; this one has {situation.backbone.parameters / 1e6:.1f}, "
            "and on such the advice was right no more often than chance (docs/results/advise.md)"
        )
    elif situation.backbone.pretraining == "other":
        found.append("nothing measured on a backbone that was pretrained so: this rests on your own studies alone")
    elif situation.backbone.name.partition(".")[0] != "vit_base_patch16_224":
        found.append("measured on a ViT-B/16, not on this backbone")
    least, most = MEASURED_IMAGES
    if not least <= situation.images <= most:
        found.append(f"measured with {least} to {most:,} images, not with {situation.images}")
    if not 2 <= situation.classes <= 397:
        found.append(f"measured with 2 to 397 classes, not with {situation.classes}")
    if situation.distinct < 0.95:
        found.append(f"{1 - situation.distinct:.0%} of the images repeat others")
    return tuple(found)


def needs(situation: Situation) -> tuple[str, ...]:
    """What is unknown and would change the advice or its confidence."""
    found = []
    if situation.disparity == "unknown":
        found.append("--kind classes, count, distance, position, orientation or size: what the labels mean")
    if situation.similarity == "unknown" and situation.disparity != "high":
        found.append(
            "whether the images are near the pretraining images: statistics of these (--reference), and a threshold "
            "of the shift for this backbone at this number of images"
        )
    return tuple(found)


def bake_off(situation: Situation) -> str:
    """The command that decides it."""
    kind = [] if situation.kind == "auto" else ["--kind", situation.kind]
    return shlex.join(["promptvit", "advise", *situation.options, *kind, "--verify"])


def nearest_rows(situation: Situation, own: Sequence[Record] = ()) -> tuple[Cell | Record, ...]:
    """The rows of evidence nearest in images a class: one's own first, then published ones of the same kind."""
    groups = {
        ("low", "similar"): ("natural",),
        ("low", "dissimilar"): ("specialized",),
        ("low", "unknown"): ("natural", "specialized"),
        ("high", situation.similarity): ("structured",),
    }.get((situation.disparity, situation.similarity), ("natural", "specialized", "structured"))
    name = _evidence_backbone(situation.backbone)
    cells = [cell for cell in (*scale_cells(), *other_cells()) if cell.backbone == name and cell.group in groups]

    def distance(row: Cell | Record) -> float:
        return abs(math.log(row.images / row.classes / situation.per_class))

    published = sorted(cells, key=distance)
    mine = sorted(own, key=distance)[: ROWS // 2]
    return (*mine, *published[: ROWS - len(mine)])


def _evidence_backbone(backbone: BackboneFacts) -> str:
    if backbone.family == "swin":
        return "swin-supervised"
    return {"mae": "vit-mae", "moco-v3": "vit-moco-v3", "other": ""}.get(backbone.pretraining, SUPERVISED_VIT)


def _choose(situation: Situation, budget: Budget, probability: float, own: Sequence[Record]) -> tuple[Choice, str]:
    """The choice and the reason for it."""
    fits: dict[Choice, bool] = {way: size.fits(budget) for way, size in situation.sizes.items()}
    if situation.probe is not None and situation.probe.low >= SATURATED and fits.get("linear", True):
        accuracy = f"{100 * situation.probe.accuracy:.1f} %"
        return "linear", f"a linear probe is right on {accuracy} of the images already: nothing is left to win"
    if not fits.get("full", True):
        return _within(fits, probability)
    favourite = _favourite(own)
    if favourite is not None and fits.get(favourite, True):
        return favourite, f"{favourite} won most of your {len(own)} studies on this backbone, by a point or more"
    if UNSURE[0] <= probability <= UNSURE[1]:
        return "abstain", f"{probability:.2f} is too near a half: run both"
    if probability > UNSURE[1]:
        if not fits.get("prompts", True):
            return _within(fits, probability)
        return "prompts", f"prompts win with a probability of {probability:.2f}"
    return "full", f"full fine-tuning wins with a probability of {1 - probability:.2f}"


def _within(fits: Mapping[Choice, bool], probability: float) -> tuple[Choice, str]:
    """The choice where full fine-tuning, or prompts, break the budget."""
    order: tuple[Choice, ...] = (
        ("prompts", "lora", "linear") if probability > BUDGET_PROMPTS else ("lora", "prompts", "linear")
    )
    for way in order:
        if fits.get(way, True):
            cost = "" if probability > UNSURE[1] else ", at some cost of accuracy: see the rows"
            return way, f"the budget leaves {way}{cost}"
    return "abstain", "nothing fits the budget, not even a head"


def _favourite(own: Sequence[Record]) -> Choice | None:
    """LoRA-class or linear, if it beats prompts and full fine-tuning by a point in two thirds of one's own studies."""
    for way in ("lora", "linear"):
        leads = [
            record.accuracies[way] - max(record.accuracies["prompts"], record.accuracies["full"])
            for record in own
            if way in record.accuracies
        ]
        if len(leads) >= OWN_WINS and sum(lead >= LARGE_GAP for lead in leads) >= 2 / 3 * len(leads):
            return way
    return None


def _also(situation: Situation, choice: Choice, budget: Budget, probability: float) -> list[Choice]:
    """What else is worth a run."""
    ways: list[Choice] = []
    if choice == "abstain" and situation.sizes:
        ways = ["prompts", "full"]
    if situation.images <= FEW_IMAGES and choice != "linear":
        ways.append("lora")
    if situation.backbone.pretraining != "supervised" and choice == "full":
        ways.append("prompts")  # newer kinds of prompts close much of this gap
    sizes = situation.sizes
    return [way for way in dict.fromkeys(ways) if way != choice and (way not in sizes or sizes[way].fits(budget))]


def _reasons(situation: Situation) -> list[str]:
    backbone = situation.backbone
    pretrained = f"{backbone.name}: {backbone.family}, {backbone.pretraining}"
    kind = {"low": "like image classification", "high": "to count, measure or orient", "unknown": "of unknown kind"}
    images = {"similar": "near the pretraining images", "dissimilar": "far from the pretraining images"}
    return [
        pretrained,
        f"{situation.images} training images of {situation.classes} classes, {situation.per_class:.3g} a class",
        f"the task is {kind[situation.disparity]} ({situation.disparity_reason})",
        f"its images are {images.get(situation.similarity, 'at an unknown distance')} ({situation.similarity_reason})",
    ]


def _own_reason(own: Sequence[Record], moved: float) -> str:
    wins = sum(record.gap > 0 for record in own)
    return f"prompts won {wins} of your {len(own)} studies on this backbone (moves the logit by {moved:+.2f})"


def situation_of(cell: Cell) -> Situation:
    """A published cell as something to be advised on: groups stand for what is known of task and images."""
    structured = cell.group == "structured"
    return Situation(
        task=cell.task,
        images=cell.images,
        classes=cell.classes,
        backbone=BackboneFacts(name="vit_base_patch16_224", family="vit", pretraining="supervised"),
        disparity="high" if structured else "low",
        similarity="unknown" if structured else "similar" if cell.group == "natural" else "dissimilar",
    )


def without(cells: Sequence[Cell]) -> Callable[[Cell], bool]:
    """What the advisor would say of a cell, abstention aside, if its score were fitted on `cells` alone."""
    score = Score.fit(cells)

    def answer(cell: Cell) -> bool:
        probability = advise_on(situation_of(cell), score=score).probability
        assert probability is not None
        return probability > 0.5

    return answer
