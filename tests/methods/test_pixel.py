import copy
import dataclasses

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.methods.pixel import Pixel
from promptvit.preprocessing import Preprocessing

LOCATIONS = ("prepend", "pad", "below")
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
MEAN, STD = IMAGENET.double()[..., None, None]  # [3, 1, 1]
GREY_MEAN, GREY_STD = IMAGENET.mean(dim=1).double()


def convnext(**arguments):
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 12, 12), output_stride=8, num_classes=0, **arguments)


def resnet(**arguments):
    return ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(8, 8, 12, 12), num_classes=0, **arguments)


def swin():
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    return SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2, drop_path_rate=0)


def eva():
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return Eva(**size, use_rot_pos_emb=True, qkv_fused=False)


OTHERS = {"convnext": convnext, "resnet": resnet, "deep stem": lambda: resnet(stem_type="deep", stem_width=8)}
OTHERS |= {"swin": swin, "eva": eva}
SUPPORTED = {
    **dict.fromkeys(("convnext", "resnet", "deep stem"), ("pad", "below")),
    "vit": LOCATIONS,
    "swin": ("prepend", "below"),
    "eva": LOCATIONS,
}
PAIRS = [(name, location) for name, locations in SUPPORTED.items() for location in locations]


@pytest.fixture
def make_backbone(make_vit, make_small):
    """A small backbone of a family, for images of 16 by 16 pixels."""

    def make(name):
        model = make_vit() if name == "vit" else make_small(OTHERS[name])
        return pv.from_timm(model, preprocessing=Preprocessing(size=(16, 16)))

    return make


@pytest.fixture(params=PAIRS, ids=" ".join)
def pair(request, make_backbone):
    """A small backbone and a location that it can have."""
    name, location = request.param
    return make_backbone(name), Pixel(location=location, length=2)


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def tuned(backbone, method, classes=4):
    """In float64 and with a head away from zero."""
    return pv.tune(backbone, method, classes).double()


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def on_meta(name):
    with torch.device("meta"):
        return pv.from_timm(timm.create_model(name, num_classes=0))


def trained(name, method):
    """Parameters without the head's, counted on a model without values."""
    backbone = on_meta(name)
    with torch.device("meta"):
        model = pv.tune(backbone, method, 10)
    return model.trained_parameters() - count(model.head)


@pytest.mark.parametrize(
    ("name", "location", "length", "expected"),
    [
        ("vit_base_patch16_224", "prepend", 1, 768),
        ("vit_base_patch16_224", "prepend", 10, 7_680),
        ("vit_base_patch16_224", "pad", 8, 22_272),
        ("vit_base_patch16_224", "below", 1, 837_376),
        ("resnet50", "below", 5, 276_096),
        ("resnet50", "pad", 5, 13_740),
        ("convnext_base", "below", 1, 224**2 + 4 * 4**2 * 128 + 128),
        *(("convnext_base", "pad", *pair) for pair in {1: 2_700, 3: 8_172, 5: 13_740, 7: 19_404}.items()),
        *(("convnext_base", "pad", *pair) for pair in {9: 25_164, 11: 31_020}.items()),
    ],
)
def test_parameters_are_the_papers(name, location, length, expected):
    assert trained(name, Pixel(location=location, length=length)) == expected


# What each location computes, written out.


