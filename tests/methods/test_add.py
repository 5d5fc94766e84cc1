import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import promptvit as pv
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.methods.add import Add

LAYERS = 3


def swin():
    """Two stages of different width, three blocks."""
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    return SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2, drop_path_rate=0).double().eval()


@pytest.fixture(params=["cls", "registers, avg", "swin"])
def backbone(request, make_vit):
    """Small, in float64."""
    if request.param == "swin":
        return pv.from_timm(swin())
    return pv.from_timm(
        make_vit(**{"cls": {}, "registers, avg": {"reg_tokens": 2, "global_pool": "avg"}}[request.param])
    )


def count(delta):
    return sum(p.numel() for p in delta.parameters())


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (Add(depth="shallow"), 151_296),
        (Add(depth="deep"), 1_815_552),
        (Add(depth="shallow", rows="one"), 768),
        (Add(depth="deep", rows="one"), 9_216),
    ],
    ids=str,
)
def test_parameters_of_vit_base_are_the_papers(method, values):
    with torch.device("meta"):
        backbone = pv.from_timm(timm.create_model("vit_base_patch16_224", num_classes=0))
        assert count(method.build(backbone)) == values


def test_rows_start_within_the_bound_of_the_patch_embedding():
    backbone = pv.from_timm(timm.create_model("vit_base_patch16_224", num_classes=0, depth=2))
    (rows,) = Add().build(backbone).added
    assert rows.shape == (2, 197, 768)
    assert 0.99 * 0.0625 < rows.abs().max() <= 0.0625
    assert rows.std().item() == pytest.approx(0.0625 / 3**0.5, rel=0.02)


def blocks_of(model):
    if isinstance(model, SwinTransformer):
        return [block for layer in model.layers for block in layer.blocks]
    return model.blocks


@pytest.mark.parametrize("rows", ["each", "one"])
@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_it_equals_timms_own_forward_with_rows_added_before_blocks(depth, rows, backbone):
    model = pv.tune(backbone, Add(depth=depth, rows=rows), 5).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.delta.parameters():
            parameter.copy_(torch.randn_like(parameter))
    added = [row for stage in model.delta.added for row in stage]
    assert len(added) == (LAYERS if depth == "deep" else 1)

    def add(row):
        return lambda _, given: (given[0] + (row if len(row) == 1 else row.view(given[0].shape[1:])),)

    hooks = [
        block.register_forward_pre_hook(add(row)) for block, row in zip(blocks_of(backbone.model), added, strict=False)
    ]
    literal = model.head(backbone.model(images))
    for hook in hooks:
        hook.remove()
    logits = model(images)
    torch.testing.assert_close(logits, literal, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.fold()(images), literal, rtol=0, atol=1e-10)
    trained = list(model.delta.parameters())
    got, expected = (torch.autograd.grad(given.square().sum(), trained) for given in (logits, literal))
    for mine, theirs in zip(got, expected, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_one_row_fits_every_image_size_and_own_rows_one(make_vit):
    backbone = pv.from_timm(make_vit(dynamic_img_size=True).float())
    images = torch.randn(2, 3, 24, 16)
    assert pv.tune(backbone, Add(rows="one"), 3)(images).shape == (2, 3)
    with pytest.raises(ConfigError, match="17 rows to add; expected one per image row, 25"):
        pv.tune(backbone, Add(), 3)(images)
    own = pv.from_timm(make_vit(img_size=(24, 16)).float())
    assert pv.tune(own, Add(), 3)(images).shape == (2, 3)


@pytest.mark.parametrize(("field", "value"), [("depth", "shallow"), ("rows", "one")])
def test_every_field_changes_something(field, value, make_vit):
    backbone = pv.from_timm(make_vit())
    assert count(Add().build(backbone)) != count(Add(**{field: value}).build(backbone))


def test_it_trains_and_is_saved(make_vit, tmp_path):
    backbone, images = pv.from_timm(make_vit().float()), torch.randn(3, 3, 16, 16)
    model = pv.tune(backbone, Add(), 3)
    before = model.delta.added[0].clone()
    nn.functional.cross_entropy(model(images), torch.arange(3)).backward()
    torch.optim.SGD(model.delta.parameters(), lr=0.1).step()
    assert (model.delta.added[0] != before).all(dim=-1).any(dim=0).all()  # every row of the image
    loaded = pv.load(model.save(tmp_path), backbone=backbone)
    assert torch.equal(loaded(images), model.eval()(images))


def test_what_it_refuses(untyped):
    with pytest.raises(ConfigError, match="depth='deeper': expected shallow or deep; rows='all': expected each or one"):
        Add(depth="deeper", rows="all")
    with torch.device("meta"):
        resnet = pv.from_timm(timm.create_model("resnet18", num_classes=0))
    with pytest.raises(ConfigError, match="it has no tokens to add to"):
        pv.tune(resnet, Add(), 3)


def test_names_stand_for_fields():
    assert METHODS["vpt-add"].build() == Add()
    assert METHODS["vpt-add-1"].build(depth="shallow") == Add(rows="one", depth="shallow")
