"""Where attention goes in a model with prompts: to patches, to prompts, and through all blocks back to the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from promptvit.backbones.attention import KEY, QUERY, SelfAttention, project, rotate
from promptvit.backbones.base import NOTHING, BlockInput, TokenBackbone
from promptvit.backbones.plain import PlainBackbone
from promptvit.backbones.swin import SwinBackbone, blocks_of, grid_at
from promptvit.backbones.walk import Rows, walk
from promptvit.backbones.windows import carry_in_windows
from promptvit.errors import ConfigError, DataError
from promptvit.model import TunedModel
from promptvit.shapes import Images


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Where the rows that leave the last block come from, by attention alone.

    `shares` [B, R, N+P+T]: a row for each image row and prompt that leaves the last block; columns are the image rows
    and the prompts of the first block, as they enter it, and slots for prompts that later blocks get, then for
    key/value prompts; each row sums to one. `read`: the rows that the features are read from. `prefix`: columns before
    the patches. `grid`: the patches' height and width.
    """

    shares: Float[Tensor, "B R columns"]
    read: slice
    prefix: int
    grid: tuple[int, int]

    @property
    def maps(self) -> Float[Tensor, "B height width"]:
        """What the features have from each patch."""
        height, width = self.grid
        patches = self._of_features[:, self.prefix : self.prefix + height * width]
        return patches.unflatten(1, self.grid)

    @property
    def of_prompts(self) -> Float[Tensor, " B"]:
        """What the features have from all prompts together."""
        return self._of_features[:, self.prefix + self.grid[0] * self.grid[1] :].sum(dim=1)

    @property
    def _of_features(self) -> Float[Tensor, "B columns"]:
        return self.shares[:, self.read].mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class PromptAttention:
    """The `mass` of attention that goes to a block's prompts, and what it would be if all keys got the `even` share."""

    mass: float
    even: float


@torch.no_grad()
def attention_rollout(model: TunedModel, images: Images) -> Rollout:
    """Attention rollout through all blocks, with prompts: R becomes A R, where A = (mean of the heads + identity) / 2.

    Before a block with fresh prompts, the rows of the old ones become the unit vectors of the new ones' slots, so rows
    keep their sum of one. Where windows attend (Swin), so does R, a prompt's row is the mean over the windows, and
    where patches merge, the mean of the four. What goes to the filling of windows is left out, and the row normalised.
    The model is in eval mode meanwhile. Takes B · N² numbers (40 MB for an image of Swin at 224 pixels).

    Raises ConfigError for a backbone without attention, or images that the method enlarges. Source: Abnar and Zuidema
    (ACL 2020).
    """
    with evaluating(model):
        backbone, inputs, entering = enter(model, images, "rollout")
        rows = first = next(entering)
        grid = patch_grid(backbone, first)
        shares, fresh, keys = _slots(first, max(map(_tokens, inputs)), max(map(_keys, inputs)))
        for given, rows in zip(inputs, chain([first], entering), strict=False):  # the last rows are not asked for
            if patch_grid(backbone, rows) != grid:
                shares, grid = _merged(shares, grid), patch_grid(backbone, rows)
            if given.tokens is not None:
                shares = torch.cat([shares[:, : rows.image_rows], fresh[:, : _tokens(given)]], dim=1)
            carried = carry(backbone, rows, given, torch.cat([shares, keys[:, : _keys(given)]], dim=1))
            shares = (carried / carried.sum(dim=-1, keepdim=True) + shares) / 2
    grid = patch_grid(backbone, first)
    return Rollout(shares=shares, read=read_rows(model, rows), prefix=backbone.info.prefix, grid=grid)


@torch.no_grad()
def prompt_attention(model: TunedModel, batches: Iterable[Images]) -> list[PromptAttention | None]:
    """How much of the attention of those rows that become features (CLS, or the mean of the patches) goes to prompts.

    At each block, the mean over heads and over the images of `batches`, which are normalised and where the model is;
    None at a block without prompts. Key/value prompts count. The model is in eval mode meanwhile.

    Raises ConfigError for a model without prompts, and DataError for no images.
    """
    with evaluating(model):
        of_batches = [_at_blocks(model, images) for images in batches if len(images)]
    if not of_batches:
        raise DataError("no images", expected="at least one", where="prompt_attention")
    blocks = []
    for parts in zip(*of_batches, strict=True):
        known = [part for part in parts if part is not None]
        mass = torch.cat([of_images for of_images, _ in known]).mean().item() if known else 0.0
        blocks.append(PromptAttention(mass=mass, even=known[0][1]) if known else None)
    return blocks


def _at_blocks(model: TunedModel, images: Images) -> list[tuple[Tensor, float] | None]:
    """For each block the mass [B] and the even share."""
    backbone, inputs, entering = enter(model, images, "prompt attention")
    if not any(_tokens(given) + _keys(given) for given in inputs):
        raise ConfigError(
            f"the method {model.method.kind} puts no prompts beside the patches",
            expected="one that does, such as vpt-deep",
            where="prompt attention",
        )
    found = []
    for given, rows in zip(inputs, entering, strict=False):
        prompts = rows.x.shape[1] - rows.image_rows + _keys(given)
        if not prompts:
            found.append(None)
            continue
        is_prompt = torch.zeros(len(images), rows.image_rows + prompts, 1, dtype=_kind(rows), device=rows.x.device)
        is_prompt[:, rows.image_rows :] = 1
        mass = carry(backbone, rows, given, is_prompt)[:, read_rows(model, rows), 0].mean(dim=1)
        found.append((mass, prompts / (_met(backbone, rows) + prompts)))
    return found


