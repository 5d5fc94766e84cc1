"""Normalised mutual information (NMI) of prompts and patch tokens: how much a prompt tells of the patches it meets.

A diagnostic in named variants. None is the NMI of the SPT paper (arXiv 2402.02382), whose estimator is not known.

- `attention`: the block's own attention, prompts as queries and patches as keys, softmax over the patches alone.
- `tokens`: softmax over the patches of scaled dot products of prompts and patches as they enter the block.
- `clustering`: patches labelled by their nearest prompt, against patches clustered by themselves.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from promptvit.analysis.config import Variant
from promptvit.analysis.images import batches, choose
from promptvit.backbones.attention import KEY, QUERY, SelfAttention, project, rotate
from promptvit.backbones.base import TokenBackbone
from promptvit.backbones.plain import PlainBackbone
from promptvit.backbones.walk import Rows, walk
from promptvit.data.config import DataConfig
from promptvit.data.dataset import ImageDataset
from promptvit.data.load import load_split, load_task
from promptvit.errors import ConfigError, DataError
from promptvit.files import write_text
from promptvit.model import TunedModel
from promptvit.registry import unknown
from promptvit.shapes import Images
from promptvit.train.loop import Run

BlockNMI = list[float | None]
"""NMI at each block; None at a block without prompts."""
IMAGES: dict[Variant, int] = {"attention": 64, "tokens": 64, "clustering": 8}
"""On how many images a variant is measured unless told otherwise: k-means is slow."""
SMOOTHING = 1e-8


def normalised_mutual_information(shares: Float[Tensor, "*batch Q K"]) -> Float[Tensor, "*batch"]:
    """Mutual information of queries and keys over sqrt(H(q) H(k)), in [0, 1], for row-stochastic maps A(k|q).

    Queries are equally likely. Shares get 1e-8 each and are normalised again. A single query gives 0, and so do keys
    without entropy. Source: the attention NMI of Park et al., ICLR 2023.
    """
    shares = shares + SMOOTHING
    shares = shares / shares.sum(dim=-1, keepdim=True)
    of_keys = shares.mean(dim=-2)  # p(k) [..., K]
    information = (shares * (shares / of_keys.unsqueeze(-2)).log()).sum(dim=-1).mean(dim=-1)
    entropies = -math.log(shares.shape[-2]) * (of_keys * of_keys.log()).sum(dim=-1)  # H(q) H(k)
    return torch.where(entropies > 0, information / entropies.sqrt(), 0.0).clamp(0, 1)


@torch.no_grad()
def prompt_nmi(model: TunedModel, batches: Iterable[Images], variant: Variant = "attention") -> BlockNMI:
    """NMI between prompts and patches as they enter each block, the mean over heads and over the images of `batches`.

    Images are normalised and where the model is. The model is in eval mode meanwhile; no random number is drawn.
    Raises ConfigError for a model without prompts, and for `attention` where blocks have no attention over all patches;
    DataError for no images.
    """
    was_training = model.training
    model.eval()
    try:
        backbone, measure = _prompted_backbone(model, variant), MEASURES[variant]
        of_batches = [_at_blocks(model, backbone, measure, images) for images in batches if len(images)]
    finally:
        model.train(was_training)
    if not of_batches:
        raise DataError("no images", expected="at least one", where="prompt_nmi")
    of_blocks = zip(*of_batches, strict=True)
    return [None if parts[0] is None else torch.cat(cast(Any, parts)).mean().item() for parts in of_blocks]


Measure = Callable[[TokenBackbone, Rows], Tensor]
"""The NMI [B] of each image at one block."""


def _prompted_backbone(model: TunedModel, variant: Variant) -> TokenBackbone:
    """The backbone of `model`, if its method has prompts there that `variant` can compare with patches."""
    if variant not in MEASURES:
        raise unknown("variant", variant, MEASURES, f"Known: {', '.join(MEASURES)}")
    given = model.delta(model.backbone, 1)
    if not any(each.tokens is not None and each.tokens.shape[-2] for each in given):
        raise ConfigError(
            f"the method {model.method.kind} puts no prompts beside the patches",
            expected="one that does, such as vpt-deep",
            where="NMI",
        )
    backbone = cast(TokenBackbone, model.backbone)  # no other has room for prompts
    if variant == "attention" and not isinstance(backbone, PlainBackbone):
        raise ConfigError(
            f"variant=attention on a {backbone.info.family} backbone: no prompt attends to all patches there",
            expected="a plain transformer",
            where="NMI",
            fix="Use the variant tokens",
        )
    return backbone


def _at_blocks(model: TunedModel, backbone: TokenBackbone, measure: Measure, images: Images) -> list[Tensor | None]:
    pixels, inputs = model.delta.on_images(images), model.delta(backbone, images.shape[0])
    entering = islice(walk(backbone, pixels, inputs), backbone.info.depth)  # so the last block is not computed
    return [measure(backbone, rows) if rows.prompts.shape[1] else None for rows in entering]


def _attention(backbone: TokenBackbone, rows: Rows) -> Float[Tensor, " B"]:
    assert isinstance(backbone, PlainBackbone)
    attention = cast(SelfAttention, backbone.model.blocks[rows.index].attn)
    (q,) = project(attention, backbone.before_attention(rows.index, rows.prompts), QUERY)  # [B, P, H, d]
    (k,) = project(attention, backbone.before_attention(rows.index, rows.image), KEY)  # [B, N, H, d]
    rotation = backbone.rotation(rows.index, rows.image.shape[1], rows.positions)
    k = rotate(attention, attention.k_norm(k), rotation)[:, backbone.info.prefix :]  # [B, M, H, d]
    k = k.repeat_interleave(attention.num_heads // k.shape[2], dim=2)  # grouped keys
    q, k = (attention.q_norm(q) * attention.scale).transpose(1, 2), k.transpose(1, 2)  # [B, H, ..., d]
    return normalised_mutual_information(_softmax(q @ k.mT)).mean(dim=1)


def _tokens(backbone: TokenBackbone, rows: Rows) -> Float[Tensor, " B"]:
    patches = rows.image[:, backbone.info.prefix :]  # [B, M, D]
    return normalised_mutual_information(_softmax(rows.prompts @ patches.mT / math.sqrt(patches.shape[-1])))


def _softmax(logits: Tensor) -> Tensor:
    """In 32 bits at least: a share of 1e-8 is to count."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)


