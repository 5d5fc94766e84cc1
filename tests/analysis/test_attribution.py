import sys

import pytest
import torch
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import promptvit as pv
from promptvit.analysis.attention import attention_rollout
from promptvit.analysis.attribution import attribution_maps, grad_cam, integrated_gradients
from promptvit.errors import ConfigError, UnknownNameError
from promptvit.preprocessing import Preprocessing

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
MODELS = {
    "cls": lambda: VisionTransformer(**SMALL),
    "registers, avg": lambda: VisionTransformer(**SMALL, reg_tokens=4, global_pool="avg"),
    "no prefix, map": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="map"),
    "rotation": lambda: Eva(**SMALL, use_rot_pos_emb=True, global_pool="token", num_reg_tokens=2),
    "swin": lambda: SwinTransformer(
        img_size=16, patch_size=2, embed_dim=12, num_classes=0, depths=(2, 2), num_heads=(2, 4), window_size=2
    ),
}
GRIDS = {"swin": (4, 4)}
METHODS = {
    "deep": pv.VPT(length=10),
    "shallow": pv.VPT(length=10, depth="shallow"),
    "patches": pv.VPT(length=10, pooling="image"),
    "key-value": pv.E2VPT(),
    "full": pv.Full(),
    "linear": pv.Linear(),
}


def oblong_swin():
    """6x10 patches, then 3x5: windows are shifted and filled up."""
    sizes = {"img_size": (12, 20), "patch_size": 2, "window_size": (2, 3), "depths": (2, 2), "num_heads": (2, 4)}
    return SwinTransformer(**sizes, embed_dim=12, num_classes=0)


