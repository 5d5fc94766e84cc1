import copy
import pickle
from contextlib import contextmanager

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import nn

import promptvit as pv
from promptvit.backbones.base import NOTHING
from promptvit.backbones.load import from_timm
from promptvit.errors import BackboneError, ConfigError

SIZE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
# one of each kind in timm's registry: what the entry itself fixes (positions, norms, prefix, MLP, readout) stays
# fmt: off
NAMES = [
    "eva_giant_patch14_224", "eva_giant_patch14_clip_224", "eva02_tiny_patch14_224", "eva02_base_patch14_448",
    "eva02_large_patch14_224", "eva02_base_patch16_clip_224", "eva02_enormous_patch14_clip_224",
    "vit_medium_patch16_rope_reg1_gap_256", "vit_mediumd_patch16_rope_reg1_gap_256",
    "vit_betwixt_patch16_rope_reg4_gap_256", "vit_pe_core_tiny_patch16_384", "vit_pe_core_gigantic_patch14_448",
    "vit_pe_lang_large_patch14_448", "vit_pe_lang_gigantic_patch14_448", "vit_pe_spatial_tiny_patch16_512",
    "vit_small_patch16_rope_224", "vit_small_patch16_rope_ape_224", "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_rope_mixed_ape_224", "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb",
    "vit_tiny_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3", "vit_7b_patch16_dinov3",
    "vit_small_patch16_lingbot", "vit_giant_patch16_lingbot", "vit_base_patch16_sapiens2",
]
# fmt: on
ROTARY = {"use_rot_pos_emb": True}
KINDS = {
    "fused, biases beside it": ROTARY | {"ref_feat_shape": 3},
    "separate, norms inside": ROTARY | {"qkv_fused": False, "scale_attn_inner": True, "swiglu_mlp": True},
    "dinov3": ROTARY | {"rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 4, "use_abs_pos_emb": False},
    "mixed": ROTARY | {"rope_type": "mixed", "attn_type": "rope", "init_values": 0.1, "global_pool": "token"},
    "mrope": ROTARY | {"rope_type": "mrope", "global_pool": "max"},
    "grouped keys, qk-norm": ROTARY
    | {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": (2, 1, 1), "qk_norm": True, "global_pool": "token"},
    "attention pooling": ROTARY | {"class_token": False, "global_pool": "map", "use_pre_transformer_norm": True},
    "norm after": ROTARY | {"use_post_norm": True, "global_pool": "token"},
    "no rotation": {"init_values": 0.1, "attn_only_layer_scale": True, "global_pool": "token"},
    "gated": ROTARY,
}


@pytest.fixture(scope="module")
def make_eva(make_small):
    """A small float64 `Eva` of one of the kinds; keywords as timm's."""

    def make(kind: str = "dinov3", **arguments) -> Eva:
        def construct():
            model = Eva(**SIZE | KINDS[kind] | arguments)
            for block in model.blocks if kind == "gated" else ():
                block.attn.gate = nn.Linear(24, 24)
            return model

        return make_small(construct)

    return make


@pytest.fixture(params=KINDS)
def model(request, make_eva):
    return make_eva(request.param)


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


@contextmanager
def joining(keys, values):
    """Inside, every attention has these keys and values too."""
    attend = F.scaled_dot_product_attention

    def attend_to_more(q, k, v, **options):
        if keys is not None:
            k, v = (torch.cat([y, more.expand(len(y), -1, -1, -1)], dim=2) for y, more in ((k, keys), (v, values)))
        return attend(q, k, v, **options)

    F.scaled_dot_product_attention = attend_to_more
    yield
    F.scaled_dot_product_attention = attend


def literal(model, images, inputs, *, turned=False):
    """timm's own blocks with prompts behind the prefix, where timm rotates nothing; `turned`: prompts as patches."""
    x, rope = model._pos_embed(model.patch_embed(images))
    x, prefix, length = model.norm_pre(x), model.num_prefix_tokens, 0
    for index, (block, given) in enumerate(zip(model.blocks, inputs, strict=True)):
        own = rope[index] if model.rope_mixed else rope
        if given.tokens is not None:
            tokens = given.tokens.expand(len(images), -1, -1)
            x = torch.cat([x[:, :prefix], tokens, x[:, prefix + length :]], dim=1)
            length = tokens.shape[1]
        if turned:
            own = torch.cat([own[..., :length, :], own], dim=-2)
        block.attn.num_prefix_tokens = prefix + (0 if turned else length)
        with joining(given.keys, given.values):
            x = block(x, rope=own)
        block.attn.num_prefix_tokens = prefix
    x = torch.cat([x[:, :prefix], x[:, prefix + length :]], dim=1)
    return model.forward_head(model.norm(x), pre_logits=True)


def block_input(*, tokens=None, keys=None, batch=()):
    """Random, wanting gradients."""

    def random(*shape):
        return torch.randn(*batch, *shape, dtype=torch.float64, requires_grad=True)

    per_head = {} if keys is None else {name: random(2, keys, 12) for name in ("keys", "values")}
    return pv.BlockInput(tokens=None if tokens is None else random(tokens, 24), **per_head)


def leaves(inputs):
    """Every tensor of the inputs that has rows."""
    tensors = [t for given in inputs for t in (given.tokens, given.keys, given.values) if t is not None]
    return [tensor for tensor in tensors if tensor.numel()]


def close(got, expected, tolerance):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def prompts(depth):
    """Four at every block, or at the first one."""
    return [block_input(tokens=4) if depth == "deep" or index == 0 else NOTHING for index in range(3)]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_without_prompts_it_is_timms_own_model(name, make_small):
    more = {"num_kv_heads": (2, 1, 2)} if "sapiens2" in name else {}
    model = make_small(lambda: timm.create_model(name, **SIZE | more | {"img_size": 32, "patch_size": 8}))
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(pixels)
    assert expected.std() > 1e-3
    close(from_timm(model)(pixels), expected, 1e-12)


def test_every_option_is_driven(model, images):
    close(from_timm(model)(images), model(images), 1e-12)


def test_every_name_of_timms_is_driven():
    with torch.device("meta"):
        for name in timm.list_models(module="eva"):
            more = {"num_kv_heads": 1} if "sapiens2" in name else {}
            assert from_timm(timm.create_model(name, num_classes=0, depth=1, **more)).info.family == "eva"


@pytest.mark.parametrize(
    "kinds",
    [
        [{"tokens": 4}] * 3,
        [{"tokens": 4}, {}, {}],
        [{"tokens": 4, "batch": (3,)}, {}, {}],
        [{"keys": 2}] * 3,
        [{"tokens": 4, "keys": 2}, {"tokens": 3, "keys": 1, "batch": (3,)}, {"tokens": 1}],
        [{"tokens": 4}, {"keys": 2, "batch": (3,)}, {"tokens": 0, "keys": 3}],
    ],
    ids=str,
)
def test_any_input_at_any_block_equals_timms_own_blocks(model, kinds, images):
    inputs = [block_input(**kind) for kind in kinds]
    backbone = from_timm(model)
    expected, got = literal(model, images, inputs), backbone(images, inputs)
    assert (expected - model(images)).abs().max() > 1e-4
    close(got, expected, 1e-10)
    close(backbone(images, backbone.fold(inputs)), expected, 1e-10)
    weights = torch.linspace(-1, 2, got.numel(), dtype=got.dtype).view_as(got)
    gradients = [torch.autograd.grad((f * weights).sum(), leaves(inputs)) for f in (got, expected)]
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients[1])
    close(*gradients, 1e-9)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_prompts_have_no_position(depth, model, images):
    inputs, backbone = prompts(depth), from_timm(model)
    order = torch.tensor([3, 0, 2, 1])
    shuffled = [given if given is NOTHING else pv.BlockInput(tokens=given.tokens[order]) for given in inputs]
    close(backbone(images, shuffled), backbone(images, inputs), 1e-12)
    if model.rope is not None:
        turned = literal(model, images, inputs, turned=True)
        assert (backbone(images, inputs) - turned).abs().max() > 1e-4


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_images_do_not_leak_into_each_other(depth, model, images):
    inputs, backbone = prompts(depth), from_timm(model)
    one_by_one = torch.cat([backbone(image[None], inputs) for image in images])
    close(backbone(images, inputs), one_by_one, 1e-12)
    assert backbone(images[:0], inputs).shape == (0, 24)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize(("kind", "pad", "size"), [("dinov3", False, (8, 24)), ("mixed", True, (21, 30))])
def test_a_dynamic_model_takes_other_sizes(kind, pad, size, depth, make_eva):
    model = make_eva(kind, dynamic_img_size=True, dynamic_img_pad=pad)
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    inputs, backbone = prompts(depth), from_timm(model)
    close(backbone(pixels), model(pixels), 1e-12)
    close(backbone(pixels, inputs), literal(model, pixels, inputs), 1e-10)


@pytest.mark.parametrize("method", [pv.VPT(length=4, depth="shallow"), pv.VPT(length=4), pv.Full()], ids=str)
def test_gradients_are_equal_under_checkpointing(method, model, images):
    tuned = pv.tune(from_timm(model), method, 3).double()
    trained = [p for p in tuned.parameters() if p.requires_grad]

    def gradients():
        return torch.autograd.grad(tuned(images).square().sum(), trained)

    expected = gradients()
    tuned.backbone.model.set_grad_checkpointing(True)
    assert tuned.backbone.checkpointing
    close(gradients(), expected, 1e-12)


@pytest.mark.parametrize("kind", ["mixed", "dinov3"])
def test_full_trains_like_timms_own_model(kind, make_eva, images):
    """Frequencies of mixed positions too; dropped patches and moved coordinates are drawn as in timm."""
    model = make_eva(kind, patch_drop_rate=0.5, rope_rescale_coords=2.0)
    tuned = pv.tune(from_timm(model), pv.Full(), 3).double()
    torch.manual_seed(3)
    features = tuned.backbone(images)
    theirs = copy.deepcopy(tuned.backbone.model).train()
    assert (features - model(images)).abs().max() > 1e-4
    torch.manual_seed(3)
    expected = theirs(images)
    close(features, expected, 1e-12)
    for f, trained in ((features, tuned.backbone.model), (expected, theirs)):
        f.square().sum().backward()
        assert kind != "mixed" or trained.rope.freqs.grad.abs().max() > 1e-6
    for mine, timms in zip(tuned.backbone.model.parameters(), theirs.parameters(), strict=True):
        close(mine.grad, timms.grad, 1e-10)


class Twice(nn.Linear):
    """A layer whose weights do not say what it does, as a LoRA layer is one."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("kind", ["fused, biases beside it", "separate, norms inside", "mixed"])
def test_layers_that_are_not_plain_are_called_whole(kind, depth, make_eva, images):
    model = make_eva(kind)
    inputs, doubled = prompts(depth), copy.deepcopy(model)
    for block, other in zip(doubled.blocks, model.blocks, strict=True):
        for name in ("qkv", "q_proj", "k_proj", "v_proj"):
            if isinstance(getattr(block.attn, name), nn.Linear):
                getattr(other.attn, name).__class__ = Twice
                for parameter in getattr(block.attn, name).parameters():
                    parameter.data.mul_(2)
    close(from_timm(model)(images, inputs), from_timm(doubled)(images, inputs), 1e-12)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resized_backbone_is_timms_own_at_that_size(kind, dynamic, make_eva, images):
    model = make_eva(kind, dynamic_img_size=dynamic)
    backbone = from_timm(model)
    resized = backbone.resized((8, 24))
    theirs = copy.deepcopy(model)
    theirs.set_input_size((8, 24))
    pixels = torch.randn(2, 3, 8, 24, dtype=torch.float64)
    close(resized(pixels), theirs(pixels), 1e-12)
    assert (resized.info.grid, resized.info.rows) == ((2, 6), (12 + resized.info.prefix,) * 3)
    assert resized.preprocessing.size == (8, 24)
    close(backbone(images), model(images), 1e-12)
    with pytest.raises(ConfigError, match="expected at least one patch"):
        backbone.resized((2, 24))


def test_info_says_the_sizes(make_eva):
    info = from_timm(make_eva()).info
    assert (info.family, info.width, info.depth, info.heads, info.head_width) == ("eva", 24, 3, (2, 2, 2), 12)
    assert (info.patch_size, info.grid, info.prefix, info.cls, info.rows) == ((4, 4), (4, 4), 5, True, (21,) * 3)
    assert (info.readout, info.activation, info.channels) == ("avg", "GELU", 3)
    assert from_timm(make_eva("grouped keys, qk-norm")).info.heads == (2, 2, 2)


def test_the_fingerprint_knows_what_weights_do_not_tell(make_eva):
    before = from_timm(make_eva()).fingerprint
    assert from_timm(make_eva()).fingerprint == before
    for change in ({"rope_temperature": 50.0}, {"rope_rotate_half": False}, {"use_post_norm": True}):
        assert from_timm(make_eva(**change)).fingerprint != before


def test_names_of_parts(make_eva):
    backbone = from_timm(make_eva("fused, biases beside it", num_classes=4))
    names = {name.rpartition(".")[2] for name in backbone.biases()}
    assert names == {"bias", "q_bias", "v_bias"}
    assert not [name for name in backbone.body() if name.startswith("head.") or name.endswith("k_bias")]
    assert "rope.freqs" in from_timm(make_eva("mixed")).trainable()
    assert backbone.units() == [["blocks.0"], ["blocks.1"], ["blocks.2"]]
    assert isinstance(backbone.model.get_submodule(backbone.first_convolution), nn.Conv2d)


def test_patches_alone_are_the_embedding_of_timm(model, images):
    close(from_timm(model).embed_patches(images), model.patch_embed(images), 1e-12)


@pytest.mark.parametrize("part", ["patch_embed", "blocks.1", "blocks.2.attn"])
def test_unknown_parts_are_refused_by_class_name(part, make_eva):
    model = make_eva()
    model.set_submodule(part, nn.Bilinear(1, 1, 1))
    with pytest.raises(BackboneError, match=rf"{part} is a Bilinear.*expected timm's"):
        from_timm(model)


def test_a_model_without_pooling_is_refused(make_eva):
    with pytest.raises(BackboneError, match=r"global_pool='' gives all tokens.*token, avg"):
        from_timm(make_eva(global_pool=""))


def test_images_of_another_shape_are_refused(make_eva):
    with pytest.raises(ConfigError, match="expected 3 channels of 16x16 pixels"):
        from_timm(make_eva())(torch.zeros(1, 3, 20, 16, dtype=torch.float64))


def test_copies_are_equal(model, images):
    backbone, inputs = from_timm(model), prompts("shallow")
    expected = backbone(images, inputs)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), backbone.own(["norm.weight"])):
        assert torch.equal(twin(images, inputs), expected)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_bfloat16_autocast_trains(depth, model, images):
    backbone = from_timm(model.float())
    tuned = pv.tune(backbone, pv.VPT(depth=depth), 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = tuned(images.float())
    low.sum().backward()
    assert all(p.grad.abs().max() > 0 and torch.isfinite(p.grad).all() for p in tuned.delta.parameters())
    close(low.float(), tuned(images.float()), 0.15)


COMPILED = """
import torch, promptvit as pv
from timm.models.eva import Eva

methods = [pv.VPT(), pv.VPT(depth="shallow"), pv.Full()]
for arguments, method in zip({kinds}, methods, strict=True):
    model = pv.tune(pv.from_timm(Eva(**{size} | arguments | dict(depth=2))), method, 3)
    images, trained = torch.randn(3, 3, 16, 16), [p for p in model.parameters() if p.requires_grad]
    got, expected = torch.compile(model, fullgraph=True, backend="aot_eager")(images), model(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(logits.square().sum(), trained) for logits in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
print("done")
"""


@pytest.mark.slow
def test_it_compiles_whole(run_python):
    kinds = [KINDS["norm after"], KINDS["dinov3"] | {"dynamic_img_size": True}, KINDS["mixed"]]
    assert run_python(COMPILED.format(kinds=kinds, size=SIZE)) == "done"
