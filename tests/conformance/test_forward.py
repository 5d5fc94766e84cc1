"""The drive against the papers' own way: concatenate, run timm's blocks, overwrite. Slow, and easy to believe."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import promptvit as pv
from promptvit.backbones.base import NOTHING

VARIANTS = {
    "shallow": pv.VPT(length=4, depth="shallow"),
    "deep": pv.VPT(length=4, depth="deep"),
    "one prompt": pv.VPT(length=1, depth="deep"),
    "shallow, projected": pv.VPT(length=3, depth="shallow", project=7),
    "deep, projected": pv.VPT(length=3, depth="deep", project=7),
}


def embedded(vit, images):
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))


def literal_features(vit, images, prompts):
    """`prompts` [S, P, D] or [S, B, P, D] stand behind the prefix tokens; S = 1 travels, S = depth is overwritten."""
    x = embedded(vit, images)
    prefix, length = vit.num_prefix_tokens, prompts.shape[-2]
    for index, block in enumerate(vit.blocks):
        if index < len(prompts):
            patches = x[:, prefix:] if index == 0 else x[:, prefix + length :]
            x = torch.cat([x[:, :prefix], prompts[index].expand(len(images), -1, -1), patches], dim=1)
        x = block(x)
    x = torch.cat([x[:, :prefix], x[:, prefix + length :]], dim=1)  # nobody reads prompt rows
    return vit.forward_head(vit.norm(x), pre_logits=True)


def literal_blocks(vit, images, inputs):
    """Any `BlockInput` at any block: prompts behind the image rows, per-head keys and values in a plain softmax."""
    x = embedded(vit, images)
    batch, rows = x.shape[:2]
    for block, given in zip(vit.blocks, inputs, strict=True):
        if given.tokens is not None:
            x = torch.cat([x[:, :rows], given.tokens.expand(batch, -1, -1)], dim=1)
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).reshape(batch, -1, 3, attention.num_heads, attention.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
        if given.keys is not None:
            k = torch.cat([k, given.keys.expand(batch, -1, -1, -1)], dim=2)
            v = torch.cat([v, given.values.expand(batch, -1, -1, -1)], dim=2)
        weights = (q @ k.mT / attention.head_dim**0.5).softmax(dim=-1)
        x = x + block.ls1(attention.proj((weights @ v).transpose(1, 2).flatten(2)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return vit.forward_head(vit.norm(x[:, :rows]), pre_logits=True)


def gradients(model, logits):
    """Of a loss that weighs every logit differently, by parameter name."""
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad((logits * weights).sum(), list(trained.values())), strict=True))


def assert_close(got, expected, tolerance):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-6, f"{name} has no gradient to compare"
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=tolerance)


def test_without_prompts_it_is_timms_own_forward(any_backbone, images):
    torch.testing.assert_close(any_backbone(images), any_backbone.model(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_fast_path_equals_the_literal_loop(vit, variant, images, make_tuned):
    model = make_tuned(vit, variant)
    prompts = torch.stack([given.tokens for given in model.delta(vit, 3) if given.tokens is not None])
    logits, literal = model(images), model.head(literal_features(vit.model, images, prompts))
    torch.testing.assert_close(logits, literal, rtol=0, atol=1e-10)
    assert_close(gradients(model, logits), gradients(model, literal), 1e-9)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_prompts_of_each_image_equal_the_literal_loop(vit, depth, images):
    blocks = vit.info.depth if depth == "deep" else 1
    prompts = torch.randn(blocks, 3, 4, 24, dtype=torch.float64, requires_grad=True)
    inputs = [pv.BlockInput(tokens=tokens) for tokens in prompts]
    features = vit(images, (*inputs, *[NOTHING] * (vit.info.depth - blocks)))
    literal = literal_features(vit.model, images, prompts)
    torch.testing.assert_close(features, literal, rtol=0, atol=1e-10)
    got, expected = (torch.autograd.grad(f.square().sum(), prompts)[0] for f in (features, literal))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def block_input(vit, *, tokens=None, keys=None, batch=()):
    heads, width = vit.info.heads[0], vit.info.head_width
    per_head = () if keys is None else torch.randn(2, *batch, heads, keys, width, dtype=torch.float64)
    return pv.BlockInput(
        tokens=None if tokens is None else torch.randn(*batch, tokens, vit.info.width, dtype=torch.float64),
        **dict(zip(("keys", "values"), per_head, strict=False)),
    )


@pytest.mark.parametrize(
    "kinds",
    [
        [{"keys": 2}] * 3,
        [{"keys": 2, "batch": (3,)}] * 3,
        [{"tokens": 4, "keys": 2}, {"tokens": 3, "keys": 1, "batch": (3,)}, {"tokens": 1}],
        [{"tokens": 4}, {"keys": 2}, {}],
        [{}, {"tokens": 4}, {"tokens": 2, "keys": 3}],
        [{"tokens": 4}, {}, {"tokens": 2}],
        [{"tokens": 4}, {"tokens": 0}, {}],
        [{"tokens": 4}, {}, {"tokens": 0, "keys": 1}],
        [{}, {}, {"tokens": 4, "batch": (3,)}],
    ],
    ids=str,
)
def test_any_input_at_any_block_equals_the_literal_loop(vit, kinds, images):
    inputs = [block_input(vit, **kind) for kind in kinds]
    expected = literal_blocks(vit.model, images, inputs)
    assert (expected - vit(images)).abs().max() > 1e-4
    torch.testing.assert_close(vit(images, inputs), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(vit(images, vit.fold(inputs)), expected, rtol=0, atol=1e-10)


def test_shared_tokens_join_keys_of_each_image(plain, images):
    mixed = block_input(plain, keys=2, batch=(3,))
    tokens = torch.randn(4, 24, dtype=torch.float64)
    inputs = [pv.BlockInput(tokens=tokens, keys=mixed.keys, values=mixed.values)] * 3
    torch.testing.assert_close(plain(images, inputs), literal_blocks(plain.model, images, inputs), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="keys without values"):
        pv.BlockInput(keys=mixed.keys)


def test_prompts_of_no_rows_are_no_prompts(vit, images):
    nothing = pv.BlockInput(tokens=torch.empty(0, 24, dtype=torch.float64))
    torch.testing.assert_close(vit(images, [nothing] * 3), vit.model(images), rtol=0, atol=1e-12)


def test_images_do_not_leak_into_each_other(model, images):
    model.eval()
    one_by_one = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), one_by_one, rtol=1e-11, atol=1e-12)
    assert model(images[:0]).shape == (0, 5)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_the_order_of_prompts_means_nothing(vit, depth, images, make_tuned):
    model = make_tuned(vit, pv.VPT(length=5, depth=depth))
    before = model(images)
    with torch.no_grad():
        for prompts in model.delta.parameters():  # [S, P, D]
            prompts.copy_(prompts[:, torch.tensor([3, 0, 4, 1, 2])])
    torch.testing.assert_close(model(images), before, rtol=0, atol=1e-12)


def test_the_folded_model_is_the_same_function(model, images):
    expected = model.eval()(images)
    folded = model.fold()
    torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-12)
    fresh = [given.tokens is not None for given in model.delta(model.backbone, 1)]
    if fresh and all(fresh) and model.method.readout == "own":  # then nobody reads what becomes of a prompt
        assert all(given.tokens is None and given.keys is not None for given in folded.inputs)
    assert not any(given.keys is not None and given.keys.requires_grad for given in folded.inputs)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("readout", ["image", "prompt", "all"])
def test_pooled_rows_are_those_of_the_literal_loop(vit, readout, depth, images, make_tuned):
    model = make_tuned(vit, pv.VPT(length=4, depth=depth, pooling=readout))
    inputs = model.delta(vit, 3)
    x, prefix = embedded(vit.model, images), vit.info.prefix
    rows = x.shape[1]
    for block, given in zip(vit.model.blocks, inputs, strict=True):
        if given.tokens is not None:
            x = torch.cat([x[:, :rows], given.tokens.expand(3, -1, -1)], dim=1)
        x = block(x)
    x = vit.model.norm(x)
    read = {"image": x[:, prefix:rows], "prompt": x[:, rows:], "all": x[:, prefix:]}[readout]
    literal = vit.model.fc_norm(read.mean(dim=1))
    torch.testing.assert_close(model.features(images), literal, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.eval().fold()(images), model.head(literal), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 24), (24, 16)])
def test_a_dynamic_backbone_takes_prompts_at_another_size(size, make_vit, make_tuned):
    backbone = pv.from_timm(make_vit(dynamic_img_size=True))
    model = make_tuned(backbone, pv.VPT(length=2))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    prompts = torch.stack([given.tokens for given in model.delta(backbone, 2)])
    literal = model.head(literal_features(backbone.model, images, prompts))
    torch.testing.assert_close(model(images), literal, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_gradients_do_not_depend_on_the_attention_kernel(depth, batch, plain, images, make_tuned):
    """The plain kernel saves other views of keys and values than the fused one, at batch 1 under the same address."""
    model = make_tuned(plain, pv.VPT(length=4, depth=depth))
    fused = gradients(model, model(images[:batch]))
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(gradients(model, model(images[:batch])), fused, 1e-9)
