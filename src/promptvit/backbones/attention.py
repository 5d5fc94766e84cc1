"""Self-attention over a part of the rows, with extra keys and values, and with or without rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from promptvit.shapes import HeadPrompts, Tokens

SelfAttention = Attention | EvaAttention | AttentionRope
QUERY, KEY, VALUE = 0, 1, 2


def attend(
    attention: SelfAttention,
    x: Tokens,
    rows: int,
    keys: HeadPrompts | None = None,
    values: HeadPrompts | None = None,
    bias: Float[Tensor, "*batch T"] | None = None,
    *,
    rotation: Tensor | None = None,
    recomputed: bool = False,
) -> Float[Tensor, "B R D"]:
    """What timm's attention makes of the first `rows` rows of the tokens `x` [B, N, D].

    Queries come from those rows only, keys and values from all N rows and from `keys`, `values`
    ([H, T, d] or [B, H, T, d]), which join as they are; `bias` [T] or [B, T] is added to the logits of `keys`.
    `rotation`: sine and cosine [..., N, H or 1, 2d] for every row of `x`. `recomputed`: activation checkpointing does
    this again in the backward pass, so nothing is kept here (hooks in here would keep it all the same).
    """
    read = first_rows(x, rows)  # [B, R, D]
    if isinstance(attention, Attention) and _few_queries(attention, rows):
        (q,) = project(attention, read, QUERY)  # [B, R, H, d]
        out = _attend_from_few(attention, attention.q_norm(q), x, keys, values, bias)
    else:
        parts = (QUERY, KEY, VALUE) if read is x else (QUERY,)  # all in one call if all are of the same rows
        q, *projected = project(attention, read, *parts)
        q = rotate(attention, attention.q_norm(q), rotation)
        k, v = _ready(attention, projected or project(attention, x, KEY, VALUE), rotation)  # [B, N, H, d] each
        out = _attend_from_all(attention, q, k, v, keys, values, bias, recomputed)
    out = attention.norm(out)  # [B, R, H*d]
    if attention.gate is not None:
        out = out * attention.gate(read).sigmoid()
    return attention.proj_drop(attention.proj(out))


def first_rows(x: Tensor, rows: int) -> Tensor:
    """The first `rows` rows of `x` [B, N, D]; `x` itself if that is all (a slice would cost a copy in backward)."""
    return x if rows == x.shape[1] else x[:, :rows]


def project(attention: SelfAttention, x: Tensor, *parts: int) -> list[Tensor]:
    """Queries, keys or values [..., N, H, d] of `x` [..., N, D], as asked for, before their normalisation.

    Grouped keys and values have fewer heads H here. A plain linear layer computes only the parts asked for; any other
    module in its place is called as it is.
    """
    if attention.qkv is None:
        layers = cast(tuple[nn.Module, ...], (attention.q_proj, attention.k_proj, attention.v_proj))
        projected = [layers[part](x) for part in parts]
    else:
        projected = _project_fused(attention, attention.qkv, x, parts)
    return [y.unflatten(-1, (-1, attention.head_dim)) for y in projected]


def _project_fused(attention: SelfAttention, layer: nn.Module, x: Tensor, parts: Sequence[int]) -> list[Tensor]:
    outside = None  # EVA keeps the biases beside the layer
    if isinstance(attention, EvaAttention) and attention.q_bias is not None:
        outside = (attention.q_bias, attention.k_bias, attention.v_bias)
    if type(layer) is not nn.Linear:
        thirds = layer(x).chunk(3, dim=-1)
        return [thirds[part] if outside is None else thirds[part] + outside[part] for part in parts]
    width = attention.num_heads * attention.head_dim
    projected = []
    for part in parts:
        rows = slice(part * width, (part + 1) * width)
        bias = None if layer.bias is None else layer.bias[rows]
        projected.append(F.linear(x, layer.weight[rows], bias if outside is None else outside[part]))
    return projected


def project_keys_values(attention: SelfAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised keys without position, and values [..., N, H, d] of `x` [..., N, D]; H counts query heads."""
    return _ready(attention, project(attention, x, KEY, VALUE), rotation=None)


def _ready(attention: SelfAttention, projected: list[Tensor], rotation: Tensor | None) -> tuple[Tensor, Tensor]:
    k, v = projected
    k = rotate(attention, attention.k_norm(k), rotation).type_as(v)
    groups = attention.num_heads // v.shape[-2]
    return (k, v) if groups == 1 else (k.repeat_interleave(groups, dim=-2), v.repeat_interleave(groups, dim=-2))


def rotate(attention: SelfAttention, x: Tensor, rotation: Tensor | None) -> Tensor:
    """Queries or keys `x` [B, R, H, d] of the first R rows, turned by their `rotation`."""
    if rotation is None:
        return x
    assert not isinstance(attention, Attention)
    return apply_rot_embed_cat(x, rotation[..., : x.shape[1], :, :], half=attention.rotate_half)


