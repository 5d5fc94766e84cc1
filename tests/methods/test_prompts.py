import copy
import dataclasses
import itertools
import math

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

import promptvit as pv
from promptvit.backbones.source import BackboneSource
from promptvit.backbones.vit import ViTBackbone
from promptvit.counting import safetensors_bytes
from promptvit.errors import ConfigError
from promptvit.methods.masks import Masks

LAYERS = 4
KINDS = {
    "cls": {},
    "registers, avg": {"reg_tokens": 4, "global_pool": "avg"},
    "no cls, map": {"class_token": False, "global_pool": "map"},
    "norm after pooling": {"global_pool": "avg", "fc_norm": True},
    "prr": {"global_pool": "prr", "reg_tokens": 1},
}


@pytest.fixture(scope="module")
def outline():
    """A backbone by its timm name, without values."""

    def make(name):
        with torch.device("meta"):
            return pv.from_timm(timm.create_model(name, num_classes=0))

    return make


@pytest.fixture
def vit(make_vit):
    """Four blocks in float64, with a CLS token."""
    return pv.from_timm(make_vit(depth=LAYERS))


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def filled(backbone, method, classes=5):
    """A float64 model with everything that is trained away from zero."""
    model = pv.tune(backbone, method, classes).double()
    with torch.no_grad():
        for parameter in [*model.delta.parameters(), *model.head.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


VARIANTS = [
    (pv.VPT(length=5, depth="shallow"), [0, None, None, None]),
    (pv.VPT(length=5, depth="deep"), [0, 1, 2, 3]),
    (pv.VPT(length=5, blocks=1), [0, None, None, None]),
    (pv.VPT(length=5, blocks=2), [0, 1, None, None]),
    (pv.VPT(length=5, blocks=2, after="drop"), [0, 1, "end", None]),
    (pv.VPT(length=5, blocks=3, after="drop"), [0, 1, 2, "end"]),
    (pv.VPT(length=5, blocks=4, after="drop"), [0, 1, 2, 3]),
    (pv.VPT(length=5, blocks=2, end="last"), [None, None, 0, 1]),
    (pv.VPT(length=5, blocks=4, end="last"), [0, 1, 2, 3]),
    (pv.VPT(length=5, shared=True), [0, 0, 0, 0]),
    (pv.VPT(length=5, shared=True, blocks=2), [0, 0, None, None]),
    (pv.VPT(length=5, shared=True, blocks=3, end="last"), [None, 0, 0, 0]),
    (pv.VPT(length=5, project=7, blocks=3, after="drop"), [0, 1, 2, "end"]),
    (pv.VPT(length=5, project=7, shared=True), [0, 0, 0, 0]),
    *[(pv.VPT(length=5, pooling=p), [0, 1, 2, 3]) for p in ("image", "prompt", "all")],
    *[(pv.VPT(length=5, pooling=p, depth="shallow"), [0, None, None, None]) for p in ("image", "prompt", "all")],
    *[(pv.VPT(length=5, pooling=p, blocks=2), [0, 1, None, None]) for p in ("prompt", "all")],
    *[(pv.VPT(length=5, pooling=p, blocks=1, end="last"), [None, None, None, 0]) for p in ("image", "prompt", "all")],
    (pv.VPT(length=5, pooling="image", blocks=2, after="drop"), [0, 1, "end", None]),
]


def literal_features(vit, prompts, blocks, pooling, images):
    """The paper's loop over timm's own blocks: prompts stand between prefix and patches, and are cut out or replaced.

    `blocks` says which set of `prompts` [S, P, D] each block gets; None: what arrives stays; "end": it is removed.
    """
    x, prefix, present = vit.norm_pre(vit._pos_embed(vit.patch_embed(images))), vit.num_prefix_tokens, 0
    for block, which in zip(vit.blocks, blocks, strict=True):
        if which is not None:
            x, present = torch.cat([x[:, :prefix], x[:, prefix + present :]], dim=1), 0
        if isinstance(which, int):
            own = prompts[which].expand(len(images), -1, -1)
            x, present = torch.cat([x[:, :prefix], own, x[:, prefix:]], dim=1), own.shape[1]
        x = block(x)
    x = vit.norm(x)
    first, ours, patches = x[:, :prefix], x[:, prefix : prefix + present], x[:, prefix + present :]
    if pooling == "own":
        return vit.forward_head(torch.cat([first, patches], dim=1), pre_logits=True)
    rows = {"image": patches, "prompt": ours, "all": torch.cat([ours, patches], dim=1)}[pooling]
    return vit.fc_norm(rows.mean(dim=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "blocks"), VARIANTS, ids=str)
def test_every_variant_equals_the_literal_loop(method, blocks, kind, make_vit, images):
    backbone = pv.from_timm(make_vit(depth=LAYERS, **KINDS[kind]))
    model = filled(backbone, method)
    (prompts,) = model.delta.prompts
    prompts = prompts if method.project is None else model.delta.project(prompts)
    logits = model(images)
    literal = model.head(literal_features(backbone.model, prompts, blocks, method.pooling, images))
    torch.testing.assert_close(logits, literal, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.fold()(images), literal, rtol=0, atol=1e-10)
    trained = list(model.delta.parameters())
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    got, expected = (torch.autograd.grad((given * weights).sum(), trained) for given in (logits, literal))
    for mine, theirs in zip(got, expected, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


class Spy(ViTBackbone):
    """A ViT that notes how many tokens each block sees."""

    def block(self, index, x, given, rows, positions):
        self.seen.append(x.shape[1] + (0 if given.tokens is None else given.tokens.shape[-2]))
        return super().block(index, x, given, rows, positions)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"depth": "shallow"}, [22, 22, 22, 22]),
        ({}, [22, 22, 22, 22]),
        ({"blocks": 2}, [22, 22, 22, 22]),
        ({"blocks": 2, "after": "drop"}, [22, 22, 17, 17]),
        ({"blocks": 4, "after": "drop"}, [22, 22, 22, 22]),
        ({"blocks": 1, "end": "last"}, [17, 17, 17, 22]),
        ({"blocks": 3, "end": "last"}, [17, 22, 22, 22]),
        ({"shared": True}, [22, 22, 22, 22]),
    ],
)
def test_the_tokens_that_each_block_sees_are_the_papers(fields, tokens, vit, images):
    spy = Spy(vit.model, vit.preprocessing, BackboneSource())
    spy.seen = []
    filled(spy, pv.VPT(length=5, **fields))(images)
    assert spy.seen == tokens


