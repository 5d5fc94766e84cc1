import pytest
import torch
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.methods.cls import Cls


def test_the_token_alone_is_trained(make_vit):
    backbone = pv.from_timm(make_vit())
    model = pv.tune(backbone, Cls(), 3)
    assert model.trained == {"cls_token"}
    assert model.trained_parameters() == 24 + 25 * 3
    assert torch.equal(model.backbone.model.cls_token, backbone.model.cls_token)


def test_reinit_draws_the_models_own_token_anew(make_vit):
    backbone = pv.from_timm(make_vit(embed_dim=512, depth=1))
    before = backbone.model.cls_token.clone()
    token = pv.tune(backbone, Cls(reinit=True), 3).backbone.model.cls_token
    assert token.std().item() == pytest.approx(1e-6, rel=0.1)
    assert abs(token.mean().item()) < 2e-7
    assert token.requires_grad
    assert torch.equal(backbone.model.cls_token, before)
    assert METHODS["cls-reinit"].build() == Cls(reinit=True) != METHODS["cls"].build()


def test_a_backbone_without_a_token_is_refused(make_vit):
    backbone = pv.from_timm(make_vit(class_token=False, global_pool="avg"))
    with pytest.raises(ConfigError, match="Cls on a vit backbone: there is no CLS token"):
        pv.tune(backbone, Cls(), 3)


def test_one_step_moves_the_token_by_its_gradient(make_vit):
    vit, backbone = make_vit(), pv.from_timm(make_vit())
    before = {name: tensor.clone() for name, tensor in backbone.body().items()}
    model = pv.tune(backbone, Cls(), 3).double()
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4) % 3
    logits = nn.functional.linear(vit(images), model.head.weight, model.head.bias)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), vit.cls_token)
    nn.functional.cross_entropy(model(images), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    expected = before | {"cls_token": before["cls_token"] - 0.1 * gradient}
    for name, tensor in model.backbone.body().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.body().items())


@pytest.mark.parametrize("reinit", [False, True])
def test_a_saved_token_takes_the_place_of_a_new_one(reinit, make_vit, tmp_path):
    backbone = pv.from_timm(make_vit().float())
    model = pv.tune(backbone, Cls(reinit=reinit), 3).eval()
    with torch.no_grad():
        model.backbone.model.cls_token.normal_()
    model.save(tmp_path)
    loaded, images = pv.load(tmp_path, backbone=backbone), torch.randn(2, 3, 16, 16)
    assert loaded.method == Cls(reinit=reinit)
    assert torch.equal(loaded(images), model(images))
