import math

import pytest
import torch

import promptvit as pv
from promptvit.model import assemble
from promptvit.train.config import TrainConfig
from promptvit.train.optim import (
    learning_rate,
    make_loss,
    make_optimizer,
    parameter_groups,
    scheduled_rate,
    set_learning_rate,
)


def factors(config, total=100, warmup=10):
    return [scheduled_rate(step, total, warmup, 1.0, config) for step in range(total)]


def decays(model, config):
    return {id(p): group["weight_decay"] for group in parameter_groups(model, config) for p in group["params"]}


def test_warm_up_is_linear_and_the_cosine_ends_near_zero():
    rates = factors(TrainConfig())
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_no_update_is_wasted():
    assert min(factors(TrainConfig())) > 0
    assert min(factors(TrainConfig(), total=3, warmup=5)) > 0


def test_a_constant_schedule_stays_after_the_warm_up():
    assert set(factors(TrainConfig(schedule="constant"))[9:]) == {1.0}


def test_one_rate_per_epoch_starts_at_zero_as_in_vpt():
    rates = factors(TrainConfig(epochs=100, warmup_epochs=10.0, schedule_steps="epoch"))
    expected = {0: 0.0, 1: 0.1, 9: 0.9, 10: 1.0, 50: 0.5868, 55: 0.5, 99: 0.0003}
    assert {epoch: rates[epoch] for epoch in expected} == pytest.approx(expected, abs=5e-5)


def test_without_a_warm_up_the_first_epoch_has_the_whole_rate():
    assert factors(TrainConfig(epochs=4, warmup_epochs=0.0, schedule_steps="epoch"), total=4, warmup=0)[0] == 1.0


def test_the_cosine_ends_at_the_final_rate():
    config = TrainConfig(final_rate=0.25)
    rates = factors(config)
    assert rates[:10] == factors(TrainConfig())[:10]
    assert rates[10:] == pytest.approx([0.25 + 0.75 * share for share in factors(TrainConfig())[10:]])
    assert scheduled_rate(100, 100, 10, 1.0, config) == 0.25


def test_the_learning_rate_grows_with_the_images_of_an_update(make_vit):
    model = pv.tune(pv.from_timm(make_vit()), pv.VPT(length=2), 3)

    def peak(processes=1, **settings):
        return learning_rate(model, TrainConfig(rate_batch=256, **settings), processes)

    assert peak(learning_rate=1.0, batch_size=64) == 0.25
    assert peak(learning_rate=25.0, batch_size=128) == 12.5
    assert peak(learning_rate=25.0, batch_size=16, accumulate=4, processes=2) == 12.5
    assert peak(batch_size=512) == 2 * pv.VPT.learning_rate


@pytest.mark.parametrize("method", [pv.VPT(length=2), pv.VPT(length=2, project=8), pv.Linear(), pv.Full()])
def test_every_trained_parameter_is_in_one_group(make_vit, method):
    model = pv.tune(pv.from_timm(make_vit()), method, 3)
    groups = parameter_groups(model, TrainConfig())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_prompts_weights_and_biases_have_their_own_decay(make_vit):
    model = pv.tune(pv.from_timm(make_vit()), pv.VPT(length=2), 3)
    config = TrainConfig(weight_decay=0.5, delta_weight_decay=0.25)
    decay = decays(model, config)
    assert decay[id(model.delta.prompts[0])] == 0.25
    assert decay[id(model.head.weight)] == 0.5
    assert decay[id(model.head.bias)] == 0.0


@pytest.mark.parametrize("method", [pv.VPT(length=2), pv.E2VPT(), pv.MLP(layers=2), pv.Full()], ids=str)
def test_everything_but_the_heads_last_bias_can_have_a_decay(make_vit, method):
    model = pv.tune(pv.from_timm(make_vit()), method, 3)
    last = model.head[-1] if isinstance(model.head, torch.nn.Sequential) else model.head
    decay = decays(model, TrainConfig(weight_decay=0.5, decays="all"))
    assert decay.pop(id(last.bias)) == 0.0
    assert set(decay.values()) == {0.5}


