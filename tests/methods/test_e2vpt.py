import dataclasses
import json
import math
from functools import cache

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer

import promptvit as pv
from promptvit.backbones.attention import attend
from promptvit.backbones.source import BackboneSource
from promptvit.backbones.walk import walk
from promptvit.counting import count, flops, outline
from promptvit.errors import ConfigError, DeltaError, UnknownNameError
from promptvit.methods import METHODS
from promptvit.methods.e2vpt import E2VPT, KeyValue
from promptvit.methods.linear import Linear
from promptvit.methods.masks import Masks
from promptvit.methods.spt import SPT
from promptvit.model import assemble, class_names

IMAGES, CLASSES = 6, 3
KV = KeyValue(length=2)


@cache
def backbone_of(name):
    """Without values."""
    return outline(BackboneSource(name=name))


VIT, SWIN = "vit_base_patch16_224.orig_in21k", "swin_base_patch4_window7_224.ms_in22k"


@pytest.fixture
def vit(make_vit):
    """Small, in float64, with a CLS token."""
    return pv.from_timm(make_vit())


@pytest.fixture
def swin(make_small):
    """Two stages of other widths and heads."""
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0, "drop_path_rate": 0}
    return pv.from_timm(make_small(lambda: SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2)))


@pytest.fixture
def images():
    return torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64)


@pytest.fixture
def data(images):
    """A task: an image and its label."""
    return [(image.float(), number % CLASSES) for number, image in enumerate(images)]


def filled(backbone, method):
    """A float64 model in eval mode with everything that is trained away from zero."""
    model = pv.tune(backbone, method, CLASSES).double().eval()
    with torch.no_grad():
        for parameter in [*model.delta.parameters(), *model.head.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


def close(got, expected, atol=1e-10):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# --- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visual", "kv", "classes", "trained", "percent"),
    [(5, 5, 200, 245_960, 0.286), (1, 1, 102, 96_870, 0.113), (32, 5, 102, 419_430, 0.486)],
)
def test_models_are_as_large_as_the_papers(visual, kv, classes, trained, percent):
    method = E2VPT(prompts=pv.VPT(length=visual), kv=KeyValue(length=kv))
    with torch.device("meta"):
        model = assemble(backbone_of(VIT), method, class_names(classes))
    parts = model.head, model.delta.visual, model.delta.kv
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sizes == [769 * classes, 9_216 * visual, 9_216 * kv]
    assert model.trained_parameters() == trained == sum(sizes)
    assert model.total_parameters() == 85_798_656 + trained
    assert count(backbone_of(VIT), method, classes).tuned_percent == pytest.approx(percent, abs=5e-4)


def test_the_parity_target():
    method = E2VPT(prompts=pv.VPT(length=5), kv=KeyValue(length=5))
    with torch.device("meta"):
        model = assemble(backbone_of(VIT), method, class_names(200))
    assert 153_800 + 46_080 + 46_080 == 245_960 == model.trained_parameters()
    assert model.total_parameters() == 86_044_616


PRUNED = Masks(length=10, tokens=[range(5)], segments=[[range(8)] * 10])


@pytest.mark.parametrize(
    ("name", "method", "values"),
    [
        (VIT, E2VPT(prompts=pv.VPT(length=7), kv=None), 9_216 * 7),
        (VIT, E2VPT(prompts=None, kv=KeyValue(length=7)), 9_216 * 7),
        (VIT, E2VPT(prompts=None, kv=KeyValue(length=7, values="separate")), 2 * 9_216 * 7),
        (VIT, E2VPT(prompts=None, kv=KeyValue(length=7, blocks="first")), 768 * 7),
        (VIT, E2VPT(prompts=None, kv=KeyValue(length=7, blocks="tied")), 768 * 7),
        (VIT, E2VPT(prompts=None, kv=KeyValue(length=7, blocks="tied", values="separate")), 2 * 768 * 7),
        (VIT, E2VPT(prompts=pv.VPT(length=3, depth="shallow"), kv=KeyValue(length=7)), 768 * 3 + 9_216 * 7),
        (VIT, E2VPT(prompts=SPT(length=3), kv=KeyValue(length=7)), 9_216 * 10),
        (VIT, E2VPT(prompts=pv.VPT(length=10), kv=None), 92_160),
        (VIT, E2VPT(prompts=pv.VPT(length=10), kv=None, masks=PRUNED), 23_040),
        (VIT, E2VPT(prompts=pv.VPT(length=10), masks=dataclasses.replace(PRUNED, compat_zero=True), kv=None), 23_040),
        (VIT, E2VPT(prompts=pv.VPT(length=10), masks=PRUNED), 23_040 + 46_080),
        (SWIN, E2VPT(prompts=pv.VPT(length=7), kv=None), 12_032 * 7),
        (SWIN, E2VPT(prompts=None, kv=KeyValue(length=7)), 12_032 * 7),
        (SWIN, E2VPT(prompts=None, kv=KeyValue(length=7, values="separate")), 2 * 12_032 * 7),
        (SWIN, E2VPT(prompts=None, kv=KeyValue(length=7, blocks="first")), 128 * 7),
    ],
    ids=str,
)
def test_trained_values(name, method, values):
    assert count(backbone_of(name), method, 2).delta == values