def test_prepended_pixels_are_patches_without_position_that_travel_on(make_backbone, images):
    backbone = make_backbone("vit")
    model, vit = tuned(backbone, Pixel(length=3)), backbone.model
    patches = model.delta.pixels.values.unfold(2, 4, 4).permute(2, 0, 1, 3)  # [P, 3, 4, 4]
    tokens = torch.stack([vit.patch_embed.proj(patch[None]).flatten() for patch in patches])
    x = vit._pos_embed(vit.patch_embed(images))
    x = torch.cat([x[:, :1], tokens.expand(3, -1, -1), x[:, 1:]], dim=1)
    for block in vit.blocks:
        x = block(x)
    literal = model.head(vit.norm(x)[:, 0])
    torch.testing.assert_close(model(images), literal, rtol=0, atol=1e-12)
    got, expected = (
        torch.autograd.grad(out.square().sum(), model.delta.pixels.values)[0] for out in (model(images), literal)
    )
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_prepended_pixels_enter_the_first_stage_of_a_swin(make_backbone, images):
    backbone = make_backbone("swin")
    model = tuned(backbone, Pixel(length=3))
    first, *others = model.delta(backbone, 3)
    assert first.tokens.shape == (3, 12)
    assert all(given.tokens is None for given in others)
    assert not torch.equal(model(images), model.head(backbone(images)))


@pytest.mark.parametrize("name", ["vit", "eva", "convnext", "resnet"])
def test_padded_images_are_seen_by_a_larger_model(name, make_backbone, make_vit, make_small, images):
    backbone, p = make_backbone(name), 2 if name in ("vit", "eva") else 3
    model = tuned(backbone, Pixel(location="pad", length=p))
    size = 16 + 2 * p
    framed = torch.full((3, 3, size, size), torch.nan, dtype=torch.float64)
    framed[:, :, p:-p, p:-p] = images
    rows, columns = ((pixels.values - MEAN) / STD for pixels in (model.delta.rows, model.delta.columns))
    framed[:, :, :p], framed[:, :, -p:] = rows[:, :p], rows[:, p:]
    framed[:, :, p:-p, :p], framed[:, :, p:-p, -p:] = columns[..., :p], columns[..., p:]
    assert torch.equal(model.delta.on_images(images), framed)

    reference = make_vit() if name == "vit" else make_small(OTHERS[name])
    if name in ("vit", "eva"):
        reference.set_input_size((size, size))
    torch.testing.assert_close(model(images), model.head(reference(framed)), rtol=0, atol=1e-10)
    assert model.preprocessing.size == backbone.preprocessing.size == (16, 16)


def test_rows_and_columns_of_oblong_images(make_vit):
    backbone = pv.from_timm(make_vit(img_size=(8, 16)))
    model = tuned(backbone, Pixel(location="pad", length=2))
    assert model.delta.rows.values.shape == (3, 4, 20)
    assert model.delta.columns.values.shape == (3, 8, 4)
    assert model.delta.on_images(torch.zeros(1, 3, 8, 16, dtype=torch.float64)).shape == (1, 3, 12, 20)
    assert model.backbone.info.grid == (3, 5)


@pytest.mark.parametrize("name", ["vit", "eva", "swin", "convnext", "resnet", "deep stem"])
def test_channels_below_are_read_by_a_wider_convolution(name, make_backbone, images):
    backbone = make_backbone(name)
    model = tuned(backbone, Pixel(location="below", length=2)).eval()
    reference, place = copy.deepcopy(backbone.model), backbone.first_convolution
    old, new = reference.get_submodule(place), model.backbone.model.get_submodule(place)
    assert torch.equal(new.weight[:, :3], old.weight)
    assert new.bias is None or not new.bias.any()
    height, width = old.kernel_size
    bound = (6 / (3 * height * width + old.out_channels)) ** 0.5
    assert 0.9 * bound < new.weight[:, 3:].abs().max() <= bound

    pixels = model.delta.pixels.values
    if name in ("convnext", "resnet", "deep stem"):
        pixels = (pixels - GREY_MEAN) / GREY_STD
    wide = nn.Conv2d(5, old.out_channels, old.kernel_size, old.stride, old.padding, bias=new.bias is not None).double()
    wide.load_state_dict(new.state_dict())
    parent, _, child = place.rpartition(".")
    setattr(reference.get_submodule(parent), child, wide)
    joined = torch.cat([images, pixels.expand(3, -1, -1, -1)], dim=1)
    torch.testing.assert_close(model(images), model.head(reference(joined)), rtol=0, atol=1e-12)


