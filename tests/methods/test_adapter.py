import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods.adapter import Adapter


@pytest.fixture
def backbone(make_vit):
    return pv.from_timm(make_vit())


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


def tuned(backbone, **fields):
    """A float64 model with four classes."""
    return pv.tune(backbone, Adapter(**{"reduction": 4} | fields), 4).double()


def randomised(model):
    with torch.no_grad():
        for name in model.trained:
            model.backbone.weights()[name].normal_(std=0.3)
    return model


def adapters(model):
    return {name: tensor.detach().clone() for name, tensor in model.backbone.body().items() if name in model.trained}


def steps(model, images, count):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()


def literal_features(vit, images, adapters):
    """Blocks written out: an adapter reads what the MLP gives, and adds to it."""
    x = vit._pos_embed(vit.patch_embed(images))
    for index, block in enumerate(vit.blocks):
        down_weight, down_bias, up_weight, up_bias = (
            adapters[f"blocks.{index}.mlp.adapter.{name}"]
            for name in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        h = x + block.attn(block.norm1(x))
        u = block.mlp(block.norm2(h))
        x = h + u + F.gelu(u @ down_weight.T + down_bias) @ up_weight.T + up_bias
    return vit.norm(x)[:, 0]


def test_it_is_the_formula_written_out(make_vit, backbone, images):
    model = randomised(tuned(backbone))
    weights = {name: p for name, p in model.backbone.weights().items() if p.requires_grad}
    features, literal = model.features(images), literal_features(make_vit(), images, weights)
    torch.testing.assert_close(features, literal, rtol=0, atol=1e-12)
    got, expected = (torch.autograd.grad(f.square().sum(), list(weights.values())) for f in (features, literal))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("zeros", [False, True])
def test_it_starts_as_the_frozen_model(zeros, backbone, images):
    assert torch.equal(tuned(backbone, compat_zero_init=zeros).features(images), backbone(images))


@pytest.mark.parametrize(("reduction", "bottleneck"), [(4, 6), (5, 4), (24, 1)])
def test_which_tensors_there_are(reduction, bottleneck, backbone):
    model = tuned(backbone, reduction=reduction)
    shapes = {"down.weight": (bottleneck, 24), "down.bias": (bottleneck,), "up.weight": (24, bottleneck)}
    expected = {
        f"blocks.{i}.mlp.adapter.{name}": shape
        for i in range(3)
        for name, shape in [*shapes.items(), ("up.bias", (24,))]
    }
    assert {name: tuple(tensor.shape) for name, tensor in adapters(model).items()} == expected
    assert model.trained_parameters() == 3 * (2 * 24 * bottleneck + bottleneck + 24) + 25 * 4


def test_the_weight_of_down_is_that_of_any_linear_layer(make_vit):
    model = pv.tune(pv.from_timm(make_vit(embed_dim=400, depth=1)), Adapter(reduction=2), 4)
    start = adapters(model)
    weight = start["blocks.0.mlp.adapter.down.weight"]
    assert 0.99 / 400**0.5 < weight.abs().max() <= 1 / 400**0.5
    assert not any(tensor.any() for name, tensor in start.items() if not name.endswith("down.weight"))


def test_the_users_model_keeps_its_keys_and_bits(backbone, images):
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    model = tuned(backbone)
    steps(model, images, 2)
    after = backbone.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(p is dict(model.backbone.model.named_parameters())[name.replace(".mlp.", ".mlp.mlp.")]
               for name, p in backbone.model.named_parameters())  # fmt: skip


def test_gradients_of_the_first_two_steps(backbone, images):
    model = tuned(backbone)
    for step in (1, 2):
        steps(model, images, 1)
        for name, parameter in model.backbone.weights().items():
            if ".down." in name and step == 1:
                assert not parameter.grad.any()
            elif name in model.trained:
                assert parameter.grad.any()
            else:
                assert parameter.grad is None


@pytest.mark.parametrize("zeros", [False, True])
def test_what_has_moved_after_ten_steps(zeros, backbone, images):
    model = tuned(backbone, compat_zero_init=zeros)
    before = adapters(model)
    steps(model, images, 10)
    moved = {name for name, tensor in adapters(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if not zeros or name.endswith("up.bias")}


def test_a_frozen_adapter_model_is_in_eval_mode(backbone):
    model = tuned(backbone)
    assert not any(module.training for module in model.train().backbone.modules())


def test_saved_copied_pickled_and_folded_it_is_the_same(make_vit, images, tmp_path):
    backbone, images = pv.from_timm(make_vit().float()), images.float()
    model = randomised(pv.tune(backbone, Adapter(reduction=3), 4)).eval()
    expected = model(images)
    model.save(tmp_path)
    loaded = pv.load(tmp_path, backbone=backbone)
    assert loaded.method == Adapter(reduction=3)
    assert {name for name in model.trained_tensors() if name.startswith("backbone.")} == {
        f"backbone.{name}" for name in model.trained
    }
    for twin in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.fold()):
        assert torch.equal(twin(images), expected)


def test_two_tasks_share_all_but_their_adapters(backbone, images):
    first, second = randomised(tuned(backbone)), randomised(tuned(backbone))
    before = second(images)
    steps(first, images, 1)
    assert torch.equal(second(images), before)
    shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert shared == {id(p) for p in backbone.parameters()}


def test_the_seed_alone_decides(backbone):
    def start(seed):
        torch.manual_seed(seed)
        return torch.cat([tensor.flatten() for tensor in adapters(tuned(backbone)).values()])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_no_room_for_a_bottleneck_is_refused(backbone):
    with pytest.raises(ConfigError, match="reduction=25 leaves no bottleneck at a width of 24"):
        tuned(backbone, reduction=25)
    with pytest.raises(ConfigError, match="reduction=0; expected at least 1"):
        Adapter(reduction=0)


def test_a_convolutional_network_is_refused():
    from timm.models.resnet import Bottleneck, ResNet

    backbone = pv.from_timm(ResNet(Bottleneck, (1, 1, 1, 1), channels=(4, 8, 16, 32), num_classes=0))
    with pytest.raises(ConfigError, match="Adapter on a resnet backbone: adapters stand behind the MLP"):
        tuned(backbone)


def test_swin_gets_the_bottleneck_of_each_blocks_own_width(images):
    from timm.models.swin_transformer import SwinTransformer

    swin = SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=0
    )
    backbone = pv.from_timm(swin.double().eval())
    model = tuned(backbone)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    assert [len(tensor) for name, tensor in adapters(model).items() if name.endswith("down.bias")] == [2, 2, 4, 4]
    torch.testing.assert_close(model.features(images), swin(images), rtol=0, atol=1e-12)
    steps(model, images, 2)
    assert isinstance(model.backbone.model.layers[1].blocks[0].mlp.mlp, nn.Module)
