"""What joins the attention of a block, against one softmax over everything, written out inside timm's own forward."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import nn

import promptvit as pv
from promptvit.methods.e2vpt import E2VPT, KeyValue
from promptvit.methods.masks import Masks

BACKBONES = (
    *("cls", "registers, avg", "no cls, map", "distilled", "qk-norm, layer scale", "pre-norm", "prr"),
    *("eva", "swin"),
)
"""The first reads one row in its last block, the second all of them."""


class Explicit(nn.Module):
    """A timm attention with the prompts of `given` in place: fresh rows without position, then per-head keys."""

    def __init__(self, attention, norm, given):
        super().__init__()
        self.attention, self.norm, self.given = attention, norm, given

    def project(self, rows):
        """Queries, keys and values [..., H, N, d]."""
        attention = self.attention
        if attention.qkv is None:
            parts = [layer(rows) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
        else:
            parts = attention.qkv(rows).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(-2, -3) for part in parts)
        windows = isinstance(attention, WindowAttention)
        return (q, k, v) if windows else (attention.q_norm(q), attention.k_norm(k), v)

    def forward(self, x, mask=None, rope=None, **_):
        attention, given, own = self.attention, self.given, x.shape[1]
        q, k, v = self.project(x)
        if isinstance(attention, EvaAttention):
            start = attention.num_prefix_tokens
            q, k = (torch.cat([y[:, :, :start], apply_rot_embed_cat(y[:, :, start:], rope)], dim=2) for y in (q, k))
        if given.tokens is not None:
            _, keys, values = self.project(self.norm(given.tokens))
            k, v = beside(k, keys), beside(v, values)
        if given.keys is not None:
            k, v = beside(k, given.keys), beside(v, given.values)
        scores, others = q @ k.mT * attention.scale, k.shape[2] - own
        if isinstance(attention, WindowAttention):
            scores = scores + F.pad(attention._get_rel_pos_bias(), (0, others))
        if mask is not None:
            scores = scores + F.pad(mask.repeat(len(x) // len(mask), 1, 1).unsqueeze(1), (0, others))
        if given.bias is not None:
            scores = scores + F.pad(given.bias, (k.shape[2] - len(given.bias), 0))
        return attention.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


def beside(rows, others):
    """`rows` [B or B*W, H, N, d] and behind them `others` [H, T, d] or [B, H, T, d], in every window."""
    if others.ndim == 4:
        others = others.repeat_interleave(len(rows) // len(others), dim=0)
    return torch.cat([rows, others.expand(len(rows), -1, -1, -1)], dim=2)


def literal(backbone, images, inputs):
    """Features by timm's own forward; rows of prompts enter every block fresh or not at all."""
    model = copy.deepcopy(backbone.model)
    swin = isinstance(model, SwinTransformer)
    blocks = itertools.chain.from_iterable(layer.blocks for layer in model.layers) if swin else model.blocks
    for block, given in zip(blocks, inputs, strict=True):
        block.attn = Explicit(block.attn, block.norm1, given)
    return model(images)


def random_input(backbone, index, *, tokens=0, keys=0, bias=None, zeros=0, each=()):
    """Random prompts of every kind for block `index`, per image with `each`; `zeros` of the tokens are zero."""
    info, double = backbone.info, {"dtype": torch.float64}
    rows = torch.randn(*each, tokens, info.widths[index], **double)
    rows[..., torch.randperm(tokens)[:zeros], :] = 0
    per_head = torch.randn(2, *each, info.heads[index], keys, info.head_width, **double)
    return pv.BlockInput(
        tokens=rows.requires_grad_() if tokens else None,
        keys=per_head[0].requires_grad_() if keys else None,
        values=per_head[1].requires_grad_() if keys else None,
        bias=None if bias is None else torch.tensor(bias, **double).requires_grad_(),
    )


INPUTS = {
    "bias": {"keys": 3, "bias": [0.5, -1.0, 2.0]},
    "bias, each image": {"keys": 3, "bias": [0.5, -1.0, 2.0], "each": (3,)},
    "tokens, bias": {"tokens": 4, "keys": 2, "bias": [1.5, -math.inf]},
    "tokens of each image, bias": {"tokens": 4, "keys": 2, "bias": [1.5, -0.5], "each": (3,)},
    "zeros": {"tokens": 5, "zeros": 3},
    "zeros, bias": {"tokens": 5, "zeros": 3, "keys": 2, "bias": [1.5, -0.5]},
    "zeros, keys": {"tokens": 5, "zeros": 5, "keys": 2},
}


@pytest.fixture(params=BACKBONES)
def backbone(request, make_backbone):
    """Every kind of ViT, and the other families that have attention."""
    return make_backbone(request.param)


def gradients(features, inputs):
    """By all that is given, of a loss that weighs every feature differently."""
    parts = [getattr(given, name) for given in inputs for name in ("tokens", "keys", "values", "bias")]
    weights = torch.linspace(-1, 2, features.numel(), dtype=features.dtype).view_as(features)
    return torch.autograd.grad((features * weights).sum(), [part for part in parts if part is not None])