# Initial values.


@pytest.mark.parametrize("location", LOCATIONS)
def test_initial_values(location):
    backbone = pv.from_timm(timm.create_model("vit_tiny_patch16_224", num_classes=0))  # v = sqrt(6 / (768 + 192))

    def pixels(init):
        delta = Pixel(location=location, length=8, init=init).build(backbone)
        return delta.rows if location == "pad" else delta.pixels

    gaussian, imagenet, paper = pixels("gaussian"), pixels("imagenet"), pixels("paper")
    assert gaussian.values.std().item() == pytest.approx(1, rel=0.03)
    assert torch.equal(gaussian(), gaussian.values)
    assert 0 <= imagenet.values.min() < 0.01 < 0.99 < imagenet.values.max() < 1
    mean, std = (GREY_MEAN, GREY_STD) if location == "below" else (MEAN, STD)
    torch.testing.assert_close(imagenet().double(), (imagenet.values.double() - mean) / std, rtol=0, atol=1e-5)
    if location == "pad":
        assert 0 <= paper.values.min() < 0.01 < 0.99 < paper.values.max() < 1
        assert paper.statistics is not None
    else:
        assert 0.99 * 0.0790569 < paper.values.abs().max() <= 0.0790569
        assert torch.equal(paper(), paper.values)


def test_channels_below_a_convnet_start_in_zero_to_one(make_backbone):
    delta = Pixel(location="below", length=40).build(make_backbone("resnet"))
    assert 0 <= delta.pixels.values.min() < 0.01 < 0.99 < delta.pixels.values.max() < 1


def test_images_that_are_not_in_colour_have_the_mean_of_the_colours(make_vit):
    backbone = pv.from_timm(make_vit(in_chans=2))
    delta = Pixel(location="pad", length=2).build(backbone).double()
    expected = (delta.rows.values - GREY_MEAN) / GREY_STD
    torch.testing.assert_close(delta.rows(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("location", "pad"), ("length", 2), ("init", "gaussian")])
def test_every_field_changes_something(field, value, make_backbone, images):
    backbone = make_backbone("vit")

    def logits(**fields):
        torch.manual_seed(0)
        model = tuned(backbone, Pixel(**fields))
        nn.init.eye_(model.head.weight)
        return model(images)

    assert torch.equal(logits(), logits())
    assert not torch.allclose(logits(), logits(**{field: value}))


# Training and saving.


def expected_names(model):
    """What is trained: the delta, the head, and for `below` the first convolution and its batch norm."""
    names = {f"{part}.{name}" for part in ("delta", "head") for name, _ in getattr(model, part).named_parameters()}
    if model.method.location == "below":
        stem = {"vit": ["patch_embed.proj"], "swin": ["patch_embed.proj"], "eva": ["patch_embed.proj"]}
        stem |= {"convnext": ["stem.0"], "resnet": ["conv1", "bn1"]}
        modules = stem[model.backbone.info.family]
        if model.backbone.first_convolution == "conv1.0":
            modules = ["conv1.0", "conv1.1"]
        parts = tuple(f"backbone.model.{module}." for module in modules)
        names |= {name for name, _ in model.named_parameters() if name.startswith(parts)}
    return names


