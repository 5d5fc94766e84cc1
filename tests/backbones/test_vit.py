import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer

from promptvit.backbones.base import NOTHING
from promptvit.backbones.load import from_timm
from promptvit.errors import BackboneError, ConfigError


class GatedAttention(Attention):
    """timm's own attention, gated: a ViT passes on a class and no argument for the gate."""

    def __new__(cls, *args, **arguments):
        return Attention(*args, **arguments, gated=True)


SMALL = {"img_size": 32, "patch_size": 8}
# one of each kind in timm's registry: what the entry itself fixes (norms, readout, prefix, MLP, position) stays
# fmt: off
NAMES = [
    "vit_tiny_patch16_224", "vit_small_patch16_384", "vit_base_patch16_224", "vit_base_patch32_224",
    "vit_base_patch8_224", "vit_base_patch16_224.mae", "vit_base_patch16_224.orig_in21k",
    "vit_huge_patch14_224", "vit_base_patch16_224_miil", "vit_base_patch16_gap_224",
    "vit_medium_patch16_gap_240", "vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_plus_clip_240", "vit_base_patch32_plus_256", "vit_small_patch16_36x1_224",
    "eva_large_patch14_196", "flexivit_small", "vit_small_patch14_dinov2", "vit_giant_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2", "vit_base_patch14_reg1_tipsv2",
    "vit_base_patch16_siglip_224", "vit_so400m_patch14_siglip_224", "vit_so400m_patch14_siglip_gap_224",
    "vit_base_patch16_siglip_gap_224", "vit_wee_patch16_reg1_gap_256", "vit_mediumd_patch16_reg4_gap_256",
    "vit_so150m_patch16_reg4_map_256", "vit_so150m2_patch16_reg1_gap_256", "vit_intern300m_patch14_448",
    "aimv2_large_patch14_224", "test_vit", "test_vit2", "test_vit3", "test_vit4", "beit3_base_patch16_224",
    "beit3_giant_patch14_224", "vit_base_patch16_radio_v3", "deit_tiny_patch16_224",
    "deit_base_distilled_patch16_224", "deit3_base_patch16_224",
]
# fmt: on
OPTIONS = {
    "avg": {"global_pool": "avg"},
    "avg with prefix": {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2},
    "avgmax": {"global_pool": "avgmax"},
    "max": {"global_pool": "max"},
    "map": {"global_pool": "map"},
    "prr": {"global_pool": "prr"},
    "prr without CLS": {"global_pool": "prr", "class_token": False},
    "norm before pooling": {"global_pool": "avg", "fc_norm": False},
    "no CLS": {"global_pool": "avg", "class_token": False},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "no position": {"pos_embed": "none"},
    "qk-norm": {"qk_norm": True},
    "attention norm": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no qkv bias": {"qkv_bias": False},
    "layer scale": {"init_values": 1e-5},
    "pre-norm": {"pre_norm": True},
    "gated attention": {"attn_layer": GatedAttention},
    "oblong": {"img_size": (16, 24), "patch_size": (4, 8)},
    "grey": {"in_chans": 1},
}


def images(model, batch=2, size=None):
    height, width = size or model.patch_embed.img_size
    return torch.randn(batch, model.patch_embed.proj.in_channels, height, width, dtype=torch.float64)


@torch.no_grad()
def assert_equals_timm(model, pixels):
    expected = model(pixels)
    got = from_timm(model)(pixels)
    assert expected.std() > 1e-3
    assert (got - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_without_prompts_it_is_timms_own_model(name, make_vit):
    model = make_vit(name, **SMALL)
    assert_equals_timm(model, images(model))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_architecture_option_is_driven(option, make_vit):
    model = make_vit(**OPTIONS[option])
    if option == "gated attention":
        assert model.blocks[0].attn.gate is not None
    assert_equals_timm(model, images(model))


@pytest.mark.parametrize(("pad", "size"), [(False, (24, 32)), (True, (21, 30))])
def test_a_dynamic_model_takes_other_sizes(pad, size, make_vit):
    model = make_vit(dynamic_img_size=True, dynamic_img_pad=pad)
    assert_equals_timm(model, images(model, size=size))


def test_a_model_with_a_classifier_gives_its_features(make_vit):
    model = make_vit(num_classes=5)
    pixels = images(model)
    backbone = from_timm(model)
    torch.testing.assert_close(model.head(backbone(pixels)), model(pixels), rtol=0, atol=1e-12)
    assert not [name for name in backbone.body() if name.startswith("head")]


@pytest.mark.slow
def test_vit_base_whole_in_float32():
    model = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert (from_timm(model)(pixels) - model(pixels)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit_base_patch16_224", 1), ("deit_base_distilled_patch16_224", 2), ("vit_base_patch16_siglip_224", 0)],
)
def test_info_says_the_sizes(name, prefix, make_vit):
    model = make_vit(name, **SMALL)
    info = from_timm(model).info
    assert (info.width, info.depth, info.heads, info.head_width, info.channels) == (24, 3, (2, 2, 2), 12, 3)
    assert (info.patch_size, info.grid, info.prefix) == ((8, 8), (4, 4), prefix)
    assert info.readout == model.global_pool


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
        ("vit_base_patch16_rpn_224", "ResPostBlock"),
        ("vit_dwee_patch16_reg1_gap_256", "DiffAttention"),
        ("vit_dpwee_patch16_reg1_gap_256", "DiffParallelScalingBlock"),
        ("vit_tiny_r_s16_p8_224", "HybridEmbed"),
        ("mixer_s32_224", "MlpMixer"),
    ],
)
def test_other_architectures_are_refused_by_class_name(name, culprit):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(BackboneError, match=culprit) as caught:
        from_timm(model)
    assert "expected" in str(caught.value)


def test_a_model_without_pooling_is_refused():
    with pytest.raises(BackboneError, match=r"global_pool='' gives all tokens.*token, avg"):
        from_timm(VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, global_pool=""))


@pytest.mark.parametrize(
    ("arguments", "shape", "expected"),
    [
        ({}, (1, 3, 20, 16), "3 channels of 16x16 pixels"),
        ({}, (1, 1, 16, 16), "3 channels of 16x16 pixels"),
        ({"dynamic_img_size": True}, (1, 3, 18, 16), "3 channels of multiples of 4x4 pixels"),
        ({"dynamic_img_size": True, "dynamic_img_pad": True}, (1, 4, 18, 16), "3 channels of any number of pixels"),
    ],
)
def test_images_of_another_shape_are_refused(arguments, shape, expected, make_vit):
    backbone = from_timm(make_vit(**arguments))
    with pytest.raises(ConfigError) as caught:
        backbone(torch.zeros(shape, dtype=torch.float64))
    assert f"images of shape {list(shape)}; expected {expected}" in str(caught.value)


def test_the_number_of_block_inputs_is_checked(make_vit):
    with pytest.raises(ConfigError, match="2 block inputs; expected one per block, 3"):
        from_timm(make_vit())(torch.zeros(1, 3, 16, 16, dtype=torch.float64), [NOTHING] * 2)
