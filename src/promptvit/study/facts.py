"""What advice rests on: how a backbone was pretrained, what kind of task it is, and what its images are like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

Choice = Literal["prompts", "full", "lora", "linear", "abstain"]
Pretraining = Literal["supervised", "mae", "moco-v3", "other", "random"]
Disparity = Literal["low", "high", "unknown"]
"""Of the task: low where it is like image classification, high where it counts, measures or orients."""
Similarity = Literal["similar", "dissimilar", "unknown"]
"""Of the images to those of the pretraining."""
Kind = Literal["auto", "classes", "count", "distance", "position", "orientation", "size", "dense", "detection", "video"]
OUTSIDE: tuple[Kind, ...] = ("dense", "detection", "video")
"""Kinds of tasks that the evidence says nothing of."""
MEASURED: tuple[Kind, ...] = ("count", "distance", "position", "orientation", "size")

PRETRAINING: dict[str, Pretraining] = {
    "*mae*": "mae",
    "*moco*": "moco-v3",
    "*dino*": "other",
    "*clip*": "other",
    "*siglip*": "other",
    "*beit*": "other",
    "*eva*": "other",
    "aim*": "other",
    "samvit*": "other",
    "*ijepa*": "other",
    "*radio*": "other",
    "*tips*": "other",
    "*_pe_*": "other",
    "*intern*": "other",
    "*lingbot*": "other",
}
"""By patterns of the names of backbones and files, the first that fits; what fits none is supervised."""
WORDS = re.compile(
    r"\b(count|counts|how many|number of|distance|depth|near|far|metres?|meters?|position|location|angle|azimuth|"
    r"elevation|orientation|rotation|degrees?|deg|pose|size|radius|x|y)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class BackboneFacts:
    """A backbone, as far as the evidence tells backbones apart.

    - `family`: vit, eva, swin, convnext or resnet. `parameters`: its size; by default that of the evidence.
    """

    name: str
    family: str
    pretraining: Pretraining
    parameters: int = 86_000_000


def pretraining(name: str, *, checkpoint: str | None = None, has_weights: bool = True) -> Pretraining:
    """How a backbone was pretrained, by its name and that of the file with its weights; folders do not count."""
    if not has_weights:
        return "random"
    names = [Path(each).name.lower() for each in (name, checkpoint) if each]
    for pattern, kind in PRETRAINING.items():
        if any(fnmatchcase(each, pattern) for each in names):
            return kind
    return "supervised"


def disparity(kind: Kind, classes: Sequence[str]) -> tuple[Disparity, str]:
    """How far a task is from image classification, and what says so: its `kind`, or the names of its classes."""
    if kind in MEASURED:
        return "high", f"you said {kind}"
    if kind == "classes":
        return "low", "you said classes"
    measured = sum(bool(WORDS.search(name.replace("_", " ").replace("-", " "))) for name in classes)
    if measured > len(classes) / 2:
        return "high", f"classes such as {classes[0]!r} name quantities"
    if all(re.fullmatch(r"[\W\d]*\d[\W\d]*", name) for name in classes):
        return "unknown", f"classes such as {classes[0]!r} are numbers, of kinds or of quantities"
    return "low", f"classes such as {classes[0]!r} name kinds of things"