def test_a_prompt_that_is_removed_saves_its_share_of_the_attention():
    """Folded prompts are keys and values: 4 · N · D operations per block, for one row in the last."""
    masks = Masks(length=10, tokens=[[0, 4, 9]])
    zeroed = dataclasses.replace(masks, compat_zero=True)
    with torch.device("meta"):
        whole, removed, stays = (
            flops(assemble(backbone_of(VIT), E2VPT(prompts=pv.VPT(length=10), masks=which), class_names(2)))
            for which in (None, masks, zeroed)
        )
    assert whole - removed == 3 * 4 * 768 * (11 * 197 + 1)
    assert stays == whole  # an outline does not know that rows are zero


# --- initial values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", ["all", "tied"])
@pytest.mark.parametrize("values", ["shared", "separate"])
@pytest.mark.parametrize(
    ("init", "bounds"),
    [
        ("paper", {1: 0.3062, 5: 0.1369, 10: 0.0968, 20: 0.0685, 50: 0.0433}),
        ("head", {1: 0.3062, 5: 0.3062, 50: 0.3062}),
        ("patch", {1: 0.0875, 5: 0.0875, 50: 0.0875}),
    ],
)
def test_key_value_prompts_are_uniform_within_the_bound(init, bounds, values, blocks):
    for length, bound in bounds.items():
        kv = KeyValue(length=length, init=init, values=values, blocks=blocks).build(backbone_of(VIT))
        assert len(list(kv.parameters())) == (1 if values == "shared" else 2)
        for tensor in kv.parameters():
            assert tensor.shape == (12 if blocks == "all" else 1, 12, length, 64)
            assert 0.9 * bound < tensor.abs().max() <= bound + 5e-5
            if tensor.numel() >= 10_000:
                assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_a_normal_start_and_exact_bounds():
    kv = KeyValue(length=20, init="normal").build(backbone_of(VIT))
    assert kv.keys[0].std().item() == pytest.approx(0.02, rel=0.02)
    for init, fan in (("paper", 64 * 20), ("head", 64), ("patch", 3 * 16 * 16 + 16)):
        kv = KeyValue(length=20, init=init).build(backbone_of(VIT))
        assert 0.999 * math.sqrt(6 / fan) < kv.keys[0].abs().max() <= math.sqrt(6 / fan)


@pytest.mark.parametrize("visual", [pv.VPT(length=4), pv.VPT(length=4, project=5), SPT(length=4)], ids=str)
def test_visual_prompts_start_as_they_do_alone(visual, make_vit, data):
    backbone, started = pv.from_timm(make_vit().float()), []
    for method in (visual, E2VPT(prompts=visual, kv=None), E2VPT(prompts=visual, kv=KV)):
        torch.manual_seed(3)
        delta = pv.tune(backbone, method, CLASSES, samples=data).delta
        started.append(list((delta if method is visual else delta.visual).parameters()))
    for alone, without, having in zip(*started, strict=True):
        assert torch.equal(alone, without)
        assert torch.equal(alone, having)


@pytest.mark.parametrize("compat_zero", [False, True])
@pytest.mark.parametrize(
    "visual",
    [pv.VPT(length=CLASSES), pv.VPT(length=CLASSES, init="cls-nolastl"), SPT(length=CLASSES, source="mean")],
    ids=str,
)
def test_pruned_prompts_start_as_those_that_are_kept(visual, compat_zero, make_vit, data):
    backbone = pv.from_timm(make_vit().float())
    masks = Masks(length=CLASSES, tokens=[[1]], segments=[[[0], [], [2]]], parts=4, compat_zero=compat_zero)
    torch.manual_seed(3)
    whole = pv.tune(backbone, visual, CLASSES, samples=data).delta
    torch.manual_seed(3)
    pruned = pv.tune(backbone, E2VPT(prompts=visual, kv=KV, masks=masks), CLASSES, samples=data).delta
    expected = whole.pruned(masks).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == {"prompts.0": (3, 36)}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pruned.visual.state_dict().items())


