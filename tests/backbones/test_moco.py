import argparse
import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import promptvit as pv
from promptvit.backbones.moco import sine_positions
from promptvit.errors import BackboneError, ConfigError

SMALL, PROBE = "moco_v3_vit_small", "moco_v3_vit_small_linear_probe"


@pytest.fixture(scope="module")
def vit():
    """The architecture of the small model as timm builds it, with random weights."""
    torch.manual_seed(0)
    model = VisionTransformer(224, 16, embed_dim=384, depth=12, num_heads=12, num_classes=0)
    return model.eval()


@pytest.fixture
def pretraining(vit):
    """The tensors of a pretraining as its authors save them."""
    w = vit.state_dict()
    tensors = {f"module.base_encoder.{name}": tensor for name, tensor in w.items()}
    tensors |= {f"module.momentum_encoder.{name}": tensor + 1 for name, tensor in w.items()}
    for name in ("base_encoder.head", "momentum_encoder.head", "predictor"):
        tensors |= {f"module.{name}.0.weight": torch.ones(8, 384), f"module.{name}.1.running_mean": torch.ones(8)}
    return tensors


@pytest.fixture
def linear_probe(vit):
    """The tensors of a linear probe."""
    tensors = {f"module.{name}": tensor for name, tensor in vit.state_dict().items()}
    return tensors | {"module.head.weight": torch.ones(1000, 384), "module.head.bias": torch.ones(1000)}


@pytest.fixture
def write(tmp_path):
    """A checkpoint file with `tensors`."""

    def write(tensors, **more):
        path = tmp_path / "vit.pth.tar"
        torch.save({"epoch": 300, "arch": "vit_small", "state_dict": tensors, **more}, path)
        return path

    return write


@pytest.mark.parametrize("name", [SMALL, PROBE])
def test_the_encoder_of_either_file_is_the_model_it_was(name, vit, pretraining, linear_probe, write):
    path = write(linear_probe if name == PROBE else pretraining, optimizer={"state": {}}, args=argparse.Namespace(lr=1))
    backbone, images = pv.load_backbone(name, checkpoint=path), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), vit(images), rtol=0, atol=1e-5)
    assert all(torch.equal(tensor, vit.state_dict()[name]) for name, tensor in backbone.model.state_dict().items())
    assert backbone.source.checkpoint == str(path)
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406)
    assert pv.tune(backbone, pv.Linear(), 10).backbone is backbone


def test_the_file_of_a_linear_probe_is_taken_on_purpose_only(pretraining, linear_probe, write):
    with pytest.raises(BackboneError, match=rf"is a linear probe: the frozen encoder .*The name {PROBE} takes"):
        pv.load_backbone(SMALL, checkpoint=write(linear_probe))
    with pytest.raises(BackboneError, match=rf"is no linear probe.*The name {SMALL} takes"):
        pv.load_backbone(PROBE, checkpoint=write(pretraining))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("module.base_encoder.norm.bias"), "norm.bias is missing"),
        (lambda t: t.pop("module.base_encoder.pos_embed"), "pos_embed is missing"),
        (lambda t: t.update({"module.base_encoder.more": torch.ones(1)}), "more is not a tensor of the encoder"),
        (
            lambda t: t.update({"module.base_encoder.norm.bias": torch.ones(3)}),
            r"norm.bias has shape \[3\], not \[384\]",
        ),
        (lambda t: t.clear(), "cls_token is missing; pos_embed is missing; .* more"),
    ],
)
def test_no_tensor_is_missing_or_left_over_silently(change, message, pretraining, write):
    change(pretraining)
    with pytest.raises(BackboneError, match=message):
        pv.load_backbone(SMALL, checkpoint=write(pretraining))


def test_a_file_that_is_none_is_refused(tmp_path, pretraining, write):
    with pytest.raises(ConfigError, match=r"without checkpoint; expected checkpoint=FILE, .*vit-s-300ep.pth.tar"):
        pv.load_backbone(SMALL)
    with pytest.raises(BackboneError, match="nowhere is not a file"):
        pv.load_backbone(SMALL, checkpoint=tmp_path / "nowhere")
    (tmp_path / "garbage").write_bytes(b"\xff" * 100)
    with pytest.raises(BackboneError, match="garbage cannot be read"):
        pv.load_backbone(SMALL, checkpoint=tmp_path / "garbage")
    with pytest.raises(BackboneError, match="cannot be read"):  # pickled code
        pv.load_backbone(SMALL, checkpoint=write(pretraining, hook=Fraction))
    with pytest.raises(ConfigError, match="pool='avg'; expected null: MoCo-v3 reads its CLS row"):
        pv.load_backbone(SMALL, pretrained=False, pool="avg")


class Fraction:
    """A class that a file may name and nobody wants to import."""


def test_random_weights_have_the_fixed_positions_and_no_method_trains_them():
    backbone = pv.load_backbone(SMALL, pretrained=False)
    positions = backbone.model.pos_embed[0]
    assert positions[0].eq(0).all()
    for row, column, channel in ((0, 0, 0), (2, 5, 1), (13, 7, 95)):
        angles = [place * 10000 ** (-channel / 96) for place in (row, column)]
        expected = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
        assert positions[1 + 14 * row + column][channel::96].tolist() == pytest.approx(expected, abs=1e-5)
    full = pv.tune(backbone, pv.Full(), 3)
    assert "pos_embed" not in full.trained
    assert full.trained | {"pos_embed"} == set(backbone.weights())


def test_another_image_size_resamples_the_positions():
    backbone = pv.load_backbone(SMALL, pretrained=False, image_size=112)
    assert backbone.model.pos_embed.shape == (1, 1 + 7 * 7, 384)
    assert backbone.preprocessing.size == (112, 112)


def test_positions_are_apart():
    table = sine_positions(3, 4, 16)[0]
    assert (torch.cdist(table, table) + torch.eye(13) > 0.1).all()


def test_sizes_are_those_of_the_paper():
    with torch.device("meta"):
        base = pv.from_timm(VisionTransformer(224, 16, embed_dim=768, depth=12, num_heads=12, num_classes=0))
    assert sum(p.numel() for p in base.weights().values()) == 85_798_656
    assert {SMALL, PROBE, "moco_v3_vit_base", "moco_v3_vit_base_linear_probe"} < set(pv.backbone_names())