def _attend_from_all(
    attention: SelfAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor | None,
    values: Tensor | None,
    bias: Tensor | None,
    recomputed: bool,
) -> Tensor:
    if keys is None or values is None:
        return _scaled_dot_product(attention, q, k, v)
    mask = None if bias is None else F.pad(bias.to(q.dtype), (k.shape[1], 0))  # [N+T] or [B, N+T]
    parts = (k, _beside(keys, k)), (v, _beside(values, v))
    k, v = (torch.cat(part, dim=1) for part in parts)  # [B, N+T, H, d]
    plain = recomputed or not k.requires_grad or torch.compiler.is_compiling()  # a compiler decides what to keep
    with nullcontext() if plain else _KeepParts({k: parts[0], v: parts[1]}):
        return _scaled_dot_product(attention, q, k, v, mask)


def _few_queries(attention: Attention, rows: int) -> bool:
    """Whether it pays to bring the key and value weights to the queries, and nothing stands between the two."""
    pays = 8 * rows * attention.num_heads < attention.attn_dim
    dropout = attention.training and attention.attn_drop.p > 0
    return pays and not dropout and type(attention.k_norm) is nn.Identity and type(attention.qkv) is nn.Linear


def _attend_from_few(
    attention: Attention, q: Tensor, x: Tensor, keys: Tensor | None, values: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Attention of a few rows `q` [B, R, H, d] without keys and values of the N rows `x` [B, N, D].

    q · (W x + b) is (q W) · x + q · b, and a weighted sum of W x + b is W applied to the weighted sum of x, plus b: the
    last block, of which the readout reads one row, needs no key and value projection of all the others.
    """
    heads, rows, n = attention.num_heads, q.shape[1], x.shape[1]
    _, wk, wv = attention.qkv.weight.unflatten(0, (3, heads, -1)).unbind(0)  # [H, d, D] each
    q = q.transpose(1, 2) * attention.scale  # [B, H, R, d]
    scores = (torch.einsum("bhrd,hde->bhre", q, wk).flatten(1, 2) @ x.mT).unflatten(1, (heads, rows))  # [B, H, R, N]
    biases = None if attention.qkv.bias is None else attention.qkv.bias.unflatten(0, (3, heads, 1, -1))
    if biases is not None:
        scores = scores + (q * biases[KEY]).sum(dim=-1, keepdim=True)
    if keys is not None:
        beside = q @ keys.mT.to(q.dtype)  # [B, H, R, T]
        scores = torch.cat(
            [scores, beside if bias is None else beside + bias[..., None, None, :]], dim=-1
        )  # [B, H, R, N+T]
    shares = scores.softmax(dim=-1).to(x.dtype)
    of_rows = shares[..., :n]
    mixed = (of_rows.flatten(1, 2) @ x).unflatten(1, (heads, rows))  # [B, H, R, D]
    out = torch.einsum("bhre,hde->bhrd", mixed, wv)
    if biases is not None:
        out = out + of_rows.sum(dim=-1, keepdim=True) * biases[VALUE]
    if values is not None:
        out = out + shares[..., n:] @ values.to(shares.dtype)
    return out.transpose(1, 2).flatten(2)  # [B, R, H*d]


def _scaled_dot_product(
    attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    mask = None if mask is None else mask.reshape(-1, 1, 1, k.shape[1]).expand(-1, 1, q.shape[1], -1)
    dropout = attention.attn_drop.p if attention.training else 0.0
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # [B, H, ..., d]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout).transpose(1, 2).flatten(2)  # [B, R, H*d]


def _beside(prompts: Tensor, rows: Tensor) -> Tensor:
    """Prompts [H, T, d] or [B, H, T, d] in the layout and type of `rows` [B, N, H, d]."""
    return prompts.transpose(-2, -3).expand(rows.shape[0], -1, -1, -1).to(rows.dtype)  # [B, T, H, d]


class _KeepParts(saved_tensors_hooks):
    """Inside, autograd keeps a joined tensor as its parts and joins them again in the backward pass.

    Prompts that all images share would otherwise be stored once per image: with 200 prompts a fifth of all
    activation memory.
    """

    def __init__(self, parts_of: dict[Tensor, tuple[Tensor, Tensor]]) -> None:
        parts_at = {
            _view(joined.transpose(1, 2)): (parts[0].detach(), parts[1].detach()) for joined, parts in parts_of.items()
        }

        def pack(tensor: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            return parts_at.get(_view(tensor), tensor)

        def unpack(kept: Tensor | tuple[Tensor, Tensor]) -> Tensor:
            return kept if isinstance(kept, Tensor) else torch.cat(kept, dim=1).transpose(1, 2)

        super().__init__(pack, unpack)


def _view(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """What tells one view of a memory from another: some kernels save a reshaped one."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()
