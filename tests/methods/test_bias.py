import pytest
import torch
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods.bias import Bias


def test_all_bias_vectors_are_trained_and_nothing_else(make_vit):
    backbone = pv.from_timm(make_vit())
    model = pv.tune(backbone, Bias(), 3)
    linear = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    expected = {f"{name}.bias" for name, module in backbone.model.named_modules() if isinstance(module, linear)}
    assert model.trained == expected
    assert {"patch_embed.proj.bias", "blocks.0.attn.qkv.bias", "blocks.2.norm1.bias", "norm.bias"} < expected


def test_position_tables_are_trained_if_asked_for():
    backbone = pv.from_timm(swin())
    plain, full = (pv.tune(backbone, Bias(position_tables=tables), 3).trained for tables in (False, True))
    assert plain < full
    assert {name.rpartition(".")[2] for name in full - plain} == {"relative_position_bias_table"}
    assert len(full - plain) == 4


def test_position_tables_that_are_not_there_are_refused(make_vit):
    with pytest.raises(ConfigError, match="position_tables=True: the vit backbone has no relative position biases"):
        pv.tune(pv.from_timm(make_vit()), Bias(position_tables=True), 3)


def test_one_step_moves_the_biases_by_their_gradients(make_vit):
    vit, backbone = make_vit(), pv.from_timm(make_vit())
    before = {name: tensor.clone() for name, tensor in backbone.body().items()}
    model = pv.tune(backbone, Bias(), 3).double()
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4) % 3
    logits = nn.functional.linear(vit(images), model.head.weight, model.head.bias)
    biases = {name: p for name, p in vit.named_parameters() if name.endswith("bias")}
    loss = nn.functional.cross_entropy(logits, labels)
    expected = dict(zip(biases, torch.autograd.grad(loss, list(biases.values())), strict=True))
    nn.functional.cross_entropy(model(images), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()
    for name, tensor in model.backbone.body().items():
        moved = before[name] - 0.1 * (expected[name] + 0.1 * before[name]) if name in expected else before[name]
        torch.testing.assert_close(tensor, moved, rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.body().items())


def test_a_saved_model_is_the_same_model(make_vit, tmp_path):
    backbone = pv.from_timm(make_vit().float())
    model = pv.tune(backbone, Bias(), 3).eval()
    with torch.no_grad():
        for name in model.trained:
            model.backbone.weights()[name].add_(0.1)
    model.save(tmp_path)
    loaded, images = pv.load(tmp_path, backbone=backbone), torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), model(images))
    assert not torch.equal(backbone(images), loaded.backbone(images))


def swin():
    """Four blocks in two stages, of a kind that has tables."""
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=0
    )
