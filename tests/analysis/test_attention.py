import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import promptvit as pv
from promptvit.analysis.attention import attention_map, attention_rollout, prompt_attention
from promptvit.backbones.attention import KEY, VALUE, attend, project
from promptvit.backbones.base import NOTHING
from promptvit.backbones.swin import blocks_of, grid_at
from promptvit.backbones.walk import walk
from promptvit.errors import ConfigError, DataError
from promptvit.preprocessing import Preprocessing

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
ROTARY = {"use_rot_pos_emb": True, "global_pool": "token"}
PLAIN = {
    "cls": lambda: VisionTransformer(**SMALL),
    "registers, avg": lambda: VisionTransformer(**SMALL, reg_tokens=4, global_pool="avg", qk_norm=True),
    "rotation": lambda: Eva(**SMALL, **ROTARY, num_reg_tokens=2, rope_type="dinov3", rope_rotate_half=True),
    "grouped keys": lambda: Eva(**SMALL, **ROTARY, attn_type="rope", qkv_fused=False, num_kv_heads=(2, 1, 1)),
}
WINDOWS = {"img_size": 14, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 3}
"""7x7 patches, then 4x4: windows are shifted and filled up, and a row and a column join for the merging."""
METHODS = {
    "deep": pv.VPT(length=3),
    "shallow": pv.VPT(length=3, depth="shallow"),
    "first blocks": pv.VPT(length=3, blocks=2, after="drop"),
    "last block": pv.VPT(length=3, blocks=1, end="last"),
    "mean of the prompts": pv.VPT(length=3, pooling="prompt"),
    "none": pv.Linear(),
}


def swin():
    return SwinTransformer(**WINDOWS, num_classes=0, drop_path_rate=0.0)


@pytest.fixture
def make_model(make_small):
    """A float64 model in train mode, with prompts away from zero."""

    def make(construct, method, size=16):
        backbone = pv.from_timm(make_small(construct), preprocessing=Preprocessing(size=(size, size)))
        model = pv.tune(backbone, method, 5).double()
        with torch.no_grad():
            for parameter in model.delta.parameters():
                parameter.copy_(torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, dtype=torch.float64)


def plain_maps(model, images, monkeypatch):
    """[B, H, N+P, N+P] of each block from queries and keys of timm's own attention, with prompts behind the prefix
    there and at the end here; and the number of image rows."""
    asked, maps, length = [], [], 0
    inner, prefix, attend = model.backbone.model, model.backbone.info.prefix, F.scaled_dot_product_attention
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, *rest, **more: asked.append((q, k)) or attend(q, k, *rest)
        )
        embedded = inner._pos_embed(inner.patch_embed(images))
        x, rope = embedded if isinstance(inner, Eva) else (embedded, None)
        x, n = inner.norm_pre(x), x.shape[1]
        inputs = model.delta(model.backbone, len(images)) or [NOTHING] * len(inner.blocks)
        for block, given in zip(inner.blocks, inputs, strict=True):
            if given.tokens is not None:
                x = torch.cat([x[:, :prefix], given.tokens.expand(len(x), -1, -1), x[:, prefix + length :]], dim=1)
                length = given.tokens.shape[-2]
            if isinstance(inner, Eva):
                block.attn.num_prefix_tokens = prefix + length
                x = block(x, rope=rope)
                block.attn.num_prefix_tokens = prefix
            else:
                x = block(x)
            q, k = asked.pop()
            shares = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
            order = [*range(prefix), *range(prefix + length, n + length), *range(prefix, prefix + length)]
            maps.append(shares[:, :, order][..., order])
    return maps, n