def _clustering(backbone: TokenBackbone, rows: Rows) -> Float[Tensor, " B"]:
    """A definition of our own, from no paper: I / sqrt(H H) of two hard labellings of an image's patches.

    One labels a patch with its nearest prompt (Euclidean), the other with its cluster of a seeded k-means with as many
    clusters as prompts, or as distinct patches if these are fewer.
    """
    patches, prompts = rows.image[:, backbone.info.prefix :].float(), rows.prompts.float()
    nearest = torch.cdist(patches, prompts).argmin(dim=-1).cpu().numpy()  # [B, M]
    each = zip(patches.cpu().numpy(), nearest, strict=True)
    return torch.tensor([_agreement(own, labels, prompts.shape[1]) for own, labels in each])


def _agreement(patches: np.ndarray, labels: np.ndarray, clusters: int) -> float:
    from sklearn.cluster import KMeans  # takes a second: only when it is needed
    from sklearn.metrics import normalized_mutual_info_score

    clusters = min(clusters, len(np.unique(patches, axis=0)))
    if clusters == 1:  # 0 as for a single query; scikit-learn says 1 of two labellings without entropy
        return 0.0
    clustered = KMeans(clusters, random_state=0).fit_predict(patches)
    return float(normalized_mutual_info_score(labels, clustered, average_method="geometric"))


MEASURES: dict[Variant, Measure] = {"attention": _attention, "tokens": _tokens, "clustering": _clustering}


def mean_nmi(blocks: BlockNMI) -> float:
    """The mean over those blocks that have prompts."""
    known = [value for value in blocks if value is not None]
    return sum(known) / len(known)


def task_nmi(
    model: TunedModel, data: DataConfig, variant: Variant = "attention", images: int | None = None
) -> BlockNMI:
    """`prompt_nmi` on at most `images` validation images of the task in `data`, the same ones each time.

    None: as many as `IMAGES` says. All are read, as a run does, since those that are broken are not among the chosen.
    """
    return _dataset_nmi(model, load_split(load_task(data).val, model.preprocessing, data), variant, images)


def _dataset_nmi(model: TunedModel, dataset: ImageDataset, variant: Variant, images: int | None) -> BlockNMI:
    pixels, _ = choose(dataset, IMAGES[variant] if images is None else images, "NMI")
    return prompt_nmi(model, batches(pixels, model.preprocessing, model.device), variant)


def record(epoch: int, run: Run, *, variant: Variant = "attention", images: int | None = None) -> None:
    """Puts a row into `nmi.jsonl` of a run in progress: the `watch` of a `Listener`, as `partial(record, variant=...)`.

    A row: `epoch` (0 is the start), `variant`, `blocks`, their `mean`, `seconds`. Rows of this epoch or later ones,
    which a killed run has left behind, are replaced. Raises what `prompt_nmi` raises; nothing is written then.
    """
    if not run.accelerator.is_main_process:
        return
    started = time.perf_counter()
    blocks = _dataset_nmi(run.model, run.val_set, variant, images)
    seconds = time.perf_counter() - started
    row = {"epoch": epoch, "variant": variant, "blocks": blocks, "mean": mean_nmi(blocks), "seconds": seconds}
    rows = [*(row for row in read_curve(run.folder.root) if row["epoch"] < epoch), row]
    run.folder.write_config(run.config.to_dict())  # first of all: a folder without it holds no run to resume
    write_text(_curve(run.folder.root), "".join(json.dumps(row) + "\n" for row in rows))


ROW = ("epoch", "variant", "blocks", "mean", "seconds")


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The rows that `record` has put into the run in `folder`, by epoch; none if it was never asked to."""
    path = _curve(folder)
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [{name: row[name] for name in ROW} for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}", fix="Remove it") from error


def _curve(folder: Path) -> Path:
    return folder / "nmi.jsonl"