# --- with and without ----------------------------------------------------------------------------------------------


def test_without_key_value_prompts_it_is_vpt(vit, images):
    ours, theirs = filled(vit, E2VPT(prompts=pv.VPT(length=4), kv=None)), filled(vit, pv.VPT(length=4))
    theirs.delta.load_state_dict(ours.delta.visual.state_dict())
    theirs.head.load_state_dict(ours.head.state_dict())
    assert torch.equal(ours(images), theirs(images))
    assert set(ours.trained_tensors()) == {"delta.visual.prompts.0", "head.weight", "head.bias"}


def test_without_visual_prompts_no_row_is_added(vit, images):
    method = METHODS["kv"].build(kv={"length": 3})
    assert method == E2VPT(prompts=None, kv=KeyValue(length=3))
    model = filled(vit, method)
    assert set(model.trained_tensors()) == {"delta.kv.keys.0", "head.weight", "head.bias"}
    assert all(given.tokens is None for given in model.delta(vit, IMAGES))
    (grads,) = torch.autograd.grad(model(images).square().sum(), list(model.delta.parameters()))
    assert grads.shape == (3, 2, 3, 12)
    assert (grads.abs().amax(dim=-1) > 1e-8).all()  # every prompt of every head and block


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("visual", [None, pv.VPT(length=4), pv.VPT(length=4, depth="shallow")], ids=str)
def test_the_number_of_rows_does_not_depend_on_the_key_value_prompts(visual, length, vit, images):
    model = filled(vit, E2VPT(prompts=visual, kv=KeyValue(length=length)))
    rows = list(walk(vit, images, model.delta(vit, IMAGES)))
    assert [each.image.shape[1] for each in rows] == [17] * 4
    assert [each.prompts.shape[1] for each in rows] == [0 if visual is None else 4] * 4


def test_which_blocks_get_key_value_prompts(vit):
    for blocks, expected in {"all": [0, 1, 2], "first": [0, None, None], "tied": [0, 0, 0]}.items():
        for values in ("shared", "separate"):
            model = filled(vit, E2VPT(prompts=None, kv=KeyValue(length=2, blocks=blocks, values=values)))
            kv, given = model.delta.kv, model.delta(vit, 1)
            for one, number in zip(given, expected, strict=True):
                if number is None:
                    assert one == pv.BlockInput()
                    continue
                assert torch.equal(one.keys, kv.keys[0][number])
                assert torch.equal(one.values, (kv.keys if values == "shared" else kv.values)[0][number])


def test_blocks_of_swin_have_as_many_heads_as_they_want(swin):
    kv = KeyValue(length=3, values="separate").build(swin)
    assert [tuple(stage.shape) for stage in kv.keys] == [(2, 2, 3, 6), (1, 4, 3, 6)]
    assert [tuple(stage.shape) for stage in kv.values] == [(2, 2, 3, 6), (1, 4, 3, 6)]
    assert [tuple(given.keys.shape) for given in kv(swin, 1)] == [(2, 3, 6), (2, 3, 6), (4, 3, 6)]
    (first,) = KeyValue(length=3, blocks="first").build(swin).keys
    assert first.shape == (1, 2, 3, 6)


# --- what key-value prompts are ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_their_order_means_nothing(family, request, images):
    backbone = request.getfixturevalue(family)
    model = filled(backbone, E2VPT(prompts=pv.VPT(length=3), kv=KeyValue(length=4, values="separate")))
    before = model(images)
    with torch.no_grad():
        for tensor in model.delta.kv.parameters():  # [S, H, T, d]
            tensor.copy_(tensor[:, :, [2, 0, 3, 1]])
    close(model(images), before, 1e-11)
    with torch.no_grad():
        for tensor in model.delta.kv.values:  # without the keys it does mean something
            tensor.copy_(tensor[:, :, [2, 0, 3, 1]])
    assert (model(images) - before).abs().max() > 1e-4


