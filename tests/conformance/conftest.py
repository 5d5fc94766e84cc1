"""Small backbones of every family, every kind of ViT readout, and every registered method on those that can have it."""

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer

import promptvit as pv
from promptvit.counting import count
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.methods.base import Method
from promptvit.preprocessing import Preprocessing

KINDS = {
    "cls": {},
    "registers, avg": {"reg_tokens": 4, "global_pool": "avg", "no_embed_class": True},
    "no cls, map": {"class_token": False, "global_pool": "map"},
    "distilled": {"name": "deit_base_distilled_patch16_224"},
    "qk-norm, layer scale": {"qk_norm": True, "init_values": 1e-5},
    "pre-norm": {"pre_norm": True},
    "prr": {"global_pool": "prr", "reg_tokens": 1},
}
"""One ViT of each way to read features and to prepare tokens."""


def eva():
    """Rotary positions, a CLS and two register tokens."""
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return Eva(**size, num_reg_tokens=2, global_pool="token", use_rot_pos_emb=True, qkv_fused=False, init_values=0.1)


def swin():
    """Two stages, shifted windows, three blocks."""
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    return SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2, drop_path_rate=0)


def convnext():
    """Four stages of one block, the last two dilated: the images are small."""
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(6, 8, 10, 12), num_classes=0, output_stride=8)


def resnet():
    """Four stages of one basic block."""
    return ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(6, 8, 10, 12), num_classes=0)


FAMILIES = {"eva": eva, "swin": swin, "convnext": convnext, "resnet": resnet}
FIELDS = {"side": {"weights": "random"}, "pixel-pad": {"length": 2}, "spt-shallow": {"length": 5}}
"""What tests need beside a method's own name: no download, a frame that fits patches of 4, few prompts."""
MASKS = {"length": 10, "tokens": ((1, 4, 7),), "segments": ([(0,), *[()] * 8, (1, 3)],), "parts": 4}
BESIDE: dict[str, Method] = {
    "e2vpt, pruned": METHODS["e2vpt"].build(masks=MASKS),
    "e2vpt, zeroed": METHODS["e2vpt"].build(masks=MASKS | {"compat_zero": True}),
}
"""Methods without a registered name of their own that meet the same tests."""
SAMPLES = [(torch.linspace(-1, 1, 768).roll(97 * number).reshape(3, 16, 16), number) for number in range(5)]
"""An image of each of five classes, for methods that start from the task's images."""
OF_EVERY_KIND = ("vpt-shallow", "vpt-deep", "full")
"""Methods that meet every kind of ViT; the others meet one ViT and every other family."""


def build(name: str) -> Method:
    """The method of a registered name as the tests use it, or one of those beside."""
    return BESIDE[name] if name in BESIDE else METHODS[name].build(**FIELDS.get(name, {}))


def supported(make, names):
    """Those of `names` that the backbone can have."""
    with torch.device("meta"):
        backbone = pv.from_timm(make())
    found = []
    for name in names:
        try:
            count(backbone, build(name), 5)
            found.append(name)
        except ConfigError:
            continue
    return found


def kind(name):
    """A constructor for `supported`."""
    arguments = dict(KINDS[name])
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    registered = arguments.pop("name", "vit_base_patch16_224")
    return lambda: timm.create_model(registered, **small | arguments)


def pairs():
    """(backbone, method name) for everything that goes together."""
    unique = list(dict.fromkeys(METHODS[name].build(**FIELDS.get(name, {})) for name in METHODS))
    names = [*(next(name for name in METHODS if build(name) == method) for method in unique), *BESIDE]
    found = [(name, method) for name in KINDS for method in supported(kind(name), OF_EVERY_KIND)]
    found += [("cls", method) for method in supported(kind("cls"), names) if method not in OF_EVERY_KIND]
    return found + [(name, method) for name, make in FAMILIES.items() for method in supported(make, names)]


PAIRS = pairs()


@pytest.fixture(scope="session")
def make_backbone(make_vit, make_small):
    """A small float64 backbone by its name in KINDS or FAMILIES, with every tensor away from zero."""

    def make(name: str) -> pv.Backbone:
        model = make_vit(**KINDS[name]) if name in KINDS else make_small(FAMILIES[name])
        return pv.from_timm(model, preprocessing=Preprocessing(size=(16, 16)))

    return make


@pytest.fixture(params=KINDS)
def vit(request, make_backbone):
    """Each kind of ViT."""
    return make_backbone(request.param)


@pytest.fixture(params=[*KINDS, *FAMILIES])
def any_backbone(request, make_backbone):
    """Each kind of ViT, and one of each other family."""
    return make_backbone(request.param)


@pytest.fixture
def plain(make_backbone):
    """The plain ViT alone, for what does not depend on the readout."""
    return make_backbone("cls")


@pytest.fixture
def images():
    """Three different images of the small backbones' size."""
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


@pytest.fixture
def samples():
    """A dataset for methods that start from the task's images."""
    return SAMPLES


@pytest.fixture(params=PAIRS, ids=" on ".join)
def pair(request, make_backbone):
    """Every method on every family that can have it, and the main ones on every kind of ViT."""
    name, method = request.param
    return make_backbone(name), build(method)


@pytest.fixture(scope="session")
def make_tuned():
    """A float64 model whose trained tensors are all away from zero."""

    def make(backbone: pv.Backbone, method: Method, classes: int = 5) -> pv.TunedModel:
        model = pv.tune(backbone, method, classes, samples=SAMPLES).double()
        theirs = {f"backbone.model.{name}" for name in backbone.weights()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in theirs:
                    parameter.copy_(torch.randn_like(parameter) * 0.5)
        return model

    return make


@pytest.fixture
def model(pair, make_tuned):
    """Every method on every backbone."""
    return make_tuned(*pair)
