import math

import pytest
import timm
import torch

import promptvit as pv
from promptvit.errors import ConfigError, UnknownNameError
from promptvit.methods import METHODS
from promptvit.methods.vpt import patch_embedding_bound


@pytest.fixture(scope="module")
def base():
    """ViT-B/16 at 224, random."""
    return pv.from_timm(timm.create_model("vit_base_patch16_224", num_classes=0))


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("method", "prompts"),
    [
        (pv.VPT(length=10, depth="deep"), 92_160),
        (pv.VPT(length=10, depth="shallow"), 7_680),
        (pv.VPT(length=10, depth="deep", project=64), 57_600),
        (pv.Linear(), 0),
    ],
    ids=str,
)
def test_parameters_of_vit_base_are_the_papers(method, prompts, base):
    model = pv.tune(base, method, 100)
    assert (count(model.delta), count(model.head)) == (prompts, 76_900)
    assert model.trained_parameters() == prompts + 76_900


@pytest.mark.parametrize(
    ("length", "classes", "trained", "total"),
    [(100, 6, 926_214, 86_724_870), (100, 10, 929_290, 86_727_946), (5, 397, 351_373, 86_150_029)],
)
def test_totals_of_vit_base_deep_are_the_papers(length, classes, trained, total, base):
    model = pv.tune(base, pv.VPT(length=length, depth="deep"), classes)
    assert model.trained_parameters() == trained
    assert model.total_parameters() == sum(p.numel() for p in model.parameters()) == total


@pytest.mark.parametrize(
    ("patch", "channels", "width", "bound"),
    [(16, 3, 768, 0.0625), (16, 3, 1024, 0.057864), (14, 3, 1280, 0.056674), (4, 3, 128, 0.184637), (4, 1, 8, 0.5)],
)
def test_the_bound_is_that_of_the_patch_embedding(patch, channels, width, bound, make_vit):
    vit = make_vit(patch_size=patch, img_size=patch, in_chans=channels)
    assert patch_embedding_bound(pv.from_timm(vit), width) == pytest.approx(bound, abs=5e-7)


def test_prompts_are_uniform_within_the_bound(base):
    prompts = pv.VPT(length=20).build(base).prompts
    assert prompts.shape == (12, 20, 768)
    assert 0.99 * 0.0625 < prompts.abs().max() <= 0.0625
    assert prompts.std().item() == pytest.approx(0.0625 / math.sqrt(3), rel=0.02)
    projected = pv.VPT(length=200, project=64).build(base)
    assert 0.99 * 0.084921 < projected.prompts.abs().max() <= 0.084921
    assert projected.project.weight.std().item() == pytest.approx(math.sqrt(2 / 768), rel=0.02)
    normal = pv.VPT(length=20, init="normal").build(base).prompts
    assert normal.std().item() == pytest.approx(0.02, rel=0.02)


def test_the_head_starts_as_in_the_paper(base):
    head = pv.tune(base, pv.VPT(length=1), 100).head
    torch.testing.assert_close(head.bias, torch.full((100,), -4.59512), rtol=0, atol=1e-5)
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.05)


@pytest.mark.parametrize(("depth", "blocks"), [("shallow", 1), ("deep", 3)])
def test_which_blocks_get_prompts(depth, blocks, make_vit):
    backbone = pv.from_timm(make_vit())
    given = pv.VPT(length=2, depth=depth).build(backbone)(backbone, 5)
    assert [block.tokens is not None for block in given] == [True] * blocks + [False] * (3 - blocks)
    assert given[0].tokens.shape == (2, 24)


def test_dropout_gives_every_image_its_own_mask_and_keeps_the_mean(make_vit):
    backbone = pv.from_timm(make_vit())
    delta = pv.VPT(length=50, dropout=0.25).build(backbone)
    tokens = torch.stack([given.tokens for given in delta(backbone, 40)])  # [L, B, P, D]
    assert tokens.shape == (3, 40, 50, 24)
    dropped = tokens == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (dropped[:, 0] != dropped[:, 1]).any()
    assert (dropped[0] != dropped[1]).any()
    kept = tokens[~dropped]
    torch.testing.assert_close(kept, (delta.prompts.unsqueeze(1) / 0.75).expand_as(tokens)[~dropped])
    assert [given.tokens.shape for given in delta.eval()(backbone, 40)] == [(50, 24)] * 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", 3), ("depth", "shallow"), ("dropout", 0.5), ("project", 5), ("init", "normal")],
)
def test_every_field_changes_something(field, value, make_vit):
    backbone, images = pv.from_timm(make_vit().float()), torch.randn(2, 3, 16, 16)

    def logits(**fields):
        torch.manual_seed(0)
        model = pv.tune(backbone, pv.VPT(**fields), 3)
        torch.manual_seed(0)
        return model(images)

    assert torch.equal(logits(), logits())
    assert not torch.allclose(logits(), logits(**{field: value}))


def test_all_that_is_wrong_with_a_config_is_said_at_once(untyped):
    with pytest.raises(ConfigError) as caught:
        pv.VPT(length=0, depth="deeper", dropout=1.0, project=0, init="zeros")
    message = str(caught.value)
    for part in ("length=0: expected at least 1", "depth='deeper': expected shallow or deep", "dropout=1.0"):
        assert part in message
    assert "project=0" in message
    assert "init='zeros': expected paper or normal" in message
    assert message.endswith("(in VPT)")


def test_a_method_is_a_value():
    assert pv.VPT(length=3) == pv.VPT(length=3) != pv.VPT(length=4)
    assert pv.VPT(**pv.VPT(project=3).to_dict()) == pv.VPT(project=3)
    with pytest.raises(AttributeError):
        pv.VPT().length = 3


def test_names_stand_for_fields():
    assert METHODS["vpt-deep"].build(length=3) == pv.VPT(length=3, depth="deep")
    assert METHODS["vpt-shallow"].build() == METHODS["vpt"].build(depth="shallow") == pv.VPT(depth="shallow")
    assert METHODS["vpt-deep"].build(depth="deep") == pv.VPT()
    assert METHODS["linear"].build() == pv.Linear()
    assert METHODS["full"].build() == pv.Full()
    assert all(METHODS[preset.method.kind].method is preset.method for preset in METHODS.values())
    assert all(preset.summary for preset in METHODS.values())


def test_a_field_that_a_name_fixes_or_a_method_lacks_is_refused():
    with pytest.raises(ConfigError, match="depth='shallow': this name stands for depth='deep'"):
        METHODS["vpt-deep"].build(depth="shallow")
    with pytest.raises(ConfigError, match="lenght=3: VPT has no such field; depth='deep': this name stands"):
        METHODS["vpt-shallow"].build(lenght=3, depth="deep")
    with pytest.raises(UnknownNameError, match=r"unknown method 'vpt-depe'. Did you mean vpt-deep"):
        METHODS["vpt-depe"]
