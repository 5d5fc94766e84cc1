import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.methods.mlp import MLP


@pytest.fixture
def backbone(make_vit):
    return pv.from_timm(make_vit())


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16, dtype=torch.float64)


def reference(head, features, *, training):
    """The layers written out, without dropout; the last one is the linear head."""
    x = features
    for linear, _, norm, _ in list(head)[:-1]:
        x = (x @ linear.weight.T + linear.bias).clamp(min=0)
        mean, variance = (x.mean(0), x.var(0, correction=0)) if training else (norm.running_mean, norm.running_var)
        x = (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    return x @ head[-1].weight.T + head[-1].bias


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_it_is_the_layers_written_out(layers, backbone, images, monkeypatch):
    model = pv.tune(backbone, MLP(layers=layers), 4).double()
    assert len(model.head) == layers
    features = backbone(images)
    with monkeypatch.context() as without_dropout:
        without_dropout.setattr(F, "dropout", lambda x, *_: x)
        torch.testing.assert_close(model(images), reference(model.head, features, training=True), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.eval()(images), reference(model.head, features, training=False), rtol=0, atol=1e-9)


def test_dropout_acts_in_training_alone(backbone, images):
    model = pv.tune(backbone, MLP(), 4).double()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    assert [module.p for module in model.head.modules() if isinstance(module, nn.Dropout)] == [0.1, 0.1]


def test_the_weights_start_as_in_the_paper():
    head = MLP().head(600, 50, "paper")
    for linear, *_ in list(head)[:-1]:
        assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 600), rel=0.02)
    assert head[-1].weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.05)
    assert head[-1].bias.unique().item() == pytest.approx(-math.log(99))
    assert not MLP().head(600, 50, "zeros")[-1].weight.any()


def test_a_training_batch_of_one_uses_the_running_statistics(backbone, images):
    model = pv.tune(backbone, MLP(), 4).double()
    model(images)
    for module in model.head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    assert before["0.2.running_mean"].any()
    logits = model(images[:1])
    torch.testing.assert_close(logits, model.eval()(images[:1]), rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.head.state_dict().items())
    F.cross_entropy(logits, torch.tensor([0])).backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_one_step_changes_the_head_alone(backbone, images):
    model = pv.tune(backbone, MLP(), 4).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    F.cross_entropy(model(images), torch.arange(6) % 4).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("head.")}
    assert all(p.grad is None for p in model.backbone.parameters())


def test_a_saved_model_has_its_running_statistics(make_vit, images, tmp_path):
    backbone = pv.from_timm(make_vit().float())
    model = pv.tune(backbone, MLP(layers=2), 3)
    model(images.float())
    model.eval().save(tmp_path)
    loaded = pv.load(tmp_path, backbone=backbone)
    assert loaded.head[0][2].num_batches_tracked == 1
    assert torch.equal(loaded(images.float()), model(images.float()))


def test_names_and_wrong_settings():
    assert METHODS["mlp-3"].build() == METHODS["mlp"].build() == MLP(layers=3)
    with pytest.raises(ConfigError, match="layers=1; expected at least 2; the method `linear` is one"):
        MLP(layers=1)
