import copy
from itertools import chain

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import promptvit as pv
from promptvit.backbones.base import NOTHING
from promptvit.backbones.load import backbone_names, from_timm
from promptvit.backbones.windows import attend_in_windows
from promptvit.errors import BackboneError, ConfigError

NAMES = sorted(timm.list_models(module="swin_transformer"))
SHAPES = {
    "square": {},
    "oblong": {"img_size": (12, 20), "window_size": (2, 3)},  # 6x10 patches, then 3x5: not whole windows
    "odd": {"img_size": 14, "window_size": 3},  # 7x7, then 4x4: a row and a column join for the merging
    "three stages": {"img_size": 32, "depths": (2, 1, 2), "num_heads": (1, 2, 4)},
    "one window": {"window_size": 4, "always_partition": True},  # which is shifted all the same
    "dynamic": {"img_size": 32, "dynamic_img_size": True},
}
OPTIONS = {
    "max": {"global_pool": "max"},
    "avgmax": {"global_pool": "avgmax"},
    "no qkv bias": {"qkv_bias": False},
    "wide heads": {"head_dim": 6},
    "windows of each stage": {"window_size": (4, 2)},
    "grey": {"in_chans": 1},
}


@pytest.fixture
def make(make_small):
    """A small float64 Swin with shifted windows in two stages."""
    small = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4)}
    small |= {"window_size": 2, "num_classes": 0, "drop_path_rate": 0.0}
    return lambda **arguments: make_small(lambda: SwinTransformer(**small | arguments))


@pytest.fixture(params=SHAPES)
def swin(request, make):
    """A backbone of each shape."""
    return from_timm(make(**SHAPES[request.param]))


def pixels(backbone, batch=3):
    """Different images; of another size than the model's own where it takes any."""
    size = (12, 18) if backbone.model.dynamic_img_size else backbone.model.patch_embed.img_size
    return torch.randn(batch, backbone.info.channels, *size, dtype=torch.float64)


