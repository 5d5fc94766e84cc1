import pytest
import torch
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.methods.partial import Partial


@pytest.mark.parametrize(("count", "blocks"), [(1, {2}), (2, {1, 2}), (3, {0, 1, 2})])
def test_the_last_blocks_and_the_final_norm_are_trained(count, blocks, make_vit):
    backbone = pv.from_timm(make_vit())
    model = pv.tune(backbone, Partial(count=count), 3)
    tops = {f"blocks.{index}." for index in blocks} | {"norm."}
    assert model.trained == {name for name in backbone.body() if name.startswith(tuple(tops))}


def test_a_plain_transformer_is_one_stage(make_vit):
    backbone = pv.from_timm(make_vit())
    assert set(Partial(unit="stage").trained(backbone)) == set(Partial(count=3).trained(backbone))


def test_the_norm_behind_the_pooling_is_a_final_norm_too(make_vit):
    trained = Partial().trained(pv.from_timm(make_vit(global_pool="avg", fc_norm=True)))
    assert {name for name in trained if "norm" in name and "blocks" not in name} == {"fc_norm.weight", "fc_norm.bias"}


@pytest.mark.parametrize(("unit", "there"), [("block", 3), ("stage", 1)])
def test_more_than_there_are_is_refused(unit, there, make_vit):
    backbone = pv.from_timm(make_vit())
    with pytest.raises(ConfigError, match=rf"count=4; expected at most {there}: the vit backbone has no more {unit}s"):
        pv.tune(backbone, Partial(count=4, unit=unit), 3)


def test_one_step_is_one_step_of_the_plain_model(make_vit):
    """The reference: timm's own forward with gradients for the last block and the norm."""
    vit, backbone = make_vit(), pv.from_timm(make_vit())
    model = pv.tune(backbone, Partial(), 3).double()
    head = nn.Linear(24, 3).double()
    head.load_state_dict(model.head.state_dict())
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4) % 3
    reference = nn.Sequential(vit, head)
    vit.requires_grad_(False)
    vit.blocks[-1].requires_grad_(True)
    vit.norm.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in backbone.body().items()}
    for network in (model, reference):
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    expected = vit.state_dict()
    for name, tensor in model.backbone.body().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-12)
        assert torch.equal(tensor, before[name]) == (name not in model.trained)
    torch.testing.assert_close(model.head.weight, head.weight, rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.body().items())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_saved_model_is_the_same_model(make_vit, tmp_path):
    backbone = pv.from_timm(make_vit().float())
    model = pv.tune(backbone, Partial(count=2), 3).eval()
    with torch.no_grad():
        for name, parameter in model.backbone.weights().items():
            parameter.add_(0.1 if name in model.trained else 0.0)
    model.save(tmp_path)
    loaded, images = pv.load(tmp_path, backbone=backbone), torch.randn(2, 3, 16, 16)
    assert loaded.method == Partial(count=2)
    assert torch.equal(loaded(images), model(images))


def test_wrong_settings_and_names(untyped):
    with pytest.raises(ConfigError, match=r"unit='layer': expected block or stage; count=0: expected at least 1"):
        Partial(count=0, unit="layer")
    assert METHODS["partial-4"].build() == METHODS["partial"].build(count=4) == Partial(count=4)
    assert METHODS["partial-1"].build() == Partial()
    with pytest.raises(ConfigError, match="this name stands for unit='block'"):
        METHODS["partial-2"].build(unit="stage")
