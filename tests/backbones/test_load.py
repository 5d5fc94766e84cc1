import copy
from functools import partial
from importlib.resources import files

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.models import is_model_in_modules, save_for_hf
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import promptvit as pv
from promptvit.backbones.load import BUNDLED, CONVERTED, family_of
from promptvit.backbones.source import BackboneSource
from promptvit.errors import BackboneError, ConfigError, DeltaError, UnknownNameError
from promptvit.methods import METHODS
from promptvit.preprocessing import Preprocessing

NAME = "test_vit"  # timm's own small one: width 64, 6 blocks, 160x160


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(3)
    return timm.create_model(NAME, num_classes=0).state_dict()


def assert_same_tensors(model, expected):
    tensors = model.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


ASSETS = files("promptvit.backbones") / "assets"
PICO = ["vit_pico", "vit_pico_mae"]


def asset(name):
    """The weights of a bundled backbone as float32, and those of its head."""
    given = safetensors.torch.load_file(str(ASSETS / f"{name}.safetensors"))
    return {key: tensor.float() for key, tensor in given.items()}


def body(weights):
    return {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}


@pytest.mark.parametrize("name", PICO)
def test_a_bundled_backbone_is_trained_frozen_and_always_the_same(name):
    backbone, again = pv.load_backbone(name), pv.load_backbone(name)
    assert backbone.fingerprint == again.fingerprint != pv.load_backbone(name, pretrained=False).fingerprint
    assert backbone.preprocessing == Preprocessing(size=(32, 32))
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())
    literal = VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4, num_classes=0).eval()
    literal.load_state_dict(body(asset(name)))
    assert_same_tensors(backbone.model, literal.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images), literal(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PICO)
def test_a_bundled_backbone_is_read_in_every_way(name):
    given, images = asset(name), torch.randn(2, 3, 32, 32)
    assert pv.load_backbone(name, pool="token").fingerprint == pv.load_backbone(name).fingerprint
    vit = pv.load_backbone(name).model
    mean = vit.blocks(vit._pos_embed(vit.patch_embed(images)))[:, 1:].mean(dim=1)
    own = {"weight": given["norm.weight"], "bias": given["norm.bias"]}
    for pool, norm in (("avg", {}), ("avg-pretrained", own)):
        expected = torch.nn.functional.layer_norm(mean, (128,), **norm, eps=1e-6)
        torch.testing.assert_close(pv.load_backbone(name, pool=pool)(images), expected, rtol=0, atol=1e-5)


def test_another_file_of_a_bundled_architecture_is_loaded(tmp_path):
    given = {key: torch.randn_like(tensor).half() for key, tensor in asset("vit_pico").items()}
    safetensors.torch.save_file(given, tmp_path / "weights.safetensors")
    backbone = pv.load_backbone("vit_pico", checkpoint=tmp_path / "weights.safetensors")
    assert_same_tensors(backbone.model, {key: tensor.float() for key, tensor in body(given).items()})
    assert backbone.preprocessing == Preprocessing(size=(32, 32))