def block_input(backbone, index, *, tokens=None, keys=None, batch=()):
    """Random prompts for block `index`: `tokens` rows, `keys` rows per head, of each of `batch` images."""
    width, heads = backbone.info.widths[index], backbone.info.heads[index]
    per_head = () if keys is None else torch.randn(2, *batch, heads, keys, width // heads, dtype=torch.float64)
    return pv.BlockInput(
        tokens=None if tokens is None else torch.randn(*batch, tokens, width, dtype=torch.float64).requires_grad_(),
        **dict(zip(("keys", "values"), per_head, strict=False)),
    )


def prompts(backbone, depth, length=3, batch=()):
    """VPT's inputs, shallow or deep, and their tokens."""
    blocks = backbone.info.depth if depth == "deep" else 1
    inputs = [block_input(backbone, index, tokens=length, batch=batch) for index in range(blocks)]
    return [*inputs, *[NOTHING] * (backbone.info.depth - blocks)], [given.tokens for given in inputs]


def literal_features(model, images, inputs, readout="own"):
    """One image after the other, one window after the other, prompts first."""
    features = []
    for number, image in enumerate(images):
        x, p, own = model.patch_embed(image[None])[0], None, iter([of_image(given, number) for given in inputs])
        for stage, layer in enumerate(model.layers):
            if stage > 0:
                x = layer.downsample(x[None])[0]
                p = None if p is None else layer.downsample.reduction(layer.downsample.norm(torch.cat([p] * 4, dim=-1)))
            for block in layer.blocks:
                tokens, keys, values = next(own)
                p = p if tokens is None else tokens
                p = x.new_zeros(0, x.shape[-1]) if p is None else p
                x, p = literal_block(block, x, p, keys, values)
        rows = {"own": x.flatten(0, 1), "prompt": p, "all": torch.cat([p, x.flatten(0, 1)])}[readout]
        features.append(model.norm(rows).mean(dim=0))
    return torch.stack(features)


def of_image(given, number):
    """Tokens [P, D], keys and values [H, T, d] of one image."""
    shared = {"tokens": 2, "keys": 3, "values": 3}
    parts = {name: getattr(given, name) for name in shared}
    return [y if y is None or y.ndim == shared[name] else y[number] for name, y in parts.items()]


def literal_block(block, x, p, keys, values):
    """Image rows `x` [h, w, D] and prompt rows `p` [P, D] after one block."""
    (height, width), (wh, ww), (sh, sw) = x.shape[:2], block.window_size, block.shift_size
    normed = block.norm1(x).roll((-sh, -sw), dims=(0, 1))
    filled = x.new_zeros(-(-height // wh) * wh, -(-width // ww) * ww, x.shape[-1])
    filled[:height, :width] = normed
    down, across = torch.arange(len(filled)) >= len(filled) - sh, torch.arange(filled.shape[1]) >= filled.shape[1] - sw
    wrapped = 2 * down[:, None].long() + across[None].long()  # what came around keeps to itself
    out, of_prompts = torch.zeros_like(filled), []
    for top in range(0, len(filled), wh):
        for left in range(0, filled.shape[1], ww):
            here = slice(top, top + wh), slice(left, left + ww)
            rows = torch.cat([block.norm1(p), filled[here].flatten(0, 1)])
            rows = literal_attention(block.attn, rows, len(p), wrapped[here].flatten(), keys, values)
            of_prompts.append(rows[: len(p)])
            out[here] = rows[len(p) :].view(wh, ww, -1)
    x = x + out[:height, :width].roll((sh, sw), dims=(0, 1))
    p = p + torch.stack(of_prompts).mean(dim=0)
    return x + block.mlp(block.norm2(x)), p + block.mlp(block.norm2(p))


def literal_attention(attention, rows, length, wrapped, keys, values):
    """Prompt rows, then the rows of one window; nothing that involves a prompt has a bias or is masked."""
    q, k, v = attention.qkv(rows).reshape(len(rows), 3, attention.num_heads, -1).permute(1, 2, 0, 3)
    if keys is not None:
        k, v = torch.cat([k, keys], dim=1), torch.cat([v, values], dim=1)
    wh, ww = attention.window_size
    bias = rows.new_zeros(attention.num_heads, len(rows), k.shape[1])
    for i in range(wh * ww):
        for j in range(wh * ww):
            offset = (i // ww - j // ww + wh - 1) * (2 * ww - 1) + i % ww - j % ww + ww - 1
            shown = 0 if wrapped[i] == wrapped[j] else -100
            bias[:, length + i, length + j] = attention.relative_position_bias_table[offset] + shown
    weights = (q @ k.mT * attention.scale + bias).softmax(dim=-1)
    return attention.proj((weights @ v).transpose(0, 1).flatten(1))


@torch.no_grad()
def assert_equals_timm(model):
    backbone = from_timm(model)
    images = pixels(backbone)
    expected = model(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(backbone(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_without_prompts_it_is_timms_own_model(name, make_small):
    assert len(NAMES) == 9
    assert name in backbone_names(pretrained=False)
    window = (2, 2, 4, 2) if "s3" in name else {"7": 2, "2": 3}[name.rpartition("_")[0][-1]]
    small = {"img_size": 32, "embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4), "num_classes": 0}
    assert_equals_timm(make_small(lambda: timm.create_model(name, **small, window_size=window)))


@pytest.mark.parametrize("option", [*SHAPES, *OPTIONS])
def test_every_architecture_option_is_driven(option, make):
    assert_equals_timm(make(**(SHAPES | OPTIONS)[option]))


def test_a_model_with_a_classifier_gives_its_features(make):
    model = make(num_classes=5)
    backbone = from_timm(model)
    images = pixels(backbone)
    torch.testing.assert_close(model.head.fc(backbone(images)), model(images), rtol=0, atol=1e-12)
    assert not [name for name in backbone.body() if name.startswith("head")]


@pytest.mark.parametrize("readout", ["own", "all"])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_the_drive_equals_the_literal_loop(swin, depth, readout):
    images, (inputs, trained) = pixels(swin), prompts(swin, depth)
    features, literal = swin(images, inputs, readout), literal_features(swin.model, images, inputs, readout)
    torch.testing.assert_close(features, literal, rtol=0, atol=1e-10)
    weights = torch.linspace(-1, 2, features.numel(), dtype=torch.float64).view_as(features)
    got, expected = (torch.autograd.grad((y * weights).sum(), trained) for y in (features, literal))
    for mine, theirs in zip(got, expected, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "kinds",
    [
        [{"keys": 2}] * 4,
        [{"keys": 2, "batch": (3,)}] * 4,
        [{"tokens": 4, "batch": (3,)}, {}, {}, {}],
        [{"tokens": 4, "batch": (3,)}] * 4,
        [{"tokens": 4, "keys": 2}, {"tokens": 3, "keys": 1, "batch": (3,)}, {"tokens": 1}, {"keys": 3}],
        [{"tokens": 4}, {"keys": 2}, {}, {"keys": 1, "batch": (3,)}],
        [{}, {"tokens": 4}, {}, {"tokens": 2, "keys": 3}],
        [{"tokens": 4}, {}, {"tokens": 0}, {}],
        [{"tokens": 4}, {"tokens": 0, "keys": 1}, {"tokens": 2}, {}],
        [{}, {}, {}, {"tokens": 4, "batch": (3,)}],
    ],
    ids=str,
)
@torch.no_grad()
def test_any_input_at_any_block_equals_the_literal_loop(kinds, make):
    swin = from_timm(make(**SHAPES["oblong"]))
    inputs = [block_input(swin, index, **kind) for index, kind in enumerate(kinds)]
    images = pixels(swin)
    lengths = [0, *(kind["tokens"] for kind in kinds if "tokens" in kind)]
    for readout in ("own", "all", "prompt") if lengths[-1] > 0 else ("own", "all"):
        expected = literal_features(swin.model, images, inputs, readout)
        assert (expected - swin(images)).abs().max() > 1e-4
        torch.testing.assert_close(swin(images, inputs, readout), expected, rtol=0, atol=1e-10)
        folded = swin.fold(inputs, readout)
        torch.testing.assert_close(swin(images, folded, readout), expected, rtol=0, atol=1e-10)


def test_deep_prompts_fold_to_keys_that_all_images_and_windows_share(swin):
    inputs, tokens = prompts(swin, "deep")
    folded = swin.fold(inputs)
    assert all(given.tokens is None for given in folded)
    heads, width = swin.info.heads, swin.info.head_width
    assert [given.keys.shape for given in folded] == [(h, len(tokens[0]), width) for h in heads]
    images = pixels(swin)
    torch.testing.assert_close(swin(images, folded), swin(images, inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("of_each_image", [False, True])
@pytest.mark.parametrize("readout", ["own", "all"])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
@torch.no_grad()
def test_images_do_not_leak_into_each_other(swin, depth, readout, of_each_image):
    images = pixels(swin)
    inputs, _ = prompts(swin, depth, batch=(3,) if of_each_image else ())
    one_by_one = [
        swin(image[None], [pv.BlockInput(tokens=of_image(given, number)[0]) for given in inputs], readout)
        for number, image in enumerate(images)
    ]
    torch.testing.assert_close(swin(images, inputs, readout), torch.cat(one_by_one), rtol=0, atol=1e-12)
    assert swin(images[:0], prompts(swin, depth)[0], readout).shape == (0, swin.info.width)


@torch.no_grad()
def test_pairs_with_a_prompt_have_no_position_bias_and_no_mask(make):
    """Scores are bias and mask alone, values are 1 for prompts and 0 for rows: each result is the share of prompts."""
    block = make().layers[0].blocks[1]  # 8x8 patches in windows of 2x2, shifted by 1
    attention, length, given = block.attn, 3, 5
    for parameter in (attention.qkv.weight, attention.qkv.bias, attention.proj.bias):
        parameter.zero_()
    attention.proj.weight.copy_(torch.eye(8))
    attention.relative_position_bias_table.fill_(0.7)
    values = torch.ones(2, given, 4, dtype=torch.float64)
    rows = torch.randn(1, 64 + length, 8, dtype=torch.float64)
    share = attend_in_windows(
        block, rows, 64 + length, (8, 8), pv.BlockInput(keys=torch.zeros_like(values), values=values)
    )
    position = torch.tensor([1 if i in (0, 7) else 2 for i in range(8)])  # how far the window of each row reaches
    seen = (position[:, None] * position).flatten() * torch.tensor(0.7, dtype=torch.float64).exp()
    expected = torch.cat(
        [given / (given + length + seen), torch.full_like(seen[:length], given / (given + length + 4))]
    )
    torch.testing.assert_close(share, expected[None, :, None].expand(1, -1, 8), rtol=0, atol=1e-12)


def test_any_module_may_stand_in_for_the_projection_and_the_mlp(swin):
    images, (inputs, _) = pixels(swin), prompts(swin, "shallow")
    expected = swin(images, inputs)
    twin = copy.deepcopy(swin)
    for layer in twin.model.layers:
        for block in layer.blocks:
            block.attn.qkv, block.mlp = nn.Sequential(block.attn.qkv), nn.Sequential(block.mlp)
    assert torch.equal(twin(images, inputs), expected)


def test_in_train_mode_it_drops_what_timm_drops(make):
    model = make(drop_path_rate=0.5, attn_drop_rate=0.2, drop_rate=0.1)
    backbone = from_timm(model)
    images, (inputs, _) = pixels(backbone), prompts(backbone, "shallow")
    quiet = backbone(images, inputs)
    backbone.train()
    torch.manual_seed(3)
    expected = model(images)
    torch.manual_seed(3)
    torch.testing.assert_close(backbone(images), expected, rtol=0, atol=1e-12)
    assert not torch.equal(backbone(images, inputs), backbone(images, inputs))
    assert torch.equal(backbone.eval()(images, inputs), quiet)


def test_the_drop_of_projections_acts_in_train_mode(make):
    backbone = from_timm(make(proj_drop_rate=0.3)).train()
    for layer in backbone.model.layers:
        for block in layer.blocks:
            block.mlp.eval()
    images, (inputs, _) = pixels(backbone), prompts(backbone, "deep")
    assert not torch.equal(backbone(images, inputs), backbone(images, inputs))


@pytest.mark.parametrize("flag", ["ours", "timm's"])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_gradients_are_equal_under_checkpointing(flag, depth, make):
    swin = from_timm(make())
    images, (inputs, trained) = pixels(swin), prompts(swin, depth)
    features = swin(images, inputs)
    expected = torch.autograd.grad(features.square().sum(), trained)
    assert not swin.checkpointing
    (swin.set_checkpointing if flag == "ours" else swin.model.set_grad_checkpointing)(True)
    assert swin.checkpointing
    calls = []
    hook = swin.model.layers[1].blocks[0].norm2.register_forward_hook(lambda *_: calls.append(1))
    again = swin(images, inputs)
    got = torch.autograd.grad(again.square().sum(), trained)
    hook.remove()
    assert len(calls) == 2
    torch.testing.assert_close(again, features, rtol=0, atol=0)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def count(backbone, names):
    return sum(backbone.weights()[name].numel() for name in names)


def test_swin_base_has_the_sizes_of_the_paper():
    with torch.device("meta"):
        swin = from_timm(timm.create_model("swin_base_patch4_window7_224", num_classes=0))
    info, units = swin.info, swin.units()
    assert (info.family, info.width, info.depth, info.prefix, info.cls, info.readout) == (
        *("swin", 1024, 24, 0, False, "avg"),
    )
    assert (info.patch_size, info.grid, info.head_width) == ((4, 4), (56, 56), 32)
    assert sum(info.widths) == 12_032
    assert info.rows == (3136,) * 2 + (784,) * 2 + (196,) * 18 + (49,) * 2
    assert info.heads == (4,) * 2 + (8,) * 2 + (16,) * 18 + (32,) * 2
    assert count(swin, swin.weights()) == 86_743_224
    assert count(swin, swin.biases()) == 137_216
    assert count(swin, swin.biases(position_tables=True)) == 200_760
    ends = [chain(*units[-k:], swin.last()) for k in (1, 2, 4)]
    assert [count(swin, swin.under(*names)) for names in ends] == [12_603_680, 25_205_312, 33_616_736]


@pytest.mark.parametrize("kind", ["units", "stages"])
def test_units_and_stages_part_the_model(kind, make):
    swin = from_timm(make(**SHAPES["three stages"]))
    parts = [swin.under(*names) for names in getattr(swin, kind)()]
    assert len(parts) == {"units": 5, "stages": 3}[kind]
    assert all(parts)
    ends = swin.under("patch_embed", *swin.last())
    assert sorted(chain(ends, *parts)) == sorted(swin.weights())
    merging = {"units": [1, 2], "stages": [0, 1]}[kind]
    assert [i for i, names in enumerate(parts) if any("downsample" in name for name in names)] == merging
    assert isinstance(swin.model.get_submodule(swin.first_convolution), nn.Conv2d)


@pytest.mark.parametrize(
    ("part", "culprit"),
    [
        ("patch_embed", "patch_embed is a Flatten; expected a PatchEmbed"),
        ("layers.1", "layers.1 is a Flatten; expected a SwinTransformerStage"),
        ("layers.1.downsample", "layers.1.downsample is a Flatten; expected a PatchMerging"),
        ("layers.0.blocks.1", "layers.0.blocks.1 is a Flatten; expected a SwinTransformerBlock"),
        ("layers.1.blocks.0.attn", "layers.1.blocks.0.attn is a Flatten; expected a WindowAttention"),
    ],
)
def test_other_parts_are_refused_by_class_name(part, culprit, make):
    model = make()
    model.set_submodule(part, nn.Flatten())
    with pytest.raises(BackboneError, match=culprit):
        from_timm(model)


@pytest.mark.parametrize("pool", ["", "catavgmax"])
def test_other_pooling_is_refused(pool, make):
    with pytest.raises(BackboneError, match=f"global_pool='{pool}'; expected avg, max, avgmax"):
        from_timm(make(global_pool=pool))


def test_it_cannot_be_resized_and_says_why(make):
    with pytest.raises(ConfigError, match="only in steps of 8x8 pixels"):
        from_timm(make()).resized((20, 20))
    with pytest.raises(ConfigError, match="expected 3 channels of 16x16 pixels"):
        from_timm(make())(torch.zeros(1, 3, 20, 16, dtype=torch.float64))


def test_patches_are_embedded_alone_for_prompts_of_pixels(swin):
    images = pixels(swin)
    x, positions = swin.embed(images)
    assert torch.equal(swin.embed_patches(images), x)
    assert x.shape[1] == positions.grid[0] * positions.grid[1]
    assert swin.embed_patches(torch.zeros(1, 3, 4, 10, dtype=torch.float64)).shape == (1, 10, 8)


COMPILED = """
import torch, promptvit as pv
from timm.models.swin_transformer import SwinTransformer

def gradients(model, logits):
    return torch.autograd.grad(logits.square().sum(), [p for p in model.parameters() if p.requires_grad])

torch.manual_seed(0)
for depth, dynamic in (("shallow", False), ("deep", True)):
    torch.compiler.reset()
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4), "num_classes": 0}
    swin = SwinTransformer(**size, window_size=2, dynamic_img_size=dynamic)
    model, images = pv.tune(pv.from_timm(swin), pv.VPT(depth=depth), 3), torch.randn(3, 3, 16, 16)
    logits = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)
    compiled, plain = gradients(model, logits), gradients(model, model(images))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
print("done")
"""


@pytest.mark.slow
def test_it_compiles_whole(run_python):
    assert run_python(COMPILED) == "done"
