"""How important the prompts of a tuned model are, and the model without those that are not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from promptvit.backbones.base import BlockInput, TokenBackbone
from promptvit.errors import ConfigError, DataError
from promptvit.methods.base import Delta
from promptvit.methods.e2vpt import E2VPT, E2VPTDelta
from promptvit.methods.masks import Layout, Masks, Scope
from promptvit.methods.prompts import Prompts
from promptvit.methods.samples import Dataset, Samples, as_samples
from promptvit.model import TunedModel, assemble
from promptvit.pruning.config import Gate, Importance
from promptvit.shapes import Images, Labels


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The importance of prompts and of their segments: the least important are pruned first.

    `tokens` [sets, P], `segments` [sets, P, S]: one set for all blocks, or one per block, as `scope` says. A segment of
    a prompt that was pruned before has a score of zero.
    """

    tokens: Float64[np.ndarray, "sets P"]
    segments: Float64[np.ndarray, "sets P S"]
    scope: Scope
    layout: Layout = "contiguous"

    def masks(self, tokens: int = 0, segments: int = 0, *, compat_zero: bool = False) -> Masks:
        """Prunes the `tokens` least important prompts of each set, and of every other prompt its `segments` least
        important segments; of equal ones, those of lower index. Raises ConfigError if nothing would be left."""
        sets, length, parts = self.segments.shape
        if not (0 <= tokens < length and 0 <= segments < parts):
            raise ConfigError(
                f"{tokens} of {length} prompts and {segments} of {parts} segments pruned",
                expected="0 or more, and one to be kept",
                where="masks",
            )
        order = np.argsort(self.tokens, axis=1, kind="stable")[:, :tokens]
        within = np.argsort(self.segments, axis=2, kind="stable")[:, :, :segments]
        gone = [set(row.tolist()) for row in order]
        return Masks(
            length=length,
            scope=self.scope,
            tokens=[sorted(each) for each in gone],
            segments=[
                [() if i in gone[n] else tuple(sorted(within[n, i].tolist())) for i in range(length)]
                for n in range(sets)
            ],
            parts=parts,
            layout=self.layout,
            compat_zero=compat_zero,
        )


def score_prompts(
    model: TunedModel,
    samples: Samples | Dataset,
    *,
    score: Importance = "absolute",
    gate: Gate = "attention",
    scope: Scope = "block",
    layout: Layout = "contiguous",
    parts: int = 16,
) -> Scores:
    """The importance of the visual prompts of `model` for its loss (cross-entropy) on `samples`: one pass forward and
    back for each image.

    A gate of one stands on every prompt, and one on every segment; scores come from the gradient by it, image by image.
    `score`: `absolute` and `squared` are means over images, `taylor` is the mean of its negative (how much the loss
    rises when the gate closes, to first order); `compat_signed` is the mean over batches, signed. `gate`: that of a
    prompt multiplies its `attention` weights exp(logit) in every head, so that zero is the same as no prompt; where a
    prompt travels on, and with `values` everywhere, it multiplies the prompt, as in the paper. That of a segment
    always does. `scope`: a score for each `block`, the sum over `all` of them, or that of the `first`. `parts`:
    segments of a prompt, of channels as `layout` says (see `Masks`).

    The model is in eval mode meanwhile; nothing is trained, and no random number is drawn. Of a model that is pruned
    already, what is gone has a score of zero (rows of zeros are not gone: they draw attention). Where the prompts of
    some blocks travel on and those of others do not, gates differ in scale, and `all` is no fair sum.

    Raises ConfigError for a model without visual prompts or a width that `parts` does not divide; DataError for labels
    that are no class of the model, and for gradients that are not finite. After section 3.3 of the paper.
    """
    visual_prompts(model)
    known, was_training, sums = as_samples(samples), model.training, []
    if known.labels.max() >= len(model.classes):
        raise DataError(
            f"label {int(known.labels.max())}", expected=f"0 to {len(model.classes) - 1}", where="score_prompts"
        )
    model.eval()
    try:
        for pixels, numbers in known.batches():
            labels = known.labels[numbers].to(model.device)
            each = gradients(model, pixels.to(model.device), labels, gate=gate, layout=layout, parts=parts)
            each = {"all": each.sum(dim=1, keepdim=True), "block": each, "first": each[:, :1]}[scope]
            sums.append(MEASURES[score](each))
    finally:
        model.train(was_training)
    count = len(sums) if score == "compat_signed" else len(known)
    mean = (torch.stack(sums).sum(dim=0) / count).numpy()  # [sets, P, 1+S]
    if not np.isfinite(mean).all():
        raise DataError("gradients that are NaN or infinite", expected="finite ones", where="score_prompts")
    return Scores(tokens=mean[..., 0], segments=mean[..., 1:], scope=scope, layout=layout)


MEASURES = {
    "absolute": lambda gradient: gradient.abs().sum(dim=0),
    "squared": lambda gradient: gradient.square().sum(dim=0),
    "taylor": lambda gradient: -gradient.sum(dim=0),
    "compat_signed": lambda gradient: gradient.mean(dim=0),
}
"""What a batch of gradients [B, ...] adds."""