@pytest.mark.parametrize("blocks", ["all", "first", "tied"])
def test_separate_ones_that_are_equal_are_shared_ones(blocks, vit, images):
    shared, separate = (
        filled(vit, E2VPT(kv=KeyValue(length=3, blocks=blocks, values=values))) for values in ("shared", "separate")
    )
    state = shared.state_dict()
    state |= {name.replace("kv.keys", "kv.values"): tensor for name, tensor in state.items() if "kv.keys" in name}
    separate.load_state_dict(state)
    close(separate(images), shared(images), 1e-12)
    (of_both,) = torch.autograd.grad(shared(images).square().sum(), list(shared.delta.kv.parameters()))
    parts = torch.autograd.grad(separate(images).square().sum(), list(separate.delta.kv.parameters()))
    close(sum(parts), of_both)


@pytest.mark.parametrize("copies", [2, 5])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_copies_of_one_prompt_are_one_with_a_bias(family, copies, request, images):
    backbone = request.getfixturevalue(family)
    kv = KeyValue(length=2, values="separate").build(backbone).double()
    bias = torch.tensor([0, math.log(copies)], dtype=torch.float64)
    inputs = kv(backbone, 1)
    repeats = torch.tensor([1, copies])
    copied = [
        pv.BlockInput(keys=given.keys.repeat_interleave(repeats, 1), values=given.values.repeat_interleave(repeats, 1))
        for given in inputs
    ]
    once = backbone(images, [dataclasses.replace(given, bias=bias) for given in inputs])
    close(once, backbone(images, copied), 1e-12)
    assert (once - backbone(images, inputs)).abs().max() > 1e-4


@pytest.mark.parametrize("rows", [1, 17])
def test_prompts_of_zeros_thin_the_attention_out(rows, vit):
    """Output · Z / (Z + T), with Z the sum of the exponentials of a query's logits in a head."""
    attention, length = vit.model.blocks[0].attn, 3
    with torch.no_grad():
        attention.proj.weight.copy_(torch.eye(24))
        attention.proj.bias.zero_()
    x, zeros = torch.randn(2, 17, 24, dtype=torch.float64), torch.zeros(2, length, 12, dtype=torch.float64)
    q, k, _ = attention.qkv(x).unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4)  # [B, H, N, d]
    total = (q @ k.mT * attention.scale).exp().sum(dim=-1)[..., :rows]  # [B, H, R]
    plain, thinned = (attend(attention, x, rows, *given) for given in ((), (zeros, zeros)))
    share = (total / (total + length)).transpose(1, 2)[..., None]  # [B, R, H, 1]
    close(thinned.unflatten(-1, (2, 12)), plain.unflatten(-1, (2, 12)) * share, 1e-12)
    assert share.max() < 0.95


def test_tied_blocks_train_one_tensor(vit, images):
    tied, free = (
        filled(vit, E2VPT(kv=KeyValue(length=2, blocks=blocks, values="separate"))) for blocks in ("tied", "all")
    )
    assert [tuple(p.shape) for p in tied.delta.kv.parameters()] == [(1, 2, 2, 12)] * 2
    repeated = {n: t.expand(3, -1, -1, -1) if n.startswith("delta.kv") else t for n, t in tied.state_dict().items()}
    free.load_state_dict(repeated)
    close(tied(images), free(images), 1e-12)
    one, each = (
        torch.autograd.grad(model(images).square().sum(), list(model.delta.kv.parameters())) for model in (tied, free)
    )
    for of_all, by_block in zip(one, each, strict=True):
        close(of_all[0], by_block.sum(dim=0))
        assert (by_block.abs().amax(dim=(1, 2, 3)) > 1e-6).all()


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_batch_is_its_images_one_by_one(family, depth, request, images):
    backbone = request.getfixturevalue(family)
    model = filled(backbone, E2VPT(prompts=pv.VPT(length=3, depth=depth), kv=KV))
    close(torch.cat([model(image[None]) for image in images]), model(images), 1e-11)
    close(model.fold()(images), model(images), 1e-11)


@pytest.mark.parametrize("blocks", ["all", "tied"])
@pytest.mark.parametrize("values", ["shared", "separate"])
def test_dropout_is_drawn_for_every_image_and_block(values, blocks, vit):
    kv = KeyValue(length=40, dropout=0.25, values=values, blocks=blocks).build(vit)
    given = kv(vit, 50)
    keys, drawn_values = (torch.stack([getattr(one, part) for one in given]) for part in ("keys", "values"))
    assert keys.shape == (3, 50, 2, 40, 12)
    for drawn, stored in ((keys, kv.keys[0]), (drawn_values, (kv.values or kv.keys)[0])):
        dropped = drawn == 0
        assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
        assert (dropped[0] != dropped[1]).any()
        assert (dropped[:, 0] != dropped[:, 1]).any()
        torch.testing.assert_close(drawn[~dropped], (stored[:, None] / 0.75).expand_as(drawn)[~dropped])
    assert torch.equal(keys, drawn_values) == (values == "shared")
    assert {tuple(one.keys.shape) for one in kv.eval()(vit, 50)} == {(2, 40, 12)}


