"""A handful of small backbones, one of each way to read features and to prepare tokens, and every method."""

import pytest
import torch

import promptvit as pv
from promptvit.methods import METHODS
from promptvit.methods.base import Method

BACKBONES = {
    "cls": {},
    "registers, avg": {"reg_tokens": 4, "global_pool": "avg", "no_embed_class": True},
    "no cls, map": {"class_token": False, "global_pool": "map"},
    "distilled": {"name": "deit_base_distilled_patch16_224"},
    "qk-norm, layer scale": {"qk_norm": True, "init_values": 1e-5},
    "pre-norm": {"pre_norm": True},
    "prr": {"global_pool": "prr", "reg_tokens": 1},
}


@pytest.fixture(params=BACKBONES)
def backbone(request, make_vit):
    """Each of the small backbones, in float64."""
    return pv.from_timm(make_vit(**BACKBONES[request.param]))


@pytest.fixture
def plain(make_vit):
    """The plain ViT alone, for what does not depend on the readout."""
    return pv.from_timm(make_vit())


@pytest.fixture
def images():
    """Three different images of the small backbones' size."""
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


@pytest.fixture(params=dict.fromkeys(preset.build() for preset in METHODS.values()), ids=str)
def method(request):
    """Each registered method with the fields of its name alone."""
    return request.param


@pytest.fixture(scope="session")
def make_tuned():
    """A float64 model whose trained tensors are all away from zero."""

    def make(backbone: pv.Backbone, method: Method, classes: int = 5) -> pv.TunedModel:
        model = pv.tune(backbone, method, classes).double()
        with torch.no_grad():
            for parameter in [*model.delta.parameters(), *model.head.parameters()]:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        return model

    return make


@pytest.fixture
def model(backbone, method, make_tuned):
    """Every method on every backbone."""
    return make_tuned(backbone, method)