def window_map(block, x, p, grid):
    """[N+P, N+P] of one image, the mean over heads, one window after the other; what fills windows up is left out."""
    (height, width), (wh, ww), (sh, sw) = grid, block.window_size, block.shift_size
    n, length, attention = height * width, len(p), block.attn
    down, across = -(-height // wh) * wh, -(-width // ww) * ww
    numbers = torch.full((down, across), -1)
    numbers[:height, :width] = torch.arange(n).view(height, width).roll((-sh, -sw), dims=(0, 1))
    wrapped = 2 * (torch.arange(down) >= down - sh)[:, None].long() + (torch.arange(across) >= across - sw)[None].long()
    found = x.new_zeros(n + length, n + length)
    windows = [(top, left) for top in range(0, down, wh) for left in range(0, across, ww)]
    for top, left in windows:
        here = slice(top, top + wh), slice(left, left + ww)
        inside, area = numbers[here].flatten().tolist(), wrapped[here].flatten()
        rows = [block.norm1(x[i]) if i >= 0 else torch.zeros_like(x[0]) for i in inside]
        qkv = attention.qkv(torch.stack([*rows, *block.norm1(p)])).unflatten(-1, (3, attention.num_heads, -1))
        q, k = qkv[:, 0].transpose(0, 1), qkv[:, 1].transpose(0, 1)  # [H, A+P, d]
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        for i in range(wh * ww):
            for j in range(wh * ww):
                place = (i // ww - j // ww + wh - 1) * (2 * ww - 1) + i % ww - j % ww + ww - 1
                logits[:, i, j] += attention.relative_position_bias_table[place] - 100 * (area[i] != area[j])
        shares = logits.softmax(dim=-1).mean(dim=0)
        places = [*inside, *range(n, n + length)]
        for i, row in enumerate(places):
            for j, column in enumerate(places):
                if row >= 0 and column >= 0:
                    found[row, column] += shares[i, j] / (len(windows) if row >= n else 1)
    return found / found.sum(dim=-1, keepdim=True)


def swin_maps(model, images):
    """The maps [B, N+P, N+P] of each block, and the matrix [N', N] of the merging before it, if any."""
    backbone, maps, mergings, before = model.backbone, [], [], 0
    entering = walk(backbone, images, model.delta(backbone, len(images)))
    for rows, (stage, block) in zip(entering, blocks_of(backbone.model), strict=False):
        mergings.append(None if stage == before else literal_merging(grid_at(rows.positions.grid, before)))
        before, grid = stage, grid_at(rows.positions.grid, stage)
        each = [window_map(block, x, p, grid) for x, p in zip(rows.image, rows.prompts, strict=True)]
        maps.append(torch.stack(each))
    return maps, mergings


def literal_merging(grid):
    """The mean of two by two patches, as far as there are any."""
    (height, width), wide = grid, -(-grid[1] // 2)
    matrix = torch.zeros(-(-height // 2) * wide, height * width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            matrix[y // 2 * wide + x // 2, y * width + x] = 1
    return matrix / matrix.sum(dim=1, keepdim=True)


def literal_rollout(maps, tokens, n, mergings=None, fresh=1):
    """Of the maps [N+P, N+P] of one image, matrices alone. `tokens`: fresh prompts at each block, if any, which start
    as `fresh` times the unit vectors of their slots from the second block on."""
    columns = torch.eye(n + max(count or 0 for count in tokens), dtype=torch.float64)
    rolled = columns[:n]
    for index, shares in enumerate(maps):
        if mergings and mergings[index] is not None:
            beside = torch.eye(len(rolled) - mergings[index].shape[1], dtype=torch.float64)
            rolled = torch.block_diag(mergings[index], beside) @ rolled
        if tokens[index] is not None:
            slots = columns[n : n + tokens[index]] * (fresh if index else 1)
            rolled = torch.cat([rolled[: len(shares) - tokens[index]], slots])
        rolled = (shares + torch.eye(len(shares), dtype=torch.float64)) / 2 @ rolled
    return rolled


def tokens_of(model):
    """How many fresh prompts each block gets; None where there is no change."""
    backbone = model.backbone
    given = model.delta(backbone, 1) or [NOTHING] * backbone.info.depth
    return [None if each.tokens is None else each.tokens.shape[-2] for each in given]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PLAIN)
def test_rollout_is_the_product_of_timms_own_maps(name, method, make_model, images, monkeypatch):
    model = make_model(PLAIN[name], METHODS[method])
    maps, n = plain_maps(model, images, monkeypatch)
    rollout = attention_rollout(model, images)
    assert model.training
    tokens, prefix = tokens_of(model), model.backbone.info.prefix
    for number, shares in enumerate(rollout.shares):
        expected = literal_rollout([each[number].mean(dim=0) for each in maps], tokens, n)
        torch.testing.assert_close(shares, expected, rtol=0, atol=1e-12)
        read = {"cls": expected[:1], "registers, avg": expected[prefix:n]}.get(name, expected[:1])
        read = expected[n:] if method == "mean of the prompts" else read
        torch.testing.assert_close(rollout.maps[number].flatten(), read.mean(dim=0)[prefix:n], rtol=0, atol=1e-12)
        torch.testing.assert_close(rollout.of_prompts[number], read.mean(dim=0)[n:].sum(), rtol=0, atol=1e-12)
    assert rollout.maps.shape == (2, 4, 4)
    assert (rollout.of_prompts == 0).all() == (method == "none")
    torch.testing.assert_close(rollout.shares.sum(dim=-1), torch.ones_like(rollout.shares[..., 0]), rtol=0, atol=1e-12)


def test_image_columns_are_those_of_prompts_that_start_at_zero(make_model, images, monkeypatch):
    model = make_model(PLAIN["cls"], pv.VPT(length=3))
    maps, n = plain_maps(model, images, monkeypatch)
    for number, shares in enumerate(attention_rollout(model, images).shares):
        zeroed = literal_rollout([each[number].mean(dim=0) for each in maps], tokens_of(model), n, fresh=0)
        torch.testing.assert_close(shares[:, :n], zeroed[:, :n], rtol=0, atol=1e-12)
        assert zeroed.sum(dim=-1).max() < 0.99


@pytest.mark.parametrize("method", ["deep", "shallow", "first blocks", "none"])
def test_rollout_through_windows_is_the_product_of_literal_maps(method, make_model):
    images = torch.randn(2, 3, 14, 14, dtype=torch.float64)
    model = make_model(swin, METHODS[method], size=14).eval()
    with torch.no_grad():
        maps, mergings = swin_maps(model, images)
    rollout = attention_rollout(model, images)
    for number, shares in enumerate(rollout.shares):
        expected = literal_rollout([each[number] for each in maps], tokens_of(model), 49, mergings)
        torch.testing.assert_close(shares, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(rollout.maps[number].flatten(), expected[:16].mean(dim=0)[:49], rtol=0, atol=1e-12)
    assert rollout.maps.shape == (2, 7, 7)
    whole = rollout.maps.sum(dim=(1, 2)) + rollout.of_prompts
    torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-12)
    torch.testing.assert_close(rollout.shares.sum(dim=-1), torch.ones_like(rollout.shares[..., 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_a_map_with_key_value_prompts_gives_what_attention_gives(name, make_model, images):
    model = make_model(PLAIN[name], pv.E2VPT(prompts=pv.VPT(length=3), kv=pv.KeyValue(length=2, values="separate")))
    backbone, inputs = model.eval().backbone, model.delta(model.backbone, 2)
    for rows, given in zip(walk(backbone, images, inputs), inputs, strict=False):
        block, x = backbone.model.blocks[rows.index], rows.x
        attention, normed = block.attn, backbone.before_attention(rows.index, x)
        v = project(attention, normed, KEY, VALUE)[1].transpose(1, 2)
        v = v.repeat_interleave(attention.num_heads // v.shape[1], dim=1)
        values = torch.cat([v, given.values.expand(2, -1, -1, -1)], dim=2)
        out = attention.proj(attention.norm((attention_map(backbone, rows, given) @ values).transpose(1, 2).flatten(2)))
        rotation = backbone.rotation(rows.index, x.shape[1], rows.positions)
        expected = attend(attention, normed, x.shape[1], given.keys, given.values, rotation=rotation)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [PLAIN["cls"], lambda: SwinTransformer(**WINDOWS | {"img_size": 16})])
@pytest.mark.parametrize("prompts", [pv.VPT(length=3), pv.VPT(length=3, depth="shallow"), None])
def test_key_value_prompts_have_columns_of_their_own(make, prompts, make_model, images):
    model = make_model(make, pv.E2VPT(prompts=prompts, kv=pv.KeyValue(length=2)))
    rollout, n = attention_rollout(model, images), model.backbone.info.rows[0]
    assert rollout.shares.shape[-1] == n + (3 if prompts else 0) + 2
    torch.testing.assert_close(rollout.shares.sum(dim=-1), torch.ones_like(rollout.shares[..., 0]), rtol=0, atol=1e-12)
    assert (rollout.shares[..., -2:] > 0).all()


@pytest.mark.parametrize("method", ["deep", "shallow", "first blocks", "mean of the prompts"])
@pytest.mark.parametrize("name", ["cls", "registers, avg"])
def test_attention_to_prompts_is_their_share_of_timms_own_maps(name, method, make_model, images, monkeypatch):
    model = make_model(PLAIN[name], METHODS[method])
    maps, n = plain_maps(model, images, monkeypatch)
    found, prefix = prompt_attention(model, [images[:1], images[1:]]), model.backbone.info.prefix
    assert model.training
    for block, shares in zip(found, maps, strict=True):
        if shares.shape[-1] == n:
            assert block is None
            continue
        read = slice(n, None) if method == "mean of the prompts" else slice(0, 1) if name == "cls" else slice(prefix, n)
        assert block.mass == pytest.approx(shares[:, :, read, n:].sum(dim=-1).mean().item(), abs=1e-12)
        assert block.even == pytest.approx(3 / (n + 3))


def test_attention_to_prompts_in_windows_is_their_share_of_literal_maps(make_model):
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)  # 6x6 patches, then 3x3: whole windows
    model = make_model(lambda: SwinTransformer(**WINDOWS | {"img_size": 12}), METHODS["deep"], size=12).eval()
    with torch.no_grad():
        maps, _ = swin_maps(model, images)
    for block, shares in zip(prompt_attention(model, [images]), maps, strict=True):
        n = shares.shape[-1] - 3
        assert block.mass == pytest.approx(shares[:, :n, n:].sum(dim=-1).mean().item(), abs=1e-12)
        assert block.even == pytest.approx(3 / 12)


def test_key_value_prompts_count(make_model, images):
    model = make_model(PLAIN["cls"], pv.E2VPT(prompts=None, kv=pv.KeyValue(length=2, blocks="first")))
    first, *others = prompt_attention(model, [images])
    assert first.even == pytest.approx(2 / 19)
    assert 0 < first.mass < 1
    assert others == [None, None]


def test_what_has_no_patches_or_no_prompts_is_refused(make_model, images):
    for ask in (attention_rollout, lambda model, images: prompt_attention(model, [images])):
        with pytest.raises(ConfigError, match="a resnet backbone: it has no patch tokens"):
            ask(make_model(resnet, pv.Linear()), images)
        with pytest.raises(ConfigError, match="the method pixel enlarges the images"):
            ask(make_model(PLAIN["cls"], pv.Pixel(location="pad", length=2)), images)
    for method in (pv.Linear(), pv.Full(), pv.Add()):
        with pytest.raises(ConfigError, match=f"the method {method.kind} puts no prompts"):
            prompt_attention(make_model(PLAIN["cls"], method), [images])
    for nothing in ([], [images[:0]]):
        with pytest.raises(DataError, match="no images"):
            prompt_attention(make_model(PLAIN["cls"], METHODS["deep"]), nothing)


def resnet():
    return ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(6, 8, 10, 12), num_classes=0)