@pytest.mark.parametrize("pooling", ["own", "image"])
def test_prompts_in_the_last_blocks_lose_no_patch(pooling, vit, images):
    model = filled(vit, pv.VPT(length=5, blocks=2, end="last", pooling=pooling))
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels).square().sum(), pixels)
    patches = gradient.unfold(2, 4, 4).unfold(3, 4, 4)  # [B, 3, 4, 4, 4, 4]
    assert (patches.abs().amax(dim=(1, 4, 5)) > 1e-8).all()


def test_stages_of_other_widths_have_prompts_of_their_own(outline):
    backbone = outline("swin_tiny_patch4_window7_224")  # 2, 2, 6 and 2 blocks
    with torch.device("meta"):
        deep, last = pv.VPT(length=5).build(backbone), pv.VPT(length=5, blocks=3, end="last").build(backbone)
        first = pv.VPT(length=5, blocks=4, after="drop").build(backbone)
        given = [[block.tokens for block in delta(backbone, 2)] for delta in (deep, last, first)]
    assert [list(stage.shape) for stage in deep.prompts] == [[2, 5, 96], [2, 5, 192], [6, 5, 384], [2, 5, 768]]
    assert [tokens.shape[1] for tokens in given[0]] == list(backbone.info.widths)
    assert [list(stage.shape) for stage in last.prompts] == [[1, 5, 384], [2, 5, 768]]
    assert [tokens is not None for tokens in given[1]] == [False] * 9 + [True] * 3
    assert [list(tokens.shape) for tokens in given[2][3:5]] == [[5, 192], [0, 384]]
    assert given[2][5:] == [None] * 7


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "all"},
        {"depth": "shallow"},
        {"depth": "shallow", "pooling": "all"},
        {"blocks": 1},
        {"blocks": 2, "pooling": "prompt"},
        {"blocks": 1, "after": "drop"},
        {"blocks": 2, "after": "drop", "pooling": "image"},
        {"blocks": 2, "end": "last"},
        {"blocks": 1, "end": "last", "pooling": "all"},
    ],
    ids=str,
)
def test_prompts_of_several_widths_fold_and_know_one_image_only(fields, images):
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0, "drop_path_rate": 0}
    swin = SwinTransformer(**size, depths=(1, 2), num_heads=(2, 4), window_size=2).double()
    model = filled(pv.from_timm(swin), pv.VPT(length=5, **fields)).eval()
    logits = model(images)
    torch.testing.assert_close(model.fold()(images), logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), logits, rtol=0, atol=1e-10)
    with torch.no_grad():
        model.delta.prompts[-1].zero_()
    assert (model(images) - logits).abs().max() > 1e-6


