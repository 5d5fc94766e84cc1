"""Attention within windows, with prompts that all windows of an image share."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition, window_reverse
from torch import Tensor

from promptvit.backbones.base import BlockInput
from promptvit.shapes import Tokens


def attend_in_windows(
    block: SwinTransformerBlock, x: Tokens, rows: int, grid: tuple[int, int], given: BlockInput
) -> Float[Tensor, "B R D"]:
    """What the window attention of `block` makes of the first `rows` rows of the normalised `x` [B, h*w+P, D].

    Image rows read their window, prompts and what is given; prompt rows do so in every window, and are the mean.
    """
    attention = cast(WindowAttention, block.attn)
    q, k, v, bias, given = _project_all(block, x, rows, grid, given)
    shares = attention.attn_drop(_shares(attention, q, k, bias, given))
    out = _weighted(shares, v, given.values).transpose(2, 3).flatten(3)  # [B, W, A+P, H*d]
    return attention.proj_drop(attention.proj(_as_rows(block, out, rows, grid)))


def carry_in_windows(
    block: SwinTransformerBlock, x: Tokens, grid: tuple[int, int], given: BlockInput, carried: Float[Tensor, "B K S"]
) -> Float[Tensor, "B R S"]:
    """The same attention, the mean over heads, of `carried` in place of values, for all rows of `x`.

    `carried` has a row for each row of `x`, then one for each key that is given. What fills windows up carries nothing.
    """
    q, k, _, bias, given = _project_all(block, x, x.shape[1], grid, given)
    shares = _shares(cast(WindowAttention, block.attn), q, k, bias, given).mean(dim=2, keepdim=True)
    image, others = carried.split([math.prod(grid), carried.shape[1] - math.prod(grid)], dim=1)
    windows = _partition(block, _shift_and_pad(block, image.unflatten(1, grid))).unsqueeze(2)  # [B, W, 1, A, S]
    out = _weighted(shares.to(carried.dtype), windows, None if given.values is None else others.unsqueeze(1))
    return _as_rows(block, out.squeeze(2), x.shape[1], grid)


def project_windows(attention: WindowAttention, x: Float[Tensor, "*batch N D"]) -> list[Float[Tensor, "*batch H N d"]]:
    """Queries, keys and values of normalised rows."""
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))  # [..., N, 3, H, d]
    return [part.transpose(-2, -3) for part in qkv.unbind(-3)]


def _project_all(
    block: SwinTransformerBlock, x: Tokens, rows: int, grid: tuple[int, int], given: BlockInput
) -> tuple[Tensor, Tensor, Tensor, Tensor, BlockInput]:
    """Queries [B, W, H, A+P, d], keys and values [B, W, H, A, d] and the bias of each window; and what is given, with
    the prompts among it. Prompts are queries only if `rows` wants them."""
    attention, image_rows = cast(WindowAttention, block.attn), math.prod(grid)
    image = _shift_and_pad(block, x[:, :image_rows].unflatten(1, grid))  # [B, h', w', D]
    q, k, v = project_windows(attention, _partition(block, image))  # [B, W, H, A, d]
    bias = _bias(block, image)
    if x.shape[1] > image_rows:
        q_prompts, k_prompts, v_prompts = project_windows(attention, x[:, image_rows:])  # [B, H, P, d]
        given = given.behind(k_prompts, v_prompts)
        if rows > image_rows:
            q = torch.cat([q, q_prompts.unsqueeze(1).expand(-1, q.shape[1], -1, -1, -1)], dim=-2)  # [B, W, H, A+P, d]
            bias = F.pad(bias, (0, 0, 0, rows - image_rows))
    return q, k, v, bias, given


def _shares(attention: WindowAttention, q: Tensor, k: Tensor, bias: Tensor, given: BlockInput) -> Tensor:
    """Shares [B, W, H, Q, A+T] of the rows of a window, with `bias`, and of what is given, without.

    What is given is not copied into the windows: it meets the queries of all of them at once.
    """
    q = q * attention.scale
    scores, keys = q @ k.mT + bias, given.keys
    if keys is None:
        return attention.softmax(scores)
    beside = torch.einsum(f"bwhqd,{_letters(keys)}->bwhqt", q, keys.to(q.dtype))
    if given.bias is not None:
        beside = beside + given.bias[..., None, None, None, :]
    return attention.softmax(torch.cat([scores, beside], dim=-1))


def _weighted(shares: Tensor, v: Tensor, values: Tensor | None) -> Tensor:
    """The sum [B, W, H, Q, d] by `shares` of the values `v` of the windows and of those given, if any."""
    if values is None:
        return shares @ v
    own, others = shares.split([v.shape[-2], values.shape[-2]], dim=-1)
    return own @ v + torch.einsum(f"bwhqt,{_letters(values)}->bwhqd", others, values.to(shares.dtype))


def _letters(given: Tensor) -> str:
    return "htd" if given.ndim == 3 else "bhtd"


def _bias(block: SwinTransformerBlock, image: Tensor) -> Float[Tensor, "W H A A"]:
    """Relative positions, and the mask between what the shift brings together; W is 1 without a shift."""
    bias = cast(WindowAttention, block.attn)._get_rel_pos_bias()  # [1, H, A, A]
    mask = block.get_attn_mask(image) if block.dynamic_mask else cast(Tensor | None, block.attn_mask)
    return bias if mask is None else bias + mask.unsqueeze(1)


def _shift_and_pad(block: SwinTransformerBlock, image: Float[Tensor, "B h w D"]) -> Float[Tensor, "B H W D"]:
    """As timm's own block: shifted first, then filled up with zeros to whole windows."""
    if any(block.shift_size):
        image = image.roll((-block.shift_size[0], -block.shift_size[1]), dims=(1, 2))
    height, width = block.window_size
    return F.pad(image, (0, 0, 0, -image.shape[2] % width, 0, -image.shape[1] % height))


def _partition(block: SwinTransformerBlock, image: Float[Tensor, "B H W D"]) -> Float[Tensor, "B windows A D"]:
    """The windows of each image."""
    windows = window_partition(image, block.window_size).flatten(1, 2)  # [B*W, A, D], image by image
    return windows.unflatten(0, (image.shape[0], image.shape[1] * image.shape[2] // block.window_area))


def _as_rows(
    block: SwinTransformerBlock, windows: Float[Tensor, "B W Q D"], rows: int, grid: tuple[int, int]
) -> Float[Tensor, "B R D"]:
    """The way back from windows to rows; those of prompts are the mean over the windows."""
    area, window = block.window_area, block.window_size
    padded = [-(-size // across) * across for size, across in zip(grid, window, strict=True)]
    image = window_reverse(windows[:, :, :area].flatten(0, 1), window, *padded)[:, : grid[0], : grid[1]]
    if any(block.shift_size):
        image = image.roll(block.shift_size, dims=(1, 2))
    x = image.flatten(1, 2)
    return x if rows == x.shape[1] else torch.cat([x, windows[:, :, area:].mean(dim=1)], dim=1)
