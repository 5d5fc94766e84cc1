"""Whether a model's answer depends on what a map marks: deletion and insertion, against random maps.

Petsiuk et al. (RISE, BMVC 2018). Values are taken away (deletion) or added (insertion) from the highest on; pixels that
are away have the mean colour of the backbone's normalisation. A faithful map makes the probability of the class fall
early, and rise early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from promptvit.analysis.images import BATCH_SIZE
from promptvit.errors import ConfigError, DataError
from promptvit.model import Classifier
from promptvit.shapes import Images, Labels

Scores = Float[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Areas under the curves of the probability of each image's class, in [0, 1]: `deletion` [n], the lower the better,
    and `insertion` [n], the higher the better."""

    deletion: Scores
    insertion: Scores


@dataclass(frozen=True, kw_only=True)
class AgainstRandom:
    """Mean areas of maps and of random maps of the same images and the same grid, and the probability `p` of such a
    difference, or a larger one, if maps were random: Wilcoxon's signed-rank test over the images, one-sided."""

    maps: float
    random: float
    p: float


@torch.no_grad()
def deletion_insertion(
    model: Classifier,
    images: Images,
    maps: Float[Tensor, "B h w"],
    targets: Labels | None = None,
    steps: int = 16,
) -> Faithfulness:
    """The scores of `maps` of any size, brought to the pixels (bilinear), for `targets` (the predicted classes).

    `steps`: equal shares of the pixels that are taken away or added one after the other. Pixels of equal value go from
    top to bottom. Images are normalised and where the model is, and so are maps; the mode of `model` is restored.

    Raises ConfigError for no steps or another number of maps, and DataError for a map that is not finite.
    """
    if steps < 1 or len(maps) != len(images):
        raise ConfigError(
            f"steps={steps}, {len(maps)} maps of {len(images)} images",
            expected="at least 1 step, and a map for each image",
            where="deletion_insertion",
        )
    if not maps.isfinite().all():
        raise DataError("a map that is not finite", expected="numbers", where="deletion_insertion")
    was_training = model.training
    folded = model.fold()
    try:
        labels = folded(images).argmax(dim=1) if targets is None else targets
        pixels = F.interpolate(maps[:, None].to(images.dtype), images.shape[2:], mode="bilinear").flatten(1)
        order = pixels.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1).view(-1, 1, *images.shape[2:]) / order.shape[1]  # [B, 1, H, W], in [0, 1)
        curves = []
        for step in range(steps + 1):
            first = rank < step / steps
            changed = torch.cat([images.masked_fill(first, 0), images.masked_fill(~first, 0)])
            probabilities = folded(changed).double().softmax(dim=1).gather(1, labels.repeat(2)[:, None])
            curves.append(probabilities.view(2, -1))
    finally:
        model.train(was_training)
    deletion, insertion = torch.trapezoid(torch.stack(curves), dx=1 / steps, dim=0).cpu().numpy()
    return Faithfulness(deletion=deletion, insertion=insertion)


def against_random(
    model: Classifier, images: Images, maps: Float[Tensor, "B h w"], seed: int = 0, steps: int = 16
) -> dict[str, AgainstRandom]:
    """`deletion` and `insertion` of `maps` against uniformly random ones, one for each image, of the same grid.

    Raises what `deletion_insertion` raises, and DataError for fewer than two images.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} image", expected="at least two to compare", where="against_random")
    random = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed))
    ours, theirs = (_in_parts(model, images, each, steps) for each in (maps, random))
    return {
        "deletion": _paired(ours.deletion, theirs.deletion, "less"),
        "insertion": _paired(ours.insertion, theirs.insertion, "greater"),
    }


def _in_parts(model: Classifier, images: Images, maps: Tensor, steps: int) -> Faithfulness:
    parts = zip(images.split(BATCH_SIZE), maps.to(images.device).split(BATCH_SIZE), strict=True)
    scores = [deletion_insertion(model, some, theirs, steps=steps) for some, theirs in parts]
    return Faithfulness(
        deletion=np.concatenate([score.deletion for score in scores]),
        insertion=np.concatenate([score.insertion for score in scores]),
    )


def _paired(maps: Scores, random: Scores, better: str) -> AgainstRandom:
    from scipy.stats import wilcoxon  # takes a second: only when it is needed

    p = 1.0
    if (maps != random).any():
        _, p = cast(tuple[float, float], wilcoxon(maps, random, alternative=better))
    return AgainstRandom(maps=float(maps.mean()), random=float(random.mean()), p=float(p))
