import math

import pytest
import timm
import torch
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError, UnknownNameError
from promptvit.methods import METHODS
from promptvit.methods.prompts import patch_embedding_bound


@pytest.fixture(scope="module")
def base():
    """ViT-B/16 at 224, random."""
    return pv.from_timm(timm.create_model("vit_base_patch16_224", num_classes=0))


@pytest.fixture(scope="module")
def outline():
    """A backbone by its timm name, without values."""

    def make(name):
        with torch.device("meta"):
            return pv.from_timm(timm.create_model(name, num_classes=0))

    return make


@pytest.fixture
def vit(make_vit):
    """Small, in float64, with a CLS token."""
    return pv.from_timm(make_vit())


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("method", "prompts"),
    [
        (pv.VPT(length=10, depth="deep"), 92_160),
        (pv.VPT(length=10, depth="shallow"), 7_680),
        (pv.VPT(length=10, depth="deep", project=64), 57_600),
        (pv.VPT(length=10, blocks=3), 23_040),
        (pv.VPT(length=10, blocks=3, after="drop"), 23_040),
        (pv.VPT(length=10, blocks=3, end="last"), 23_040),
        (pv.VPT(length=10, shared=True), 7_680),
        (pv.VPT(length=10, fixed=True), 0),
        (pv.VPT(length=10, init="final-cls"), 92_160),
        (pv.Linear(), 0),
    ],
    ids=str,
)
def test_parameters_of_vit_base_are_the_papers(method, prompts, base):
    delta = method.build(base)
    assert count(delta) == prompts
    assert method.prepare(base) is base


@pytest.mark.parametrize(
    ("name", "deep", "shallow"),
    [
        ("vit_large_patch16_224", 24_576, 1024),
        ("vit_huge_patch14_224", 40_960, 1280),
        ("swin_base_patch4_window7_224", 12_032, 128),
        ("swin_tiny_patch4_window7_224", 4_416, 96),
        ("swin_small_patch4_window7_224", 9_024, 96),
        ("swin_large_patch4_window7_224", 18_048, 192),
    ],
)
def test_parameters_of_other_backbones_are_the_papers(name, deep, shallow, outline):
    backbone = outline(name)
    with torch.device("meta"):
        assert count(pv.VPT(length=7).build(backbone)) == 7 * deep
        assert count(pv.VPT(length=7, depth="shallow").build(backbone)) == 7 * shallow


@pytest.mark.parametrize(
    ("weights", "trained"), [("none", 0), ("bias", 102_912), ("cls", 768), ("cls-reinit", 768), ("all", 85_798_656)]
)
def test_backbone_weights_of_vit_base_are_the_papers(weights, trained, outline):
    with torch.device("meta"):
        model = pv.tune(outline("vit_base_patch16_224"), pv.VPT(length=10, weights=weights), 100)
    assert model.trained_parameters() == trained + 92_160 + 76_900
    assert count(model.backbone) == trained


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
    (prompts,) = pv.VPT(length=20).build(base).prompts
    assert prompts.shape == (12, 20, 768)
    assert 0.99 * 0.0625 < prompts.abs().max() <= 0.0625
    assert prompts.std().item() == pytest.approx(0.0625 / math.sqrt(3), rel=0.02)
    projected = pv.VPT(length=200, project=64).build(base)
    assert 0.99 * 0.084921 < projected.prompts[0].abs().max() <= 0.084921
    assert projected.project.weight.std().item() == pytest.approx(math.sqrt(2 / 768), rel=0.02)
    (normal,) = pv.VPT(length=20, init="normal").build(base).prompts
    assert normal.std().item() == pytest.approx(0.02, rel=0.02)


def test_the_bound_of_swin_is_that_of_its_first_stage():
    backbone = pv.from_timm(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0))
    prompts = pv.VPT(length=50).build(backbone).prompts
    assert [stage.abs().max().item() for stage in prompts] == pytest.approx([0.204124] * 4, rel=1e-2)
    assert max(stage.abs().max().item() for stage in prompts) <= 0.204125


def test_the_head_starts_as_in_the_paper(base):
    head = pv.tune(base, pv.VPT(length=1), 100).head
    torch.testing.assert_close(head.bias, torch.full((100,), -4.59512), rtol=0, atol=1e-5)
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.05)


def test_prompts_and_backbone_weights_are_trained_together(vit, images):
    before = {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}
    for weights in ("bias", "cls", "all"):
        model = pv.tune(vit, pv.VPT(length=5, weights=weights), 5).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(images).square().sum().backward()
        optimizer.step()
        changed = {name for name, t in model.backbone.model.state_dict().items() if not torch.equal(t, before[name])}
        expected = {
            "bias": {name for name in before if name.endswith("bias")},
            "cls": {"cls_token"},
            "all": set(before),
        }
        assert changed == expected[weights]
        assert not any(module.training for module in model.backbone.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.model.state_dict().items())


def test_backbone_weights_have_the_learning_rate_of_the_method_that_trains_them_alone():
    rates = {"bias": METHODS["bias"].method, "cls": METHODS["cls"].method, "all": pv.Full}
    for weights, method in rates.items():
        share = pv.VPT(weights=weights).backbone_share
        assert share * pv.VPT.learning_rate == pytest.approx(method.learning_rate)


def test_a_cls_token_starts_anew(vit):
    token = pv.tune(vit, pv.VPT(weights="cls-reinit"), 3).backbone.model.cls_token
    assert 0 < token.abs().max() < 1e-5 < vit.model.cls_token.abs().max()