@pytest.mark.parametrize("kind", INPUTS)
def test_bias_and_folded_zeros_equal_the_literal_attention(backbone, kind, images):
    fields = INPUTS[kind]
    inputs = [random_input(backbone, index, **fields) for index in range(backbone.info.depth)]
    features, expected = backbone(images, inputs), literal(backbone, images, inputs)
    assert (expected - backbone(images)).abs().max() > 1e-4
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-10)
    wanted = gradients(expected, inputs)
    for mine, theirs in zip(gradients(features, inputs), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    backbone.set_checkpointing(True)
    for mine, theirs in zip(gradients(backbone(images, inputs), inputs), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    folded = backbone.fold(inputs)
    torch.testing.assert_close(backbone(images, folded), expected, rtol=0, atol=1e-10)
    rows = fields.get("tokens", 0) - max(0, fields.get("zeros", 0) - 1)
    assert [given.keys.shape[-2] for given in folded] == [rows + fields.get("keys", 0)] * backbone.info.depth


PRUNED = {"length": 4, "tokens": ((1, 2),), "segments": (((0,), (), (), (1, 3)),), "parts": 4}
VARIANTS = {
    "both": E2VPT(prompts=pv.VPT(length=4), kv=KeyValue(length=2)),
    "separate": E2VPT(prompts=pv.VPT(length=4), kv=KeyValue(length=2, values="separate")),
    "keys alone": E2VPT(prompts=None, kv=KeyValue(length=2)),
    "first": E2VPT(prompts=pv.VPT(length=4), kv=KeyValue(length=2, blocks="first")),
    "tied": E2VPT(prompts=pv.VPT(length=4), kv=KeyValue(length=2, blocks="tied", values="separate")),
    "removed": E2VPT(prompts=pv.VPT(length=4), kv=KeyValue(length=2), masks=Masks(**PRUNED)),
    "zeroed": E2VPT(prompts=pv.VPT(length=4), kv=KeyValue(length=2), masks=Masks(**PRUNED, compat_zero=True)),
    "zeroed, no keys": E2VPT(prompts=pv.VPT(length=4), kv=None, masks=Masks(**PRUNED, compat_zero=True)),
    "zeroed, first": E2VPT(prompts=pv.VPT(length=4), masks=Masks(**PRUNED, compat_zero=True, scope="first")),
}


@pytest.mark.parametrize(
    ("kind", "name"), [pair for pair in itertools.product(BACKBONES, VARIANTS) if pair != ("swin", "tied")]
)
def test_e2vpt_equals_the_literal_attention(kind, name, images, make_backbone, make_tuned):
    backbone = make_backbone(kind)
    model = make_tuned(backbone, VARIANTS[name]).eval()
    inputs = model.delta(backbone, 3)
    logits, expected = model(images), model.head(literal(backbone, images, inputs))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    trained = [p for p in model.parameters() if p.requires_grad]
    got, wanted = (torch.autograd.grad(y.square().sum(), trained) for y in (logits, expected))
    for mine, theirs in zip(got, wanted, strict=True):
        assert theirs.abs().max() > 1e-8
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    folded = model.fold()
    torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-10)
    before = sum(y.shape[-2] for given in inputs for y in (given.tokens, given.keys) if y is not None)
    collapsed = {"zeroed": backbone.info.depth, "zeroed, no keys": backbone.info.depth, "zeroed, first": 1}
    after = sum(given.keys.shape[-2] for given in folded.inputs if given.keys is not None)
    assert after == before - collapsed.get(name, 0)  # of two zero rows, one


@pytest.mark.parametrize("name", ["cls", "registers, avg", "eva", "swin"])
@pytest.mark.parametrize("pooling", ["own", "all"])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_zeroed_prompts_that_travel_are_not_collapsed(name, depth, pooling, images, make_backbone, make_tuned):
    backbone = make_backbone(name)
    visual = pv.VPT(length=4, depth=depth, pooling=pooling)
    model = make_tuned(backbone, E2VPT(prompts=visual, kv=KeyValue(length=2), masks=VARIANTS["zeroed"].masks)).eval()
    expected, folded = model(images), model.fold()
    torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-10)
    one_by_one = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(one_by_one, expected, rtol=0, atol=1e-11)
    travels = [True] + [False] * (backbone.info.depth - 1) if depth == "shallow" else [False] * backbone.info.depth
    travels[-1] |= pooling == "all" and depth == "deep"
    rows = [given.tokens is not None for given in folded.inputs]
    assert rows == travels
    assert all(given.tokens is None or given.tokens.shape[0] == 4 for given in folded.inputs)
    keys = [given.keys.shape[-2] for given in folded.inputs]
    assert keys == [2 if travel or depth == "shallow" else 5 for travel in travels]