def carry(
    backbone: TokenBackbone, rows: Rows, given: BlockInput, carried: Float[Tensor, "B K S"]
) -> Float[Tensor, "B R S"]:
    """What the attention of the block that `rows` enter, the mean over heads, makes of `carried` in place of values.

    `carried` has a row for each of `rows`, then one for each key in `given`.
    """
    if isinstance(backbone, SwinBackbone):
        _, block = blocks_of(backbone.model)[rows.index]
        return carry_in_windows(block, block.norm1(rows.x), patch_grid(backbone, rows), given.inside, carried)
    assert isinstance(backbone, PlainBackbone)
    return attention_map(backbone, rows, given).mean(dim=1).to(carried.dtype) @ carried


def attention_map(backbone: PlainBackbone, rows: Rows, given: BlockInput) -> Float[Tensor, "B H R K"]:
    """The block's own attention, from each of the `rows` that enter it (image, then prompts) to all of them, and to the
    key/value prompts in `given`; at least in 32 bits."""
    attention = cast(SelfAttention, backbone.model.blocks[rows.index].attn)
    rotation = backbone.rotation(rows.index, rows.x.shape[1], rows.positions)
    q, k = project(attention, backbone.before_attention(rows.index, rows.x), QUERY, KEY)  # [B, N+P, H, d] each
    q, k = rotate(attention, attention.q_norm(q), rotation), rotate(attention, attention.k_norm(k), rotation)
    k = k.repeat_interleave(attention.num_heads // k.shape[2], dim=2)  # grouped keys
    q, k = (q * attention.scale).transpose(1, 2), k.transpose(1, 2)  # [B, H, N+P, d]
    logits = q @ k.mT
    if given.keys is not None:
        beside = q @ given.keys.mT.to(q.dtype)  # [B, H, N+P, T]
        logits = torch.cat([logits, beside if given.bias is None else beside + given.bias[..., None, None, :]], dim=-1)
    return logits.to(_kind(rows)).softmax(dim=-1)


@contextmanager
def evaluating(model: TunedModel) -> Iterator[None]:
    """Eval mode inside, the mode from before behind it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def enter(
    model: TunedModel, images: Images, where: str
) -> tuple[TokenBackbone, tuple[BlockInput, ...], Iterator[Rows]]:
    """The backbone of `model`, what its blocks get, and the walk of `images` through it.

    Raises ConfigError for a backbone without tokens, and where its patches are not those of the images.
    """
    backbone, pixels = model.backbone, model.delta.on_images(images)
    if not isinstance(backbone, TokenBackbone):
        raise ConfigError(
            f"a {backbone.info.family} backbone: it has no patch tokens",
            expected="a transformer",
            where=where,
            fix="Integrated gradients need none",
        )
    if pixels.shape[2:] != images.shape[2:]:
        raise ConfigError(
            f"the method {model.method.kind} enlarges the images: a map of patches is none of theirs",
            where=where,
            fix="Integrated gradients give a map of the pixels",
        )
    inputs = model.delta(backbone, len(images)) or (NOTHING,) * backbone.info.depth
    return backbone, inputs, walk(backbone, pixels, inputs)


def patch_grid(backbone: TokenBackbone, rows: Rows) -> tuple[int, int]:
    """Height and width of the patches among `rows`."""
    if not isinstance(backbone, SwinBackbone):
        return rows.positions.grid
    stage, _ = blocks_of(backbone.model)[min(rows.index, backbone.info.depth - 1)]
    return grid_at(rows.positions.grid, stage)


def read_rows(model: TunedModel, rows: Rows) -> slice:
    """Those of `rows` whose successors become features; of attention pooling, all patches."""
    info, readout = model.backbone.info, model.method.readout
    patches = slice(info.prefix, rows.image_rows)
    if readout == "own":
        count = cast(TokenBackbone, model.backbone).readout_rows(rows.image_rows)
        return slice(0, count) if count < rows.image_rows else patches
    some = rows.x.shape[1] > rows.image_rows
    return {"image": patches, "prompt": slice(rows.image_rows, None) if some else patches}.get(
        readout, slice(info.prefix, None)
    )


def _tokens(given: BlockInput) -> int:
    return 0 if given.tokens is None else given.tokens.shape[-2]


def _keys(given: BlockInput) -> int:
    return 0 if given.keys is None else given.keys.shape[-2]


def _met(backbone: TokenBackbone, rows: Rows) -> int:
    """How many keys of the image a query meets."""
    if isinstance(backbone, SwinBackbone):
        return blocks_of(backbone.model)[rows.index][1].window_area
    return rows.image_rows


def _kind(rows: Rows) -> torch.dtype:
    """Shares have 32 bits at least."""
    return torch.promote_types(rows.x.dtype, torch.float32)


def _slots(rows: Rows, tokens: int, keys: int) -> list[Tensor]:
    """A unit vector for each row of the image, each of `tokens` prompts and each of `keys` key/value prompts, for each
    image: three parts [B, _, columns]."""
    lengths = rows.image_rows, tokens, keys
    units = torch.eye(sum(lengths), dtype=_kind(rows), device=rows.x.device)
    return [part.expand(rows.x.shape[0], -1, -1) for part in units.split(lengths)]


def _merged(shares: Float[Tensor, "B R S"], grid: tuple[int, int]) -> Float[Tensor, "B _ S"]:
    """Where four patches become one (fewer at an edge), the mean of theirs; prompts are as they are."""
    image, prompts = shares.split([grid[0] * grid[1], shares.shape[1] - grid[0] * grid[1]], dim=1)
    pooled = F.avg_pool2d(image.mT.unflatten(2, grid), 2, ceil_mode=True)  # [B, S, h', w']
    return torch.cat([pooled.flatten(2).mT, prompts], dim=1)