def test_fixed_prompts_are_kept_and_saved_bit_by_bit(make_vit, tmp_path, images):
    backbone = pv.from_timm(make_vit().float())
    model = pv.tune(backbone, pv.VPT(length=5, fixed=True, dropout=0.5), 3)
    before = model.delta.prompts[0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    nn.functional.cross_entropy(model(images.float()), torch.arange(3)).backward()
    optimizer.step()
    assert torch.equal(model.delta.prompts[0], before)
    assert not torch.equal(model(images.float()), model(images.float()))  # dropout acts
    model.save(tmp_path)
    torch.manual_seed(7)
    loaded = pv.load(tmp_path, backbone=backbone)
    assert torch.equal(loaded.delta.prompts[0], before)
    assert torch.equal(loaded(images.float()), model.eval()(images.float()))


@pytest.mark.parametrize(
    ("field", "value", "others"),
    [
        ("length", 3, {}),
        ("depth", "shallow", {}),
        ("blocks", 2, {}),
        ("end", "last", {"blocks": 2}),
        ("after", "drop", {"blocks": 2}),
        ("shared", True, {}),
        ("dropout", 0.5, {}),
        ("project", 5, {}),
        ("init", "normal", {}),
        ("pooling", "image", {}),
        ("pooling", "prompt", {}),
        ("pooling", "all", {}),
        ("weights", "cls-reinit", {}),
    ],
)
def test_every_field_changes_something(field, value, others, make_vit):
    backbone, images = pv.from_timm(make_vit().float()), torch.randn(2, 3, 16, 16)

    def logits(**fields):
        torch.manual_seed(0)
        model = pv.tune(backbone, pv.VPT(**others, **fields), 3)
        torch.manual_seed(0)
        return model(images)

    assert torch.equal(logits(), logits())
    assert not torch.allclose(logits(), logits(**{field: value}))


def test_all_that_is_wrong_with_a_config_is_said_at_once(untyped):
    with pytest.raises(ConfigError) as caught:
        pv.VPT(length=0, depth="deeper", dropout=1.0, project=0, blocks=0, init="zeros", weights="some", pooling="mean")
    message = str(caught.value)
    for part in (
        "length=0: expected at least 1",
        "depth='deeper': expected shallow or deep",
        "dropout=1.0",
        "project=0",
        "blocks=0: expected at least 1",
        "init='zeros': expected paper, normal, final-cls, cls-nolastl or cls-nofirstl",
        "weights='some': expected none, bias, cls, cls-reinit or all",
        "pooling='mean': expected own, image, prompt or all",
    ):
        assert part in message
    assert message.endswith("(in VPT)")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"depth": "shallow", "blocks": 2}, "blocks with depth=shallow"),
        ({"end": "last"}, "end=last without blocks"),
        ({"depth": "shallow", "end": "last"}, "end=last without blocks"),
        ({"after": "drop"}, "after=drop without blocks"),
        ({"depth": "shallow", "after": "drop"}, "after=drop with depth=shallow: use depth=deep, blocks=1"),
        ({"blocks": 2, "end": "last", "after": "drop"}, "after=drop with end=last"),
        ({"depth": "shallow", "shared": True}, "shared with one block"),
        ({"blocks": 1, "shared": True}, "shared with one block"),
        ({"blocks": 2, "after": "drop", "pooling": "prompt"}, "pooling=prompt with after=drop"),
        ({"blocks": 2, "after": "drop", "pooling": "all"}, "pooling=all with after=drop"),
        ({"fixed": True, "project": 8}, "fixed with project"),
        ({"init": "final-cls", "project": 8}, "init=final-cls with project"),
        ({"init": "cls-nolastl", "blocks": 2}, "init=cls-nolastl with blocks"),
        ({"init": "cls-nofirstl", "shared": True}, "init=cls-nofirstl with shared"),
    ],
    ids=str,
)
def test_fields_that_mean_nothing_together_are_refused(fields, reason):
    with pytest.raises(ConfigError, match=reason):
        pv.VPT(**fields)


def test_a_backbone_that_cannot_have_it_refuses(make_vit, outline):
    plain, bare = pv.from_timm(make_vit()), pv.from_timm(make_vit(class_token=False, global_pool="avg"))
    swin, resnet = outline("swin_tiny_patch4_window7_224"), outline("resnet18")
    for backbone, method, reason in (
        (plain, pv.VPT(blocks=4), "blocks=4: it has 3"),
        (bare, pv.VPT(weights="cls"), "weights=cls: there is no CLS token"),
        (bare, pv.VPT(init="final-cls"), "init=final-cls: there is no CLS token"),
        (swin, pv.VPT(shared=True), "differ in width"),
        (swin, pv.VPT(project=8), "differ in width"),
        (resnet, pv.VPT(), "prompts need tokens to join; use pixel prompts"),
    ):
        with pytest.raises(ConfigError, match=reason):
            pv.tune(backbone, method, 3)


def test_a_method_is_a_value():
    assert pv.VPT(length=3) == pv.VPT(length=3) != pv.VPT(length=4)
    assert pv.VPT(**pv.VPT(project=3).to_dict()) == pv.VPT(project=3)
    with pytest.raises(AttributeError):
        pv.VPT().length = 3


def test_names_stand_for_fields():
    assert METHODS["vpt-deep"].build(length=3) == pv.VPT(length=3, depth="deep")
    assert METHODS["vpt-shallow"].build() == METHODS["vpt"].build(depth="shallow") == pv.VPT(depth="shallow")
    assert METHODS["vpt-deep"].build(depth="deep") == pv.VPT()
    assert METHODS["vpt-shared"].build() == pv.VPT(shared=True)
    assert METHODS["vpt-fixed"].build(depth="shallow") == pv.VPT(depth="shallow", fixed=True)
    assert METHODS["vpt-bias"].build() == pv.VPT(weights="bias")
    assert METHODS["vpt-cls"].build() == pv.VPT(weights="cls")
    assert METHODS["mixed"].build() == pv.VPT(weights="all")
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