@torch.enable_grad()
def gradients(
    model: TunedModel, images: Images, labels: Labels, *, gate: Gate, layout: Layout, parts: int
) -> Float64[Tensor, "B L P G"]:
    """The gradient of each image's loss by the gates of each prompt at each block that has its own (one L for all that
    share them): that of the prompt, then those of its S segments, so G is 1 + S."""
    backbone, inputs = cast(TokenBackbone, model.backbone), list(model.delta(model.backbone, len(images)))
    tokens: list[Tensor] = []
    gates: dict[int, Tensor] = {}
    for index, given in enumerate(inputs):
        if given.tokens is None or not given.tokens.shape[-2]:
            continue
        tokens.append(given.tokens.detach().expand(len(images), -1, -1).requires_grad_())  # [B, P', D]
        inputs[index] = given = dataclasses.replace(given, tokens=tokens[-1])
        if gate == "attention" and not backbone.travels(index, inputs, model.method.readout):
            gates[len(tokens) - 1] = tokens[-1].new_zeros(tokens[-1].shape[:2], requires_grad=True)
            inputs[index] = _gated(backbone, index, given, gates[len(tokens) - 1])
    features = backbone(model.delta.on_images(images), inputs, model.method.readout)
    logits = model.head(model.delta.on_features(features, images))
    loss = F.cross_entropy(logits, labels, reduction="sum")
    slopes = torch.autograd.grad(loss, [*tokens, *gates.values()])
    of_gates = dict(zip(gates, slopes[len(tokens) :], strict=True))
    found = []
    for number, values in enumerate(tokens):
        segments = _segments(values.detach() * slopes[number], layout, parts)  # [B, P', S]
        whole = of_gates[number].cpu().double() if number in gates else segments.sum(dim=-1)
        found.append(torch.cat([whole.unsqueeze(-1), segments], dim=-1))
    if visual_prompts(model).shared:
        found = [torch.stack(found).sum(dim=0)]
    return torch.stack(_at_their_places(found, _masks(model)), dim=1)


def _gated(backbone: TokenBackbone, index: int, given: BlockInput, gate: Tensor) -> BlockInput:
    """The prompts of a block as keys with `gate` [B, P], the logarithm of their gates; no row is left to travel."""
    prompts = backbone.fold_block(index, BlockInput(tokens=given.tokens))
    assert prompts.keys is not None
    assert prompts.values is not None
    gated = given.behind(prompts.keys, prompts.values, gate)
    return dataclasses.replace(gated, tokens=cast(Tensor, given.tokens)[:, :0], added=given.added)


def _at_their_places(found: list[Tensor], masks: Masks | None) -> list[Tensor]:
    """Those of kept prompts [B, P', G] of each block among zeros, [B, P, G]."""
    if masks is None or masks.compat_zero:
        return found
    kept = torch.from_numpy(masks.kept_tokens(len(found)))
    whole = [own.new_zeros(len(own), masks.length, own.shape[-1]) for own in found]
    for all_prompts, own, rows in zip(whole, found, kept, strict=True):
        all_prompts[:, rows] = own
    return whole


def _segments(shares: Float[Tensor, "B P D"], layout: Layout, parts: int) -> Float64[Tensor, "B P S"]:
    """Sums over the channels of each segment, on the CPU: not every device has 64 bits."""
    shares, width = shares.cpu().double(), shares.shape[-1]
    if width % parts:
        raise ConfigError(f"{parts} segments of prompts of width {width}", expected="a divisor", where="score_prompts")
    if layout == "contiguous":
        return shares.unflatten(-1, (parts, -1)).sum(dim=-1)
    return shares.unflatten(-1, (-1, parts)).sum(dim=-2)


def visual_prompts(model: TunedModel) -> Prompts:
    """The visual prompts of `model`; raises ConfigError if it has none."""
    delta = model.delta.visual if isinstance(model.delta, E2VPTDelta) else model.delta
    if isinstance(delta, Prompts):
        return delta
    raise ConfigError(
        f"the method {model.method.kind} has no visual prompts", expected="vpt, spt or e2vpt", where="pruning"
    )


def _masks(model: TunedModel) -> Masks | None:
    return model.method.masks if isinstance(model.method, E2VPT) else None


def check_prunable(model: TunedModel) -> None:
    """Raise ConfigError for a model that has nothing to prune, is pruned already, or has weights of its own."""
    visual_prompts(model)
    problems = {
        "it is pruned already; prune the run that it comes from": _masks(model) is not None,
        "it trains weights of the backbone, which would change with every pruning": bool(model.trained),
    }
    ConfigError.collect([reason for reason, holds in problems.items() if holds], "pruning")


def prune(model: TunedModel, masks: Masks) -> TunedModel:
    """The same tuned model without what `masks` prunes of its visual prompts: an `E2VPT`, with all other values as they
    are, that can be used, saved or trained on. Pruned values are nowhere in it.

    Raises ConfigError for a model that cannot be pruned, or masks that do not fit it.
    """
    check_prunable(model)
    visual, own = visual_prompts(model), model.method
    method = (
        dataclasses.replace(own, masks=masks) if isinstance(own, E2VPT) else E2VPT(prompts=own, kv=None, masks=masks)
    )
    pruned = assemble(model.backbone, method, model.classes)
    delta = pruned.delta.to(visual.prompts[0])
    assert isinstance(delta, E2VPTDelta)
    cast(Prompts, delta.visual).load_state_dict(visual.pruned(masks).state_dict())
    if isinstance(model.delta, E2VPTDelta) and model.delta.kv is not None:
        cast(Delta, delta.kv).load_state_dict(model.delta.kv.state_dict())
    pruned.head.to(next(model.head.parameters())).load_state_dict(model.head.state_dict())
    pruned.preprocessing = model.preprocessing
    return pruned.train(model.training)