@pytest.mark.parametrize("fields", [{}, {"depth": "shallow"}, {"shared": True}, {"project": 7}], ids=str)
def test_dropout_gives_every_image_and_block_its_own_mask_and_keeps_the_mean(fields, make_vit):
    backbone = pv.from_timm(make_vit().float())
    delta = pv.VPT(length=50, dropout=0.25, **fields).build(backbone)
    drawn = [given.tokens for given in delta(backbone, 40) if given.tokens is not None]
    tokens = torch.stack(drawn)  # [S, B, P, D]
    assert tokens.shape == (1 if fields.get("depth") else 3, 40, 50, 24)
    dropped = tokens == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (dropped[:, 0] != dropped[:, 1]).any()
    assert len(tokens) == 1 or (dropped[0] != dropped[1]).any()
    whole = [given.tokens for given in delta.eval()(backbone, 40) if given.tokens is not None]
    torch.testing.assert_close(tokens[~dropped], (torch.stack(whole)[:, None] / 0.75).expand_as(tokens)[~dropped])
    assert {given.shape for given in whole} == {(50, 24)}


def test_dropout_acts_on_every_image_of_swin(outline):
    backbone = outline("swin_tiny_patch4_window7_224")
    with torch.device("meta"):
        given = pv.VPT(length=2, dropout=0.1).build(backbone)(backbone, 3)
    assert [block.tokens.shape for block in given] == [(3, 2, width) for width in backbone.info.widths]


# --- pruned prompts ------------------------------------------------------------------------------------------------

SETS = {
    "tokens": {"tokens": [[1, 3]]},
    "segments": {"segments": [[[0], [1, 2], [], [3], [0, 1, 2]]]},
    "both": {"tokens": [[1, 3]], "segments": [[[0], [1, 2], [], [3], []]]},
    "interleaved": {"tokens": [[0]], "segments": [[[], [1, 2], [], [3], [2]]], "layout": "interleaved"},
    "block": {"tokens": [[1, 3], [], [0], [4, 2, 1]], "segments": [[], [], [[1]] * 5, []], "scope": "block"},
    "first": {"tokens": [[1, 3]], "segments": [[[0], [1, 2], [], [3], []]], "scope": "first"},
    "nothing": {},
}
PRUNABLE = [
    (pv.VPT(length=5), [0, 1, 2, 3]),
    (pv.VPT(length=5, depth="shallow"), [0, None, None, None]),
    (pv.VPT(length=5, blocks=2), [0, 1, None, None]),
    (pv.VPT(length=5, blocks=2, after="drop"), [0, 1, "end", None]),
    (pv.VPT(length=5, blocks=3, end="last", pooling="all"), [None, 0, 1, 2]),
    (pv.VPT(length=5, shared=True), [0, 0, 0, 0]),
    (pv.VPT(length=5, project=7), [0, 1, 2, 3]),
]


def set_of(name, blocks, compat_zero=False):
    """The masks of a name in `SETS`, of 4 segments, for prompts at `blocks` blocks."""
    fields = {"tokens": [[]]} | SETS[name]
    cut = {part: fields[part][:blocks] for part in ("tokens", "segments") if part in fields}
    return Masks(**fields | cut, length=5, parts=4, compat_zero=compat_zero)


