import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

import promptvit as pv
from promptvit.backbones.source import BackboneSource
from promptvit.backbones.vit import ViTBackbone

LAYERS = 4
KINDS = {
    "cls": {},
    "registers, avg": {"reg_tokens": 4, "global_pool": "avg"},
    "no cls, map": {"class_token": False, "global_pool": "map"},
    "norm after pooling": {"global_pool": "avg", "fc_norm": True},
    "prr": {"global_pool": "prr", "reg_tokens": 1},
}


@pytest.fixture(scope="module")
def outline():
    """A backbone by its timm name, without values."""

    def make(name):
        with torch.device("meta"):
            return pv.from_timm(timm.create_model(name, num_classes=0))

    return make


@pytest.fixture
def vit(make_vit):
    """Four blocks in float64, with a CLS token."""
    return pv.from_timm(make_vit(depth=LAYERS))


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


def filled(backbone, method, classes=5):
    """A float64 model with everything that is trained away from zero."""
    model = pv.tune(backbone, method, classes).double()
    with torch.no_grad():
        for parameter in [*model.delta.parameters(), *model.head.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


VARIANTS = [
    (pv.VPT(length=5, depth="shallow"), [0, None, None, None]),
    (pv.VPT(length=5, depth="deep"), [0, 1, 2, 3]),
    (pv.VPT(length=5, blocks=1), [0, None, None, None]),
    (pv.VPT(length=5, blocks=2), [0, 1, None, None]),
    (pv.VPT(length=5, blocks=2, after="drop"), [0, 1, "end", None]),
    (pv.VPT(length=5, blocks=3, after="drop"), [0, 1, 2, "end"]),
    (pv.VPT(length=5, blocks=4, after="drop"), [0, 1, 2, 3]),
    (pv.VPT(length=5, blocks=2, end="last"), [None, None, 0, 1]),
    (pv.VPT(length=5, blocks=4, end="last"), [0, 1, 2, 3]),
    (pv.VPT(length=5, shared=True), [0, 0, 0, 0]),
    (pv.VPT(length=5, shared=True, blocks=2), [0, 0, None, None]),
    (pv.VPT(length=5, shared=True, blocks=3, end="last"), [None, 0, 0, 0]),
    (pv.VPT(length=5, project=7, blocks=3, after="drop"), [0, 1, 2, "end"]),
    (pv.VPT(length=5, project=7, shared=True), [0, 0, 0, 0]),
    *[(pv.VPT(length=5, pooling=p), [0, 1, 2, 3]) for p in ("image", "prompt", "all")],
    *[(pv.VPT(length=5, pooling=p, depth="shallow"), [0, None, None, None]) for p in ("image", "prompt", "all")],
    *[(pv.VPT(length=5, pooling=p, blocks=2), [0, 1, None, None]) for p in ("prompt", "all")],
    *[(pv.VPT(length=5, pooling=p, blocks=1, end="last"), [None, None, None, 0]) for p in ("image", "prompt", "all")],
    (pv.VPT(length=5, pooling="image", blocks=2, after="drop"), [0, 1, "end", None]),
]


def literal_features(vit, prompts, blocks, pooling, images):
    """The paper's loop over timm's own blocks: prompts stand between prefix and patches, and are cut out or replaced.

    `blocks` says which set of `prompts` [S, P, D] each block gets; None: what arrives stays; "end": it is removed.
    """
    x, prefix, present = vit.norm_pre(vit._pos_embed(vit.patch_embed(images))), vit.num_prefix_tokens, 0
    for block, which in zip(vit.blocks, blocks, strict=True):
        if which is not None:
            x, present = torch.cat([x[:, :prefix], x[:, prefix + present :]], dim=1), 0
        if isinstance(which, int):
            own = prompts[which].expand(len(images), -1, -1)
            x, present = torch.cat([x[:, :prefix], own, x[:, prefix:]], dim=1), own.shape[1]
        x = block(x)
    x = vit.norm(x)
    first, ours, patches = x[:, :prefix], x[:, prefix : prefix + present], x[:, prefix + present :]
    if pooling == "own":
        return vit.forward_head(torch.cat([first, patches], dim=1), pre_logits=True)
    rows = {"image": patches, "prompt": ours, "all": torch.cat([ours, patches], dim=1)}[pooling]
    return vit.fc_norm(rows.mean(dim=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "blocks"), VARIANTS, ids=str)
def test_every_variant_equals_the_literal_loop(method, blocks, kind, make_vit, images):
    backbone = pv.from_timm(make_vit(depth=LAYERS, **KINDS[kind]))
    model = filled(backbone, method)
    (prompts,) = model.delta.prompts
    prompts = prompts if method.project is None else model.delta.project(prompts)
    logits = model(images)
    literal = model.head(literal_features(backbone.model, prompts, blocks, method.pooling, images))
    torch.testing.assert_close(logits, literal, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.fold()(images), literal, rtol=0, atol=1e-10)
    trained = list(model.delta.parameters())
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    got, expected = (torch.autograd.grad((given * weights).sum(), trained) for given in (logits, literal))
    for mine, theirs in zip(got, expected, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


class Spy(ViTBackbone):
    """A ViT that notes how many tokens each block sees."""

    def block(self, index, x, given, rows, positions):
        self.seen.append(x.shape[1] + (0 if given.tokens is None else given.tokens.shape[-2]))
        return super().block(index, x, given, rows, positions)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"depth": "shallow"}, [22, 22, 22, 22]),
        ({}, [22, 22, 22, 22]),
        ({"blocks": 2}, [22, 22, 22, 22]),
        ({"blocks": 2, "after": "drop"}, [22, 22, 17, 17]),
        ({"blocks": 4, "after": "drop"}, [22, 22, 22, 22]),
        ({"blocks": 1, "end": "last"}, [17, 17, 17, 22]),
        ({"blocks": 3, "end": "last"}, [17, 22, 22, 22]),
        ({"shared": True}, [22, 22, 22, 22]),
    ],
)
def test_the_tokens_that_each_block_sees_are_the_papers(fields, tokens, vit, images):
    spy = Spy(vit.model, vit.preprocessing, BackboneSource())
    spy.seen = []
    filled(spy, pv.VPT(length=5, **fields))(images)
    assert spy.seen == tokens