@pytest.fixture
def make_model(make_small):
    """A float64 model in train mode, with all that is trained away from zero."""

    def make(construct, method):
        backbone = pv.from_timm(make_small(construct), preprocessing=Preprocessing(size=(16, 16)))
        model = pv.tune(backbone, method, 5).double()
        with torch.no_grad():
            for parameter in (*model.delta.parameters(), *model.head.parameters()):
                parameter.copy_(torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def literal_cam(activations, gradients):
    """Of one image: patches and their gradients [M, D], one channel after the other."""
    total = torch.zeros(len(activations), dtype=activations.dtype)
    for channel in range(activations.shape[1]):
        total += gradients[:, channel].mean() * activations[:, channel]
    return total.clamp(min=0)


@pytest.mark.parametrize("target", [None, 3])
@pytest.mark.parametrize("method", ["deep", "shallow", "linear"])
@pytest.mark.parametrize("name", ["cls", "registers, avg"])
def test_it_is_grad_cam_of_timms_own_blocks_with_prompts_behind_the_prefix(name, method, target, make_model, images):
    model = make_model(MODELS[name], METHODS[method])
    inner, prefix, length = model.backbone.model, model.backbone.info.prefix, 0
    x = inner._pos_embed(inner.patch_embed(images))
    for block, given in zip(inner.blocks, model.delta(model.backbone, 3) or [pv.BlockInput()] * 3, strict=True):
        if given.tokens is not None:
            x = torch.cat([x[:, :prefix], given.tokens.expand(3, -1, -1), x[:, prefix + length :]], dim=1)
            length = given.tokens.shape[0]
        entering = x = x.clone().requires_grad_()
        entering.retain_grad()
        x = block(x)
    x = inner.norm(torch.cat([x[:, :prefix], x[:, prefix + length :]], dim=1))
    logits = model.head(inner.forward_head(x, pre_logits=True))
    chosen = logits.argmax(dim=1) if target is None else torch.full((3,), target)
    for number in range(3):
        (gradient,) = torch.autograd.grad(logits[number, chosen[number]], entering, retain_graph=True)
        patches = slice(prefix + length, None)
        expected = literal_cam(entering[number, patches].detach(), gradient[number, patches])
        ours = grad_cam(model, images, None if target is None else chosen)[number]
        torch.testing.assert_close(ours.flatten(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_it_is_grad_cam_of_timms_own_swin(depth, make_model, images):
    model, kept = make_model(MODELS["swin"], METHODS["linear"]), []
    layer = model.backbone.model.layers[1]
    hook = layer.blocks[depth - 2].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    logits = model.head(model.backbone.model(images.requires_grad_()))
    hook.remove()
    for number in range(3):
        (gradient,) = torch.autograd.grad(logits[number].max(), kept[0], retain_graph=True)
        expected = literal_cam(kept[0][number].flatten(0, 1).detach(), gradient[number].flatten(0, 1))
        ours = grad_cam(model, images.detach(), depth=depth)[number]
        torch.testing.assert_close(ours.flatten(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["deep", "shallow", "key-value"])
def test_of_a_prompted_swin_it_is_grad_cam_of_its_patches_alone(method, make_model):
    """Of the rows that enter the last block as the model itself runs."""
    model, kept = make_model(oblong_swin, METHODS[method]).eval(), []
    images = torch.randn(3, 3, 12, 20, dtype=torch.float64)
    norm = model.backbone.model.layers[1].blocks[1].norm1
    hook = norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))  # first of prompts that are folded
    logits, entering = model(images), kept[-1]
    hook.remove()
    found = grad_cam(model, images)
    assert found.shape == (3, 3, 5)
    assert entering.shape[1] == 15 + 10 * (method == "shallow")
    for number in range(3):
        (gradient,) = torch.autograd.grad(logits[number].max(), entering, retain_graph=True)
        expected = literal_cam(entering[number, :15].detach(), gradient[number, :15])
        torch.testing.assert_close(found[number].flatten(), expected, rtol=0, atol=1e-12)
        assert found[number].max() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_have_a_value_for_each_patch_and_are_not_zero(name, method, make_model, images):
    model = make_model(MODELS[name], METHODS[method])
    found = grad_cam(model, images)
    assert found.shape == (3, *GRIDS.get(name, (4, 4)))
    assert found.min() >= 0
    assert found.max() > 0
    assert not found.requires_grad
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert grad_cam(model, images, depth=0).shape == (3, *model.backbone.info.grid)


@torch.no_grad()
def test_it_does_not_depend_on_the_other_images_or_on_the_callers_mode(make_model, images):
    model = make_model(MODELS["cls"], pv.VPT(length=4, dropout=0.5))
    whole = grad_cam(model, images)
    alone = torch.cat([grad_cam(model, image[None]) for image in images])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)


def test_where_no_gradient_arrives_it_says_so(make_model, images):
    model = make_model(MODELS["cls"], METHODS["deep"])
    with pytest.raises(ConfigError, match=r"Grad-CAM at depth 3 is zero at every patch.* Use depth=2"):
        grad_cam(model, images, depth=3)
    assert grad_cam(make_model(MODELS["registers, avg"], METHODS["deep"]), images, depth=3).max() > 0
    torch.nn.init.zeros_(model.head.weight)
    with pytest.raises(ConfigError, match="a trained head"):
        grad_cam(model, images)
    for depth in (-1, 4):
        with pytest.raises(ConfigError, match=f"depth={depth}; expected 0 to 3"):
            grad_cam(model, images, depth=depth)


@pytest.mark.parametrize("method", ["deep", "shallow", "full", "linear"])
@pytest.mark.parametrize("name", ["cls", "swin"])
def test_integrated_gradients_add_up(name, method, make_model, images):
    model = make_model(MODELS[name], METHODS[method])
    targets = torch.tensor([0, 4, 2])
    found = integrated_gradients(model, images, targets)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        logits = [model.eval()(each).gather(1, targets[:, None])[:, 0] for each in (images, torch.zeros_like(images))]
    error = found.values.sum(dim=(1, 2, 3)) - (logits[0] - logits[1])
    assert error.abs().max() < 1e-3
    torch.testing.assert_close(found.error, error, rtol=0, atol=1e-9)
    assert not found.values.requires_grad


def test_they_are_the_mean_gradient_along_the_way(make_model, images):
    model, steps = make_model(MODELS["cls"], METHODS["deep"]).eval(), 400
    expected = torch.zeros_like(images)
    targets = model(images).argmax(dim=1)
    for step in range(steps):
        between = (images * (step + 0.5) / steps).requires_grad_()
        score = model(between).gather(1, targets[:, None]).sum()
        expected += torch.autograd.grad(score, between)[0] * images / steps
    found = integrated_gradients(model, images)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    maps = found.maps((4, 4))
    for y in range(4):
        for x in range(4):
            patch = found.values[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            torch.testing.assert_close(maps[:, y, x], patch.mean(dim=(1, 2, 3)), rtol=0, atol=1e-12)


def test_too_few_steps_show_in_the_error(make_model, images):
    model = make_model(MODELS["cls"], METHODS["deep"])
    assert integrated_gradients(model, images, steps=2).error.abs().max() > 1e-3
    with pytest.raises(ConfigError, match="steps=0; expected at least 1"):
        integrated_gradients(model, images, steps=0)


def test_without_captum_it_says_what_to_install(make_model, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"need captum.*pip install 'promptvit\[analysis\]'"):
        integrated_gradients(make_model(MODELS["cls"], METHODS["deep"]), images)


def test_every_kind_has_a_map_of_each_image(make_model, images, untyped):
    model, images = make_model(MODELS["swin"], METHODS["deep"]), images[[0, 1, 2, 0, 1, 2, 0, 1, 2]]
    batches = [images[:8], images[8:]]
    for kind, expected in {
        "grad-cam": grad_cam(model, images),
        "rollout": attention_rollout(model, images).maps,
        "integrated-gradients": integrated_gradients(model, images).maps((8, 8)),
    }.items():
        torch.testing.assert_close(attribution_maps(model, batches, kind), expected, rtol=0, atol=1e-9)
    with pytest.raises(UnknownNameError, match=r"unknown kind of map 'gradcam'\. Did you mean grad-cam"):
        attribution_maps(model, batches, "gradcam")


def test_a_convnet_has_integrated_gradients_alone(make_model, images):
    model = make_model(lambda: ResNet(BasicBlock, (1, 1, 1, 1), channels=(6, 8, 10, 12), num_classes=0), pv.Linear())
    assert attribution_maps(model, [images], "integrated-gradients").shape == (3, *model.backbone.info.grid)
    for kind in ("grad-cam", "rollout"):
        with pytest.raises(ConfigError, match="it has no patch tokens; expected a transformer"):
            attribution_maps(model, [images], kind)
