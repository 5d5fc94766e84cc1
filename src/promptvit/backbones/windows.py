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
    batch, image_rows, area = x.shape[0], math.prod(grid), block.window_area
    image = _shift_and_pad(block, x[:, :image_rows].unflatten(1, grid))  # [B, h', w', D]
    padded = image.shape[1], image.shape[2]
    windows = window_partition(image, block.window_size).flatten(1, 2)  # [B*W, A, D], image by image
    q, k, v = project_windows(attention, windows.unflatten(0, (batch, math.prod(padded) // area)))  # [B, W, H, A, d]
    bias = _bias(block, image)
    if x.shape[1] > image_rows:
        q_prompts, k_prompts, v_prompts = project_windows(attention, x[:, image_rows:])  # [B, H, P, d]
        given = given.behind(k_prompts, v_prompts)
        if rows > image_rows:
            q = torch.cat([q, q_prompts.unsqueeze(1).expand(-1, q.shape[1], -1, -1, -1)], dim=-2)  # [B, W, H, A+P, d]
            bias = F.pad(bias, (0, 0, 0, rows - image_rows))
    out = _softmax_attention(attention, q, k, v, bias, given).transpose(2, 3).flatten(3)  # [B, W, A+P, H*d]
    x = _reverse(block, out[:, :, :area], padded, grid)
    if rows > image_rows:
        x = torch.cat([x, out[:, :, area:].mean(dim=1)], dim=1)
    return attention.proj_drop(attention.proj(x))


def project_windows(attention: WindowAttention, x: Float[Tensor, "*batch N D"]) -> list[Float[Tensor, "*batch H N d"]]:
    """Queries, keys and values of normalised rows."""
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))  # [..., N, 3, H, d]
    return [part.transpose(-2, -3) for part in qkv.unbind(-3)]


def _softmax_attention(
    attention: WindowAttention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, given: BlockInput
) -> Tensor:
    """Attention [B, W, H, Q, d] of `q` over the rows of its window, with `bias`, and over what is given, without.

    What is given is not copied into the windows: it meets the queries of all of them at once.
    """
    q = q * attention.scale
    scores, keys, values = q @ k.mT + bias, given.keys, given.values
    if keys is None or values is None:
        return attention.attn_drop(attention.softmax(scores)) @ v
    shape = "htd" if keys.ndim == 3 else "bhtd"
    beside = torch.einsum(f"bwhqd,{shape}->bwhqt", q, keys.to(q.dtype))
    if given.bias is not None:
        beside = beside + given.bias[..., None, None, None, :]
    shares = attention.attn_drop(attention.softmax(torch.cat([scores, beside], dim=-1)))
    own, others = shares.split([scores.shape[-1], beside.shape[-1]], dim=-1)
    return own @ v + torch.einsum(f"bwhqt,{shape}->bwhqd", others, values.to(q.dtype))


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


def _reverse(
    block: SwinTransformerBlock, windows: Float[Tensor, "B W A D"], padded: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "B N D"]:
    """The way back from windows to rows."""
    image = window_reverse(windows.flatten(0, 1), block.window_size, *padded)[:, : grid[0], : grid[1]]
    if any(block.shift_size):
        image = image.roll(block.shift_size, dims=(1, 2))
    return image.flatten(1, 2)