@pytest.mark.parametrize("pooling", ["own", "image"])
def test_prompts_in_the_last_blocks_lose_no_patch(pooling, vit, images):
    model = filled(vit, pv.VPT(length=5, blocks=2, end="last", pooling=pooling))
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels).square().sum(), pixels)
    patches = gradient.unfold(2, 4, 4).unfold(3, 4, 4)  # [B, 3, 4, 4, 4, 4]
    assert (patches.abs().amax(dim=(1, 4, 5)) > 1e-8).all()


def test_stages_of_other_widths_have_prompts_of_their_own(outline):
    backbone = outline("swin_tiny_patch4_window7_224")  # 2, 2, 6 and 2 blocks
    with torch.device("meta"):
        deep, last = pv.VPT(length=5).build(backbone), pv.VPT(length=5, blocks=3, end="last").build(backbone)
        first = pv.VPT(length=5, blocks=4, after="drop").build(backbone)
        given = [[block.tokens for block in delta(backbone, 2)] for delta in (deep, last, first)]
    assert [list(stage.shape) for stage in deep.prompts] == [[2, 5, 96], [2, 5, 192], [6, 5, 384], [2, 5, 768]]
    assert [tokens.shape[1] for tokens in given[0]] == list(backbone.info.widths)
    assert [list(stage.shape) for stage in last.prompts] == [[1, 5, 384], [2, 5, 768]]
    assert [tokens is not None for tokens in given[1]] == [False] * 9 + [True] * 3
    assert [list(tokens.shape) for tokens in given[2][3:5]] == [[5, 192], [0, 384]]
    assert given[2][5:] == [None] * 7


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "all"},
        {"depth": "shallow"},
        {"depth": "shallow", "pooling": "all"},
        {"blocks": 1},
        {"blocks": 2, "pooling": "prompt"},
        {"blocks": 1, "after": "drop"},
        {"blocks": 2, "after": "drop", "pooling": "image"},
        {"blocks": 2, "end": "last"},
        {"blocks": 1, "end": "last", "pooling": "all"},
    ],
    ids=str,
)
def test_prompts_of_several_widths_fold_and_know_one_image_only(fields, images):
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0, "drop_path_rate": 0}
    swin = SwinTransformer(**size, depths=(1, 2), num_heads=(2, 4), window_size=2).double()
    model = filled(pv.from_timm(swin), pv.VPT(length=5, **fields)).eval()
    logits = model(images)
    torch.testing.assert_close(model.fold()(images), logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), logits, rtol=0, atol=1e-10)
    with torch.no_grad():
        model.delta.prompts[-1].zero_()
    assert (model(images) - logits).abs().max() > 1e-6


@pytest.mark.parametrize("fields", [{}, {"depth": "shallow"}, {"shared": True}, {"project": 7}], ids=str)
def test_dropout_gives_every_image_and_block_its_own_mask_and_keeps_the_mean(fields, make_vit):
    backbone = pv.from_timm(make_vit().float())
    delta = pv.VPT(length=50, dropout=0.25, **fields).build(backbone)
    drawn = [given.tokens for given in delta(backbone, 40) if given.tokens is not None]
    tokens = torch.stack(drawn)  # [S, B, P, D]
    assert tokens.shape == (1 if fields.get("depth") else 3, 40, 50, 24)
    dropped = tokens == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (dropped[:, 0] != dropped[:, 1]).any()
    assert len(tokens) == 1 or (dropped[0] != dropped[1]).any()
    whole = [given.tokens for given in delta.eval()(backbone, 40) if given.tokens is not None]
    torch.testing.assert_close(tokens[~dropped], (torch.stack(whole)[:, None] / 0.75).expand_as(tokens)[~dropped])
    assert {given.shape for given in whole} == {(50, 24)}


def test_dropout_acts_on_every_image_of_swin(outline):
    backbone = outline("swin_tiny_patch4_window7_224")
    with torch.device("meta"):
        given = pv.VPT(length=2, dropout=0.1).build(backbone)(backbone, 3)
    assert [block.tokens.shape for block in given] == [(3, 2, width) for width in backbone.info.widths]