def test_dropout_acts_in_train_mode_alone(vit, images):
    twins = images[:1].repeat(2, 1, 1, 1)
    model = filled(vit, E2VPT(prompts=pv.VPT(length=3), kv=KeyValue(length=3, dropout=0.5))).train()
    first, second = model(twins)
    assert (first - second).abs().max() > 1e-3
    first, second = model.eval()(twins)
    close(first, second, 1e-12)
    assert torch.equal(model(twins), model(twins))


# --- the config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "others"),
    [
        ("length", 4, {}),
        ("values", "separate", {}),
        ("blocks", "first", {}),
        ("blocks", "tied", {}),
        ("init", "head", {}),
        ("init", "patch", {}),
        ("init", "normal", {}),
        ("dropout", 0.5, {}),
    ],
)
def test_every_field_of_key_value_prompts_changes_something(field, value, others, make_vit):
    backbone, pixels = pv.from_timm(make_vit().float()), torch.randn(2, 3, 16, 16)

    def features(**fields):
        torch.manual_seed(0)
        return pv.tune(backbone, E2VPT(prompts=None, kv=KeyValue(**others, **fields)), CLASSES).features(pixels)

    assert torch.equal(features(), features())
    assert not torch.allclose(features(), features(**{field: value}))


def test_what_visual_prompts_bring_is_kept(vit):
    visual = pv.VPT(weights="bias", pooling="image", length=CLASSES, init="final-cls")
    method = E2VPT(prompts=visual)
    assert method.readout == "image"
    assert method.backbone_share == visual.backbone_share != 1
    assert (method.needs_samples, method.augments_samples) == (True, False)
    assert method.trained(vit) == visual.trained(vit)
    assert E2VPT(prompts=SPT(augment=True)).augments_samples
    alone = METHODS["kv"].build()
    assert (alone.readout, alone.backbone_share, alone.needs_samples, alone.trained(vit)) == ("own", 1.0, False, ())
    model = filled(vit, E2VPT(prompts=pv.VPT(weights="bias")))
    assert model.trained == {name for name in vit.weights() if name.endswith("bias")}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: E2VPT(prompts=None, kv=None), "neither prompts nor kv: the method `linear` has none"),
        (lambda: E2VPT(prompts=None, masks=Masks(length=3)), "masks without prompts: key-value prompts are not pruned"),
        (lambda: E2VPT(prompts=Linear()), "prompts=Linear: expected a VPT or an SPT"),
        (lambda: E2VPT(prompts=E2VPT()), "prompts=E2VPT: expected a VPT or an SPT"),
        (lambda: KeyValue(length=0), "length=0: expected at least 1 prompt; kv=None has none"),
        (lambda: KeyValue(dropout=1.0), r"dropout=1.0: expected a probability in \[0, 1\)"),
        (lambda: E2VPT.from_dict({"kv": {"lenght": 3}}), "kv.lenght=3: no such field"),
        (lambda: E2VPT.from_dict({"masks": {"length": 3, "some": 1}}), "masks.some=1: no such field"),
        (lambda: E2VPT.from_dict({"prompts": {"name": "vpt", "lenght": 3}}), "lenght=3: VPT has no such field"),
        (lambda: METHODS["e2vpt"].build(length=3), "length=3: E2VPT has no such field"),
        (lambda: METHODS["kv"].build(prompts={"name": "vpt"}), "this name stands for prompts=None"),
    ],
)
def test_what_means_nothing_is_refused(make, reason):
    with pytest.raises(ConfigError, match=reason):
        make()


def test_unknown_choices_and_names_are_refused(untyped):
    with pytest.raises(
        ConfigError, match="values='one': expected shared or separate; blocks='last': expected all, fir"
    ):
        KeyValue(values="one", blocks="last")
    with pytest.raises(UnknownNameError, match="vtp"):
        E2VPT.from_dict({"prompts": {"name": "vtp"}})