@pytest.mark.parametrize(("size", "expected"), [(48, (48, 48)), ((16, 40), (16, 40))])
def test_positions_are_resampled_to_another_image_size(size, expected):
    backbone = pv.load_backbone(image_size=size)
    assert backbone.preprocessing.size == expected
    assert backbone.model.pos_embed.shape[1] == 1 + expected[0] * expected[1] // 16
    assert backbone(torch.zeros(1, 3, *expected)).shape == (1, 128)
    other = pv.load_backbone(NAME, pretrained=False, image_size=size)
    assert (other.preprocessing.size, other.model.patch_embed.img_size) == (expected, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_picco", "unknown backbone 'vit_picco'. Did you mean vit_pico"),
        ("vit_base_patch16_244", "Did you mean vit_base_patch16_224"),
        ("vit_base_patch16_224.orig_in21", "Did you mean vit_base_patch16_224.orig_in21k"),
        ("vit_tiny_patch16_224.nothing_like_it", "Weights of vit_tiny_patch16_224: vit_tiny_patch16_224.augreg_in21k"),
        ("qqqqqqq", "unknown backbone 'qqqqqqq'. All names: `promptvit backbones`"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(UnknownNameError) as caught:
        pv.load_backbone(name)
    assert message in str(caught.value)


def test_names_are_the_ones_that_load():
    names = pv.backbone_names()
    assert names[:2] == ["vit_pico", "vit_pico_mae"]
    assert {"vit_base_patch16_224.orig_in21k", "deit_base_distilled_patch16_224.fb_in1k"} < set(names)
    assert set(names) - set(BUNDLED) - set(CONVERTED) <= set(timm.list_pretrained())
    assert "vit_base_patch16_224" in pv.backbone_names(pretrained=False)


def shallow(name):
    """Arguments that build an architecture with as few blocks as it takes."""
    if is_model_in_modules(name, ["resnet"]):
        return {"layers": (1, 1, 1, 1)}
    if "sapiens" in name:  # as many blocks as it has numbers of heads
        return {}
    return {"depths": (1, 1, 1, 1)} if is_model_in_modules(name, ["convnext", "swin_transformer"]) else {"depth": 1}


@pytest.mark.slow
def test_every_listed_architecture_is_driven():
    refused = []
    for name in set(pv.backbone_names(pretrained=False)) - set(BUNDLED) - set(CONVERTED):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, **shallow(name))
        try:
            family_of(model)
        except BackboneError:
            refused.append(name)
    assert refused == []


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_local_checkpoint_is_loaded(suffix, weights, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    safetensors.torch.save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    backbone = pv.load_backbone(NAME, checkpoint=path)
    assert_same_tensors(backbone.model, weights)
    assert backbone.source == BackboneSource(name=NAME, checkpoint=str(path))
    wide = pv.load_backbone(NAME, checkpoint=path, image_size=192)
    assert wide.model.pos_embed.shape[1] == 1 + 12 * 12


def google_layout(model: VisionTransformer) -> dict[str, np.ndarray]:
    """The tensors of `model` under the names and in the shapes of the original JAX checkpoints."""
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    heads, width = model.blocks[0].attn.num_heads, model.embed_dim
    out = {
        "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": w["patch_embed.proj.bias"],
        "cls": w["cls_token"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "Transformer/encoder_norm/scale": w["norm.weight"],
        "Transformer/encoder_norm/bias": w["norm.bias"],
    }
    for i in range(len(model.blocks)):
        there, here = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        for norm, number in (("LayerNorm_0", 1), ("LayerNorm_2", 2)):
            out[f"{there}/{norm}/scale"] = w[f"{here}.norm{number}.weight"]
            out[f"{there}/{norm}/bias"] = w[f"{here}.norm{number}.bias"]
        attention = f"{there}/MultiHeadDotProductAttention_1"
        kernels = np.split(w[f"{here}.attn.qkv.weight"].T, 3, axis=1)
        biases = np.split(w[f"{here}.attn.qkv.bias"], 3)
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            out[f"{attention}/{part}/kernel"] = kernel.reshape(width, heads, -1)
            out[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        out[f"{attention}/out/kernel"] = w[f"{here}.attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{attention}/out/bias"] = w[f"{here}.attn.proj.bias"]
        for number in (1, 2):
            out[f"{there}/MlpBlock_3/Dense_{number - 1}/kernel"] = w[f"{here}.mlp.fc{number}.weight"].T
            out[f"{there}/MlpBlock_3/Dense_{number - 1}/bias"] = w[f"{here}.mlp.fc{number}.bias"]
    return out


def of_a_classifier(width):
    """What Google's files hold beside the body: the layer before the head, and the head."""
    shapes = {"pre_logits/kernel": (width, width), "pre_logits/bias": width}
    shapes |= {"head/kernel": (width, 1000), "head/bias": 1000}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("classifier", [False, True])
def test_a_checkpoint_in_googles_layout_is_loaded(classifier, weights, tmp_path):
    model = timm.create_model(NAME, num_classes=0)
    model.load_state_dict(weights)
    path = tmp_path / "vit.npz"
    np.savez(path, **google_layout(model), **of_a_classifier(model.embed_dim) if classifier else {})
    backbone, images = pv.load_backbone(NAME, checkpoint=path), torch.randn(2, 3, 160, 160)
    assert_same_tensors(backbone.model, weights)
    torch.testing.assert_close(backbone(images), model.eval()(images), rtol=0, atol=1e-5)
    wide = pv.load_backbone(NAME, checkpoint=path, image_size=(192, 160))
    assert wide.model.pos_embed.shape[1] == 1 + 12 * 10
    assert torch.equal(wide.model.pos_embed[:, 0], weights["pos_embed"][:, 0])
    assert wide(torch.randn(1, 3, 192, 160)).shape == (1, 64)


@pytest.mark.parametrize("drop", ["norm.bias", "blocks.3.attn.qkv.weight", "all"])
def test_weights_that_a_file_lacks_are_named_not_left_random(drop, weights, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({f"{'encoder_' if drop == 'all' else ''}{k}": w for k, w in weights.items() if k != drop}, path)
    with pytest.raises(BackboneError, match=f"has no {'cls_token, .* more' if drop == 'all' else drop}; expected all"):
        pv.load_backbone(NAME, checkpoint=path)


def test_the_size_of_images_changes_only_the_preprocessing_of_a_convnet():
    torch.manual_seed(0)
    small = pv.load_backbone("resnet10t", pretrained=False, image_size=(64, 96))
    torch.manual_seed(0)
    own = pv.load_backbone("resnet10t", pretrained=False)
    assert (small.preprocessing.size, own.preprocessing.size) == ((64, 96), (176, 176))
    assert small.fingerprint == own.fingerprint
    assert small(torch.zeros(1, 3, 64, 96)).shape == (1, 512)


def tuned_delta(folder, method, **fields):
    """A delta of `method` on the bundled backbone, with trained tensors moved away from where they started."""
    model = pv.tune(pv.load_backbone(**fields), method, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save(folder)
    return model


@pytest.mark.parametrize("method", ["full", "partial-1", "bias", "cls", "vpt-bias"])
def test_a_fine_tuned_backbone_is_the_start_of_another_task(method, tmp_path):
    first = tuned_delta(tmp_path / "run" / "delta", METHODS[method].build())
    backbone = pv.load_backbone(tuned=tmp_path / "run")
    assert_same_tensors(backbone.model, {k: v.detach() for k, v in first.backbone.model.state_dict().items()})
    assert backbone.fingerprint != pv.load_backbone().fingerprint
    assert not any(p.requires_grad for p in backbone.parameters())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(images), first.eval().backbone(images))
    second = pv.tune(backbone, pv.VPT(length=2), 4)
    assert pv.load(second.save(tmp_path / "second"))(images).equal(second.eval()(images))


def test_what_is_no_weight_of_the_backbone_is_no_fine_tuned_backbone(tmp_path):
    tuned_delta(tmp_path / "vpt", pv.VPT())
    with pytest.raises(DeltaError, match=r"'vpt' of .* trained nothing of the backbone; expected weights"):
        pv.load_backbone(tuned=tmp_path / "vpt")
    tuned_delta(tmp_path / "full", pv.Full())
    with pytest.raises(DeltaError, match=r"trained on vit_pico with fingerprint .*Name the backbone as"):
        pv.load_backbone(tuned=tmp_path / "full", image_size=48)
    with pytest.raises(DeltaError, match=r"nowhere/delta.json does not exist"):
        pv.load_backbone(tuned=tmp_path / "nowhere")
    (tmp_path / "full" / "delta.safetensors").write_bytes((tmp_path / "vpt" / "delta.safetensors").read_bytes())
    with pytest.raises(DeltaError, match="SHA-256 differs"):
        pv.load_backbone(tuned=tmp_path / "full")
    with pytest.raises(ConfigError, match="pretrained=False: expected neither checkpoint nor tuned"):
        pv.load_backbone(tuned=tmp_path / "full", pretrained=False)


def test_a_folder_in_timms_layout_is_loaded(weights, tmp_path):
    model = timm.create_model(NAME, num_classes=0, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    model.load_state_dict(weights)
    save_for_hf(model, tmp_path, safe_serialization=True)
    backbone = pv.load_backbone(str(tmp_path))
    assert_same_tensors(backbone.model, weights)
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)
    assert backbone.preprocessing.size == (160, 160)
    assert backbone.source.name == str(tmp_path)


def test_files_that_do_not_say_enough_are_refused(weights, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights, path)
    with pytest.raises(BackboneError, match=r"does not say which architecture.*checkpoint="):
        pv.load_backbone(str(path))
    with pytest.raises(BackboneError, match=r"has no config\.json"):
        pv.load_backbone(str(tmp_path))
    with pytest.raises(BackboneError, match=r"nowhere\.pth"):
        pv.load_backbone(NAME, checkpoint=tmp_path / "nowhere.pth")
    with pytest.raises(BackboneError, match="could not be loaded"):
        pv.load_backbone("vit_tiny_patch16_224", checkpoint=path)  # another architecture's
    (tmp_path / "broken.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="could not be loaded"):
        pv.load_backbone(NAME, checkpoint=tmp_path / "broken.safetensors")
    with pytest.raises(BackboneError, match="could not be loaded"):
        pv.load_backbone("vit_pico", checkpoint=path)
    with pytest.raises(ConfigError, match=r"image_size=\(32, 15\); expected at least one patch, 16x16"):
        pv.load_backbone(NAME, image_size=(32, 15))
    with pytest.raises(ConfigError, match="image_size=0: expected at least 1 pixel"):
        pv.load_backbone(image_size=0)


@pytest.mark.parametrize("name", ["vit_base_patch16_224.orig_in21k", "hf-hub:nobody/nothing"])
def test_without_a_network_one_message_says_what_to_do(name):
    with pytest.raises(BackboneError) as caught:
        pv.load_backbone(name)
    message = str(caught.value)
    assert f"{name!r} could not be loaded" in message
    assert "checkpoint=FILE" in message
    assert "\n" not in message


def test_the_fingerprint_knows_every_bit_and_nothing_else(make_vit):
    model = make_vit()
    before = pv.from_timm(model).fingerprint
    assert pv.from_timm(copy.deepcopy(model)).fingerprint == before
    with_head = make_vit(num_classes=7)
    with_head.load_state_dict(model.state_dict(), strict=False)
    assert pv.from_timm(with_head).fingerprint == before
    bits = model.blocks[1].mlp.fc1.bias.data.view(torch.int64)
    bits[3] ^= 1  # the last binary digit of one number
    assert pv.from_timm(model).fingerprint != before
    bits[3] ^= 1
    assert pv.from_timm(model).fingerprint == before
    assert pv.from_timm(copy.deepcopy(model).float()).fingerprint != before
    model.blocks[0].attn.num_heads, model.blocks[0].attn.head_dim = 4, 6  # the same weights, used otherwise
    assert pv.from_timm(model).fingerprint != before


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_tuning_leaves_the_users_model_as_it_was(depth, make_vit):
    model = make_vit()
    modules = dict(model.named_modules())
    before = copy.deepcopy(model.state_dict())
    tuned = pv.tune(pv.from_timm(model), pv.VPT(length=2, depth=depth), 3).double()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=1.0, weight_decay=0.1)
    tuned(torch.randn(2, 3, 16, 16, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert tuned.backbone.model is model
    assert dict(model.named_modules()) == modules
    assert_same_tensors(model, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_from_timm_reads_the_models_own_preprocessing_unless_told(make_vit):
    model = make_vit()
    own = pv.from_timm(model).preprocessing
    assert own.size == (16, 16)
    given = Preprocessing(size=(16, 16), mean=(0.1, 0.2, 0.3))
    assert pv.from_timm(model, preprocessing=given).preprocessing == given


def test_the_fingerprint_tells_activations_apart():
    models = [
        timm.create_model(f"vit_base_patch32_{kind}_224", embed_dim=24, num_heads=2, depth=1, num_classes=0)
        for kind in ("clip", "clip_quickgelu")
    ]
    models[1].load_state_dict(models[0].state_dict())
    assert pv.from_timm(models[0]).fingerprint != pv.from_timm(models[1]).fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: ConvNeXt(dims=(4, 4, 4, 4)), lambda: ConvNeXt(dims=(4, 4, 4, 4), output_stride=8)),
        (lambda: ResNet(BasicBlock, (1, 1, 1, 1)), lambda: ResNet(BasicBlock, (1, 1, 1, 1), output_stride=8)),
        (lambda: swin(window_size=(2, 3)), lambda: swin(window_size=(3, 2))),
        (lambda: small_vit(), lambda: small_vit(norm_layer=partial(torch.nn.LayerNorm, eps=1e-3))),
        (lambda: small_vit(global_pool="avg"), lambda: small_vit(global_pool="avg", pool_include_prefix=True)),
    ],
    ids=["dilation", "stride", "window", "epsilon", "pooled rows"],
)
def test_the_fingerprint_tells_arithmetic_apart_that_no_tensor_holds(one, other):
    torch.manual_seed(0)
    first, second = one(), other()
    second.load_state_dict(first.state_dict())
    assert pv.from_timm(first).fingerprint != pv.from_timm(second).fingerprint


def swin(**arguments):
    return SwinTransformer(24, 2, embed_dim=8, depths=(2,), num_heads=(2,), **arguments)


def small_vit(**arguments):
    return VisionTransformer(16, 8, embed_dim=8, depth=1, num_heads=2, **arguments)