def literal_masks(masks, prompts):
    """A factor for every value of `prompts` [S, P, D]."""
    ones, width = torch.ones_like(prompts), prompts.shape[-1]
    segments = [c * masks.parts // width if masks.layout == "contiguous" else c % masks.parts for c in range(width)]
    for block in range(1 if masks.scope == "first" else len(prompts)):
        number = block if masks.scope == "block" else 0
        for prompt in masks.tokens[number]:
            ones[block, prompt] = 0
        for prompt, pruned in enumerate(masks.segments[number]):
            ones[block, prompt, [segment in pruned for segment in segments]] = 0
    return ones


def without(model, masks):
    """The same model, without what is pruned."""
    fewer = copy.deepcopy(model)
    fewer.delta = model.delta.pruned(masks)
    return fewer


def possible(method, name, compat_zero):
    """Whether such prompts can be pruned so."""
    if method.project is not None:
        return name in ("tokens", "nothing") and not compat_zero
    return not method.shared or name not in ("block", "first")


PRUNED = [
    (method, blocks, name, compat_zero)
    for method, blocks in PRUNABLE
    for name, compat_zero in itertools.product(SETS, (False, True))
    if possible(method, name, compat_zero)
]


@pytest.mark.parametrize(("method", "blocks", "name", "compat_zero"), PRUNED, ids=str)
def test_pruned_prompts_equal_masked_or_missing_ones(method, blocks, name, compat_zero, vit, images):
    model = filled(vit, method)
    (prompts,) = model.delta.prompts
    masks = set_of(name, len(prompts), compat_zero)
    factors = literal_masks(masks, prompts.detach())
    masked = prompts * factors
    rows = masked if method.project is None else model.delta.project(prompts)
    if not compat_zero:
        rows = [own[some.any(dim=-1)] for own, some in zip(rows, factors, strict=True)]
    fewer = without(model, masks)
    logits = fewer(images)
    literal = model.head(literal_features(vit.model, rows, blocks, method.pooling, images))
    torch.testing.assert_close(logits, literal, rtol=0, atol=1e-10)
    torch.testing.assert_close(copy.deepcopy(fewer).fold()(images), literal, rtol=0, atol=1e-10)
    assert (name == "nothing") == torch.equal(logits, model(images))
    (expected,) = torch.autograd.grad(literal.square().sum(), prompts)
    got = torch.autograd.grad(logits.square().sum(), list(fewer.delta.prompts))
    stored = torch.cat([each.flatten() for each in got])  # block by block
    torch.testing.assert_close(stored, expected[factors.bool()], rtol=0, atol=1e-9)
    assert expected[~factors.bool()].abs().sum() == 0
    values = torch.cat([each.flatten() for each in fewer.delta.prompts])
    assert torch.equal(values, prompts[factors.bool()])


def test_removing_is_a_bias_of_minus_infinity_and_zeroing_is_not(vit, images):
    model = filled(vit, pv.VPT(length=5))
    inputs = [vit.fold_block(index, given) for index, given in enumerate(model.delta(vit, 1))]
    bias = torch.tensor([0, -math.inf, 0, -math.inf, 0], dtype=torch.float64)
    expected = model.head(vit(images, [dataclasses.replace(given, bias=bias) for given in inputs]))
    removed, zeroed = (without(model, set_of("tokens", 4, zero))(images) for zero in (False, True))
    torch.testing.assert_close(removed, expected, rtol=0, atol=1e-10)
    assert (zeroed - removed).abs().max() > 1e-3
    with torch.no_grad():
        for name, parameter in vit.model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # a row of zeros then has a key of zeros, which draws attention all the same
    removed, zeroed = (without(model, set_of("tokens", 4, zero))(images) for zero in (False, True))
    assert (zeroed - removed).abs().max() > 1e-3


@pytest.mark.parametrize("compat_zero", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_pruned_values_are_in_no_tensor_and_in_no_file(name, compat_zero, vit, tmp_path):
    model = filled(vit, pv.VPT(length=5))
    masks = set_of(name, LAYERS, compat_zero)
    gone = ~literal_masks(masks, model.delta.prompts[0].detach()).bool()
    with torch.no_grad():
        model.delta.prompts[0][gone] = 777.0
    fewer = without(model, masks)
    tensors = fewer.trained_tensors()
    assert not any((tensor == 777).any() for tensor in tensors.values())
    assert sum(p.numel() for p in fewer.delta.parameters()) == int((~gone).sum())
    fewer.save(tmp_path)
    size = (tmp_path / "delta.safetensors").stat().st_size
    assert size == safetensors_bytes(tensors)
    assert safetensors_bytes(model.trained_tensors()) - size >= 8 * int(gone.sum()) - 300  # names of more tensors
    assert not {tensor for tensor in tensors if "prompts" not in tensor and "head" not in tensor}


@pytest.mark.parametrize(
    ("name", "lengths", "tensors"),
    [
        ("tokens", [3, 3, 3, 3], [(4, 3, 24)]),
        ("both", [3, 3, 3, 3], [(4, 66)]),  # two rows go, and 6 of 24 channels of another
        ("block", [3, 5, 4, 2], [(1, 3, 24), (1, 5, 24), (1, 72), (1, 2, 24)]),
        ("first", [3, 5, 5, 5], [(1, 66), (3, 5, 24)]),
        ("nothing", [5, 5, 5, 5], [(4, 5, 24)]),
    ],
)
def test_blocks_that_keep_the_same_share_a_tensor(name, lengths, tensors, vit):
    delta = pv.VPT(length=5).build(vit).pruned(set_of(name, LAYERS))
    assert [tuple(stage.shape) for stage in delta.prompts] == tensors
    assert [len(given.tokens) for given in delta(vit, 1)] == lengths


@pytest.mark.parametrize(
    ("scope", "lengths", "tensors"),
    [("all", [2, 2, 2], [(2, 2, 12), (1, 2, 24)]), ("first", [2, 3, 3], [(1, 2, 12), (1, 3, 12), (1, 3, 24)])],
)
def test_stages_of_swin_are_pruned_each_for_itself(scope, lengths, tensors):
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    swin = pv.from_timm(SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2))
    delta = pv.VPT(length=3).build(swin).pruned(Masks(length=3, scope=scope, tokens=[[1]]))
    assert [tuple(stage.shape) for stage in delta.prompts] == tensors
    assert [len(given.tokens) for given in delta(swin, 1)] == lengths


@pytest.mark.parametrize("compat_zero", [False, True])
def test_dropout_acts_on_what_is_kept_for_every_image(compat_zero, make_vit):
    backbone = pv.from_timm(make_vit().float())
    whole = pv.VPT(length=5, dropout=0.25).build(backbone)
    masks = set_of("both", 3, compat_zero)
    delta = whole.pruned(masks)
    kept = literal_masks(masks, whole.prompts[0].detach())[0].bool()
    kept = kept if compat_zero else kept[kept.any(dim=-1)]
    tokens = torch.stack([given.tokens for given in delta(backbone, 400)])  # [L, B, P, D]
    assert tokens.shape == (3, 400, *kept.shape)
    assert (tokens[:, :, ~kept] == 0).all()
    assert (tokens[:, :, kept] == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert ((tokens == 0)[:, 0] != (tokens == 0)[:, 1]).any()
    quiet = torch.stack([given.tokens for given in delta.eval()(backbone, 400)])
    assert quiet.shape == (3, *kept.shape)
    torch.testing.assert_close(tokens.amax(dim=1), quiet.clamp(min=0) / 0.75)  # of 400 images one keeps it


@pytest.mark.parametrize(
    ("fields", "masks", "reason"),
    [
        ({"length": 4}, {}, "masks of 5 prompts for 4: they belong to another run"),
        ({"project": 8}, {"segments": [[[0], [], [], [], []]]}, "segments of projected prompts: a projection mixes"),
        ({"project": 8}, {"compat_zero": True}, "compat_zero with projected prompts: a projection with a bias"),
        ({"blocks": 2}, {"scope": "block"}, "1 sets of masks for prompts at 2 blocks; expected one per block"),
        ({}, {"segments": [[[0], [], [], [], []]], "parts": 5}, "5 segments of prompts of width 24; expected a divi"),
    ],
    ids=str,
)
def test_masks_that_do_not_fit_are_refused(fields, masks, reason, vit):
    delta = pv.VPT(**{"length": 5} | fields).build(vit)
    with pytest.raises(ConfigError, match=reason):
        delta.pruned(Masks(**{"length": 5, "tokens": [[1]]} | masks))


@pytest.mark.parametrize("compat_zero", [False, True])
def test_fixed_prompts_stay_fixed(compat_zero, vit):
    delta = pv.VPT(length=5, fixed=True).build(vit).pruned(set_of("both", LAYERS, compat_zero))
    assert not any(p.requires_grad for p in delta.parameters())
    assert delta.state_dict()["prompts.0"].shape == (4, 66)


def test_tokens_of_any_width_are_pruned(vit):
    delta = pv.VPT(length=5, project=7).build(vit).pruned(Masks(length=5, tokens=[[1]], parts=5))
    assert delta.prompts[0].shape == (4, 4, 7)
    assert pv.VPT(length=5).build(vit).pruned(Masks(length=5, tokens=[[1]], parts=5)).prompts[0].shape == (4, 4, 24)


def test_pruned_prompts_are_counted_without_values(outline):
    backbone = outline("swin_tiny_patch4_window7_224")
    for compat_zero in (False, True):
        masks = Masks(length=2, tokens=[[0]], segments=[[[], [0, 1, 2, 3]]], compat_zero=compat_zero)
        with torch.device("meta"):
            delta = pv.VPT(length=2).build(backbone).pruned(masks)
        assert all(p.is_meta for p in delta.parameters())
        assert sum(p.numel() for p in delta.parameters()) == 4_416 * 12 // 16