def test_a_backbone_that_cannot_have_it_refuses(vit, swin, make_small):
    convnext = pv.from_timm(make_small(lambda: ConvNeXt(depths=(1,) * 4, dims=(6, 8, 10, 12), num_classes=0)))
    tied = KeyValue(blocks="tied")
    for backbone, method, reason in (
        (convnext, E2VPT(), "there is no attention to join"),
        (convnext, E2VPT(prompts=None), "there is no attention to join"),
        (swin, E2VPT(kv=tied), "kv.blocks=tied: its blocks differ in heads"),
        (swin, E2VPT(prompts=pv.VPT(shared=True)), "shared: its blocks differ in width"),
        (swin, E2VPT(prompts=pv.VPT(project=3), kv=tied), "differ in width; kv.blocks=tied"),
        (vit, E2VPT(prompts=pv.VPT(length=4), masks=Masks(length=5)), "masks of 5 prompts for 4"),
    ):
        with pytest.raises(ConfigError, match=reason):
            pv.tune(backbone, method, CLASSES)
    pv.tune(vit, E2VPT(kv=tied), CLASSES)


CONFIGS = [
    E2VPT(),
    E2VPT(prompts=None, kv=KeyValue(values="separate", blocks="tied", init="head", dropout=0.5)),
    E2VPT(prompts=pv.VPT(length=3, depth="shallow", pooling="all"), kv=None),
    E2VPT(prompts=SPT(length=3, source="kmeans"), masks=Masks(length=3, tokens=[[2]], segments=[[[1], [], []]])),
    E2VPT(masks=Masks(length=10, scope="block", tokens=[[1], []], layout="interleaved", parts=4, compat_zero=True)),
]


@pytest.mark.parametrize("method", CONFIGS, ids=str)
def test_a_config_passes_through_plain_values_and_json(method):
    fields = method.to_dict()
    assert E2VPT.from_dict(fields) == method
    assert E2VPT.from_dict(json.loads(json.dumps(fields))) == method
    assert METHODS["e2vpt"].build(**fields) == method
    assert hash(E2VPT.from_dict(json.loads(json.dumps(fields)))) == hash(method)
    assert (fields["prompts"] or {}).get("name") == (method.prompts and method.prompts.kind)


def test_parts_are_objects_or_fields():
    plain = METHODS["e2vpt"].build(prompts={"name": "vpt-shallow", "length": 3}, kv={"length": 2}, masks=None)
    assert plain == E2VPT(prompts=pv.VPT(length=3, depth="shallow"), kv=KeyValue(length=2))
    assert METHODS["e2vpt"].build(prompts={"length": 3}, kv=KV) == E2VPT(prompts=pv.VPT(length=3), kv=KV)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["all", "block", "first"])
@pytest.mark.parametrize("compat_zero", [False, True])
@pytest.mark.parametrize("values", ["shared", "separate"])
def test_what_was_saved_is_what_is_loaded(values, compat_zero, scope, make_vit, data, tmp_path):
    backbone, pixels = pv.from_timm(make_vit().float()), torch.stack([image for image, _ in data])
    tokens = [[1], [], [0, 2]] if scope == "block" else [[1, 3]]
    fields = {"scope": scope, "tokens": tokens, "segments": [[[1], [], [0, 3], []]] * len(tokens)}
    masks = Masks(length=4, parts=4, compat_zero=compat_zero, **fields)
    method = E2VPT(prompts=SPT(length=4), kv=KeyValue(length=2, values=values), masks=masks)
    model = pv.tune(backbone, method, CLASSES, samples=data).eval()
    model.save(tmp_path)
    written = json.loads((tmp_path / "delta.json").read_text())["method"]
    assert written["kind"] == "e2vpt"
    assert written["config"]["masks"] == json.loads(json.dumps(dataclasses.asdict(masks)))
    torch.manual_seed(9)
    loaded = pv.load(tmp_path, backbone=backbone)
    assert loaded.method == method
    assert torch.equal(loaded(pixels), model(pixels))
    torch.testing.assert_close(loaded.fold()(pixels), model(pixels), rtol=0, atol=1e-5)


def test_a_file_of_other_masks_is_refused(make_vit, tmp_path):
    backbone = pv.from_timm(make_vit().float())
    masks = Masks(length=4, tokens=[[1]])
    pv.tune(backbone, E2VPT(prompts=pv.VPT(length=4), masks=masks), CLASSES).save(tmp_path)
    path = tmp_path / "delta.json"
    description = json.loads(path.read_text())
    description["method"]["config"]["masks"]["tokens"] = [[1, 2]]
    path.write_text(json.dumps(description))
    with pytest.raises(DeltaError, match=r"visual\.prompts\.0 has shape \[3, 3, 24\], expected \[3, 2, 24\]"):
        pv.load(tmp_path, backbone=backbone)
