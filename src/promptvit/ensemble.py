"""An ensemble: several tuned models of one task on one backbone, whose probabilities are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from promptvit.backbones.base import Backbone
from promptvit.checkpoint import load, load_named_backbone
from promptvit.errors import ConfigError
from promptvit.model import Classifier, TunedModel
from promptvit.shapes import Images, Logits


class Average(nn.Module):
    """Images [B, channels, height, width] to the logarithm [B, C] of the mean of `members`' probabilities."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Images) -> Logits:
        """One forward per member: prompts of several members in one forward hurt (KMnP/vpt issue 7)."""
        logarithms = torch.stack([member(images).log_softmax(dim=-1) for member in self.members])  # [members, B, C]
        return logarithms.logsumexp(dim=0) - math.log(len(self.members))


class Ensemble(Average, Classifier):
    """Two or more tuned models of one task as one, in eval mode (VPT, section 4.3, "Prompt ensembling").

    They stand on the same pretrained weights, and share them if they were tuned on one backbone object; `load_ensemble`
    sees to that. Raises ConfigError for members of another backbone, other classes or another preprocessing.
    """

    def __init__(self, models: Sequence[TunedModel]) -> None:
        if len(models) < 2:
            raise ConfigError(f"{len(models)} models", expected="at least two", where="Ensemble")
        super().__init__(models)
        first = models[0]
        for number, model in enumerate(models[1:], start=2):
            problems = {
                f"model {number} has another backbone": model.backbone.fingerprint != first.backbone.fingerprint,
                f"model {number} has other classes": model.classes != first.classes,
                f"model {number} has another preprocessing": model.preprocessing != first.preprocessing,
            }
            ConfigError.collect([problem for problem, holds in problems.items() if holds], "Ensemble")
        self.classes, self.preprocessing = first.classes, first.preprocessing
        self.eval()

    def fold(self) -> Average:
        """The same function for inference, with each member's prompts as keys and values."""
        return Average([cast(TunedModel, member).fold() for member in self.eval().members])

    @property
    def device(self) -> torch.device:
        """Where the first member is."""
        return cast(TunedModel, self.members[0]).device


def load_ensemble(folders: Sequence[str | Path], *, backbone: Backbone | None = None) -> Ensemble:
    """The ensemble of the deltas in `folders`, on one `backbone` or the one that the first delta names.

    Raises DeltaError as `load` does, and ConfigError as `Ensemble` does.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} folders", expected="at least two", where="load_ensemble")
    trunk = backbone or load_named_backbone(folders[0])
    return Ensemble([load(folder, backbone=trunk) for folder in folders])