def test_weights_of_norms_can_have_a_decay_and_biases_none():
    from timm.models.swin_transformer import SwinTransformer

    swin = SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=0
    )
    model = pv.tune(pv.from_timm(swin), pv.Full(), 3)
    decay = decays(model, TrainConfig(weight_decay=0.5, decays="weights"))
    block = model.backbone.model.layers[0].blocks[0]
    assert decay[id(block.norm1.weight)] == decay[id(block.attn.qkv.weight)] == decay[id(model.head.weight)] == 0.5
    biases = (block.norm1.bias, block.attn.qkv.bias, block.attn.relative_position_bias_table, model.head.bias)
    assert [decay[id(bias)] for bias in biases] == [0.0] * 4
    assert decays(model, TrainConfig(weight_decay=0.5))[id(block.norm1.weight)] == 0.0


def test_prompts_keep_their_own_decay_beside_that_of_weights(make_vit):
    model = pv.tune(pv.from_timm(make_vit()), pv.VPT(length=2), 3)
    decay = decays(model, TrainConfig(weight_decay=0.5, delta_weight_decay=0.25, decays="weights"))
    assert decay[id(model.delta.prompts[0])] == 0.25


def test_adamw_takes_its_epsilon(make_vit):
    model = pv.tune(pv.from_timm(make_vit()), pv.VPT(length=2), 3)
    assert make_optimizer(model, TrainConfig(adam_epsilon=1e-6)).defaults["eps"] == 1e-6


@pytest.mark.parametrize("method", [pv.VPT(length=2), pv.SPT(length=2)])
def test_the_heads_weight_can_have_a_decay_of_its_own(make_vit, method):
    model = assemble(pv.from_timm(make_vit()), method, ("a", "b", "c"))
    config = TrainConfig(weight_decay=0.5, delta_weight_decay=0.25, head_weight_decay=3.0)
    groups = {group["weight_decay"]: group["params"] for group in parameter_groups(model, config)}
    assert {decay: [id(p) for p in parameters] for decay, parameters in groups.items()} == {
        0.25: [id(model.delta.prompts[0])],
        3.0: [id(model.head.weight)],
        0.0: [id(model.head.bias)],
    }


def test_backbone_weights_keep_their_decay_beside_the_heads(make_vit):
    model = pv.tune(pv.from_timm(make_vit()), pv.Full(), 3)
    config = TrainConfig(weight_decay=0.5, head_weight_decay=0.0)
    decay = decays(model, config)
    assert decay[id(model.head.weight)] == 0.0
    assert decay[id(model.backbone.model.blocks[0].mlp.fc1.weight)] == 0.5


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_learning_rate_is_the_methods_unless_given(make_vit, name, kind):
    model = pv.tune(pv.from_timm(make_vit()), pv.VPT(length=2), 3)
    own = make_optimizer(model, TrainConfig(optimizer=name))
    assert isinstance(own, kind)
    assert own.param_groups[0]["lr"] == pv.VPT.learning_rate
    assert make_optimizer(model, TrainConfig(optimizer=name, learning_rate=0.5)).param_groups[0]["lr"] == 0.5


def test_backbone_weights_beside_prompts_have_the_rate_that_suits_them(make_vit):
    model = pv.tune(pv.from_timm(make_vit()), pv.VPT(length=2, weights="all"), 3)
    optimizer = make_optimizer(model, TrainConfig(learning_rate=0.1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.delta.prompts[0])] == rates[id(model.head.weight)] == 0.1
    share = pv.Full.learning_rate / pv.VPT.learning_rate
    assert rates[id(model.backbone.model.blocks[0].mlp.fc1.weight)] == pytest.approx(0.1 * share)
    set_learning_rate(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2, 0.2 * share}


def test_balanced_class_weights_count_images():
    labels = torch.tensor([0, 0, 0, 1])
    loss = make_loss(TrainConfig(class_weights="balanced"), labels, classes=2)
    assert loss.weight.tolist() == pytest.approx([4 / 6, 4 / 2])
    assert make_loss(TrainConfig(), labels, classes=2).weight is None
