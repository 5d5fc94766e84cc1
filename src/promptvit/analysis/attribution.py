"""Which parts of an image a tuned model's answer rests on, as maps: Grad-CAM, rollout, integrated gradients.

A map is a suggestion. Whether the model's answer depends on what it marks, `promptvit.analysis.faithfulness` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from promptvit.analysis.attention import attention_rollout, enter, evaluating, patch_grid
from promptvit.analysis.config import Attribution
from promptvit.analysis.images import BATCH_SIZE
from promptvit.backbones.base import TokenBackbone
from promptvit.backbones.walk import Rows
from promptvit.errors import ConfigError
from promptvit.model import TunedModel
from promptvit.registry import unknown
from promptvit.shapes import Images, Labels, Logits

Maps = Float[Tensor, "B high wide"]
PART = 8
"""How many images are looked at together: rollout and gradients keep much for each."""


@dataclass(frozen=True, kw_only=True)
class PixelAttribution:
    """What each value of the images adds to the logit of their classes, `values` [B, channels, height, width], and the
    `error` [B] of its sum: of completeness, logit(image) - logit(baseline)."""

    values: Float[Tensor, "B channels height width"]
    error: Float[Tensor, " B"]

    def maps(self, grid: tuple[int, int]) -> Maps:
        """The mean over channels and over the pixels of each patch of a grid."""
        return F.adaptive_avg_pool2d(self.values.mean(dim=1), grid)


def grad_cam(model: TunedModel, images: Images, targets: Labels | None = None, depth: int | None = None) -> Maps:
    """Grad-CAM of the patches as they enter block `depth` (the last one), for the logits of `targets` (the predicted
    classes): the sum of the channels by the mean of their gradients over the patches, where it is positive.

    [B, height, width], a value for each patch: CLS, registers and prompts are left out by what the walk through the
    model knows of its rows. `depth` = L is behind the last block. The model is in eval mode meanwhile; no gradient of a
    parameter is touched. Source: Selvaraju et al. (ICCV 2017).

    Raises ConfigError where all of a map is zero: behind the last block of a model that reads its CLS row no patch is
    read, and a head that is zero passes no gradient.
    """
    with evaluating(model), torch.no_grad():
        backbone, inputs, entering = enter(model, images, "Grad-CAM")
        depth = len(inputs) - 1 if depth is None else depth
        if not 0 <= depth <= len(inputs):
            raise ConfigError(f"depth={depth}", expected=f"0 to {len(inputs)}", where="Grad-CAM")
        rows = next(islice(entering, depth, None))
        rows.x.requires_grad_()
        with torch.enable_grad():
            *_, last = rows, *entering
            score = _of_classes(_logits(model, backbone, last, images), targets)
            (gradient,) = torch.autograd.grad(score.sum(), rows.x)
    patches = slice(backbone.info.prefix, rows.image_rows)
    weights = gradient[:, patches].mean(dim=1)  # [B, D]
    raw = torch.einsum("bnd,bd->bn", rows.x[:, patches].detach(), weights)
    if not raw.any(dim=1).all():
        raise ConfigError(
            f"Grad-CAM at depth {depth} is zero at every patch: no gradient arrives",
            expected="a depth whose patches the features depend on, and a trained head",
            where="Grad-CAM",
            fix=f"Use depth={len(inputs) - 1}: the patches as they enter the last block",
        )
    return raw.relu().unflatten(1, patch_grid(backbone, rows))


def _logits(model: TunedModel, backbone: TokenBackbone, last: Rows, images: Images) -> Logits:
    """The way of the model from the rows behind the last block on."""
    readout, count = model.method.readout, last.image_rows
    read = {"own": backbone.readout_rows(count), "image": count}.get(readout, last.x.shape[1])
    features = backbone.read(backbone.final_norm(last.x[:, :read]), count, readout)
    return model.head(model.delta.on_features(features, images))


def _of_classes(logits: Logits, targets: Labels | None) -> Float[Tensor, " B"]:
    """The logits of `targets`, or the largest."""
    return logits.amax(dim=1) if targets is None else logits.gather(1, targets[:, None]).squeeze(1)


def integrated_gradients(
    model: TunedModel, images: Images, targets: Labels | None = None, steps: int = 50
) -> PixelAttribution:
    """Integrated gradients of the logits of `targets` (the predicted classes) from the baseline to the images.

    The baseline is zero in normalised space: an image all of the mean colour of the backbone's normalisation. What has
    that colour gets nothing. `steps`: points of the Gauss-Legendre rule between the two; the error shows if they are
    too few. Captum's, for any backbone; the model is in eval mode meanwhile. Source: Sundararajan et al. (ICML 2017).

    Raises ConfigError without captum, or for no steps.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}", expected="at least 1", where="integrated gradients")
    kind = require_captum().IntegratedGradients
    with evaluating(model):
        if targets is None:
            with torch.no_grad():
                targets = model(images).argmax(dim=1)
        found: Any = kind(model).attribute(
            images,
            target=targets,
            n_steps=steps,
            return_convergence_delta=True,
            internal_batch_size=max(BATCH_SIZE, len(images)),
        )
    values, error = found
    return PixelAttribution(values=values.detach(), error=error.detach())


def require_captum() -> Any:
    """The package's `attr`, which is slow to import; raises ConfigError if it is not installed."""
    try:
        return import_module("captum.attr")
    except ImportError:
        raise ConfigError(
            "integrated gradients need captum", where="attribution", fix="pip install 'promptvit[analysis]'"
        ) from None


def attribution_maps(model: TunedModel, batches: Iterable[Images], kind: Attribution) -> Maps:
    """A map of each image for the class that `model` predicts, on the processor; not scaled, and not comparable from
    kind to kind. Integrated gradients are brought to the patches. Raises what the kind raises."""
    if kind not in KINDS:
        raise unknown("kind of map", kind, KINDS, f"Known: {', '.join(KINDS)}")
    parts = (part for images in batches for part in images.split(PART))
    return torch.cat([KINDS[kind](model, part).cpu() for part in parts])


KINDS: dict[Attribution, Callable[[TunedModel, Images], Maps]] = {
    "grad-cam": grad_cam,
    "rollout": lambda model, images: attention_rollout(model, images).maps,
    "integrated-gradients": lambda model, images: integrated_gradients(model, images).maps(model.backbone.info.grid),
}
