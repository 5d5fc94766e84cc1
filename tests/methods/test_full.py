import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods.full import Full


def drop_paths(model):
    return {name: module.drop_prob for name, module in model.named_modules() if isinstance(module, DropPath)}


def dropouts(model):
    return {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p}


def own(backbone, **fields):
    """The timm model that is driven."""
    return pv.tune(backbone, Full(**fields), 3).backbone.model


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16, dtype=torch.float64)


def test_null_leaves_the_model_as_it_was_built(make_vit):
    backbone = pv.from_timm(make_vit(drop_path_rate=0.2, pos_drop_rate=0.3, attn_drop_rate=0.4))
    assert drop_paths(own(backbone)) == drop_paths(backbone.model) != {}
    assert dropouts(own(backbone)) == dropouts(backbone.model)
    assert set(dropouts(backbone.model).values()) == {0.3, 0.4}


@pytest.mark.parametrize("built", [0.0, 0.2])
def test_drop_path_rises_linearly_over_the_blocks(built, make_vit):
    backbone = pv.from_timm(make_vit(drop_path_rate=built))
    before = drop_paths(backbone.model)
    expected = {f"blocks.{i}.drop_path{j}": rate for i, rate in enumerate((0.0, 0.25, 0.5)) for j in (1, 2)}
    assert drop_paths(own(backbone, drop_path=0.5)) == pytest.approx(expected)
    assert set(drop_paths(own(backbone, drop_path=0.0)).values()) == {0.0}
    assert drop_paths(backbone.model) == before


def test_dropout_is_after_the_embedding_and_twice_in_each_mlp(make_vit):
    backbone = pv.from_timm(make_vit(attn_drop_rate=0.4, proj_drop_rate=0.2))
    before = dropouts(backbone.model)
    places = ["pos_drop", *(f"blocks.{i}.mlp.drop{j}" for i in range(3) for j in (1, 2))]
    assert dropouts(own(backbone, dropout=0.1)) == dict.fromkeys(places, 0.1)
    assert dropouts(own(backbone, dropout=0.0)) == {}
    assert dropouts(backbone.model) == before


@pytest.mark.parametrize("fields", [{"drop_path": 0.5}, {"dropout": 0.5}], ids=str)
def test_both_act_in_training_alone(fields, make_vit, images):
    backbone = pv.from_timm(make_vit())
    model = pv.tune(backbone, Full(**fields), 3).double()
    assert not torch.allclose(model(images), model(images))
    torch.testing.assert_close(model.eval().features(images), backbone(images), rtol=0, atol=1e-12)


def test_drop_path_leaves_out_whole_branches_of_single_images(make_vit, images):
    """With a rate of almost 1 at the last block, its output is its input for nearly every image."""
    backbone = pv.from_timm(make_vit(depth=2))
    model = own(backbone, drop_path=1 - 1e-9).train()
    x = torch.randn(6, 17, 24, dtype=torch.float64)
    assert torch.equal(model.blocks[1](x), x)
    torch.testing.assert_close(model.blocks[0](x), backbone.model.blocks[0](x), rtol=0, atol=1e-12)


def test_one_step_is_one_step_of_the_plain_model(make_vit, images):
    vit, backbone = make_vit(), pv.from_timm(make_vit())
    before = {name: tensor.clone() for name, tensor in backbone.body().items()}
    model = pv.tune(backbone, Full(drop_path=0.0, dropout=0.0), 3).double()
    head = nn.Linear(24, 3).double()
    head.load_state_dict(model.head.state_dict())
    for network in (model, nn.Sequential(vit, head)):
        nn.functional.cross_entropy(network(images), torch.arange(6) % 3).backward()
        torch.optim.SGD(network.parameters(), lr=0.1).step()
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(model.backbone.body()[name], tensor, rtol=0, atol=1e-12)
        assert not torch.equal(tensor, before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.body().items())


def test_a_saved_model_is_the_same_model(make_vit, images, tmp_path):
    backbone, method = pv.from_timm(make_vit().float()), Full(drop_path=0.2, dropout=0.1)
    model = pv.tune(backbone, method, 3).eval()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save(tmp_path)
    loaded = pv.load(tmp_path, backbone=backbone)
    assert loaded.method == method
    assert torch.equal(loaded(images.float()), model(images.float()))
    assert drop_paths(loaded.backbone) == drop_paths(model.backbone)


def test_wrong_settings():
    with pytest.raises(ConfigError, match=r"drop_path=1.0: expected a probability in \[0, 1\); dropout=-0.1"):
        Full(drop_path=1.0, dropout=-0.1)


def test_swin_has_timms_own_drop_path_unless_told():
    from timm.models.swin_transformer import SwinTransformer

    swin = SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=0
    )
    backbone = pv.from_timm(swin)
    assert max(drop_paths(own(backbone)).values()) == pytest.approx(0.1)
    rates = list(drop_paths(own(backbone, drop_path=0.3)).values())
    assert rates == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert all(".mlp.drop" in name for name in dropouts(own(backbone, dropout=0.1)))


def test_convolutional_networks():
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import BasicBlock, ResNet

    convnext = pv.from_timm(ConvNeXt(depths=(1, 1, 2, 1), dims=(4, 8, 16, 32), num_classes=0))
    rates = list(drop_paths(own(convnext, drop_path=0.4)).values())
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ConfigError, match="dropout acts in a transformer's blocks"):
        own(convnext, dropout=0.1)
    resnet = pv.from_timm(ResNet(BasicBlock, (1, 1, 1, 1), channels=(4, 8, 16, 32), num_classes=0))
    with pytest.raises(ConfigError, match=r"drop_path=0.1: layer1.0 is a BasicBlock, which has none"):
        own(resnet, drop_path=0.1)