def test_gradients_reach_all_that_is_trained_and_nothing_else(pair, images):
    backbone, method = pair
    before, keys = copy.deepcopy(backbone.model.state_dict()), list(backbone.model.state_dict())
    model = tuned(backbone, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(images), torch.arange(3)).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert with_gradient == expected_names(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == with_gradient
    optimizer.step()
    after = backbone.model.state_dict()
    assert list(after) == keys
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_saving_and_loading_changes_no_bit(pair, images, tmp_path):
    backbone, method = pv.from_timm(pair[0].model.float(), preprocessing=pair[0].preprocessing), pair[1]
    model = pv.tune(backbone, dataclasses.replace(method, init="imagenet"), 4)
    model(images.float() + 1)  # a batch norm that is trained moves its statistics
    model.save(tmp_path)
    loaded = pv.load(tmp_path, backbone=backbone)
    assert torch.equal(loaded(images.float()), model.eval()(images.float()))
    torch.testing.assert_close(model.fold()(images.float()), loaded(images.float()), rtol=0, atol=1e-5)
    assert loaded.trained_parameters() == model.trained_parameters()


@pytest.mark.parametrize(("name", "norm"), [("resnet", "bn1"), ("deep stem", "conv1.1")])
def test_only_the_batch_norm_behind_the_new_convolution_is_in_train_mode(name, norm, make_backbone, images):
    backbone = make_backbone(name)
    model = tuned(backbone, Pixel(location="below", length=2))
    norms = {n: m for n, m in model.backbone.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {n for n, m in norms.items() if m.training} == {norm}
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    model(images)
    assert {n for n, m in norms.items() if not torch.equal(m.running_mean, before[n])} == {norm}
    assert f"backbone.{norm}.running_mean" in model.trained_tensors()
    assert not any(m.training for m in model.eval().modules())
    padded = tuned(backbone, Pixel(location="pad", length=2))
    assert not any(m.training for m in padded.backbone.modules())


def test_two_tasks_share_the_frozen_weights_alone(pair):
    backbone, method = pair
    first, second = tuned(backbone, method), tuned(backbone, method)
    shared = {id(p) for p in first.backbone.parameters() if not p.requires_grad}
    assert {id(p) for p in second.backbone.parameters() if not p.requires_grad} & shared
    trained = {id(p) for p in first.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in [*second.parameters(), *backbone.parameters()]}


# What is refused.


@pytest.mark.parametrize(("length", "divides"), [(5, False), (8, True), (12, False), (16, True)])
def test_a_frame_of_a_vit_makes_whole_patches(length, divides):
    backbone, method = on_meta("vit_base_patch16_224"), Pixel(location="pad", length=length)
    if divides:
        grid = 14 + 2 * length // 16
        assert method.prepare(backbone).info.grid == (grid, grid)
        return
    with pytest.raises(ConfigError, match=f"length={length} makes images of .*multiples of the patch, 16x16") as caught:
        pv.tune(backbone, method, 3)
    assert "dropped" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "location", "reason"),
    [("resnet", "prepend", "no tokens"), ("convnext", "prepend", "no tokens"), ("swin", "pad", "windows")],
)
def test_what_a_family_cannot_have_is_refused(name, location, reason, make_backbone):
    with pytest.raises(ConfigError, match=reason):
        pv.tune(make_backbone(name), Pixel(location=location, length=2), 3)


@pytest.mark.parametrize("location", ["pad", "below"])
def test_images_of_another_size_are_refused(location, make_backbone):
    model = tuned(make_backbone("resnet"), Pixel(location=location, length=2))
    with pytest.raises(ConfigError, match="images of 16x20 pixels; expected 16x16"):
        model(torch.zeros(2, 3, 16, 20, dtype=torch.float64))


def test_all_that_is_wrong_with_a_config_is_said_at_once(untyped):
    with pytest.raises(ConfigError) as caught:
        Pixel(location="above", length=0, init="zeros")
    for part in ("location='above': expected prepend, pad or below", "length=0: expected at least 1", "init='zeros'"):
        assert part in str(caught.value)


def test_names_stand_for_locations():
    assert [METHODS[f"pixel-{location}"].build().location for location in LOCATIONS] == list(LOCATIONS)
    assert METHODS["pixel"].build(location="pad") == METHODS["pixel-pad"].build() == Pixel(location="pad")
    with pytest.raises(ConfigError, match="this name stands for location='pad'"):
        METHODS["pixel-pad"].build(location="below")
