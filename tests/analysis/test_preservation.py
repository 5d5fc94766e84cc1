import json

import numpy as np
import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer

import promptvit as pv
from promptvit.analysis.cka import linear_cka
from promptvit.analysis.layers import split_layers
from promptvit.analysis.preservation import Preservation, preservation, reading, similarity, weight_distances
from promptvit.data.config import DataConfig
from promptvit.data.digits import read_digits
from promptvit.data.load import load_split
from promptvit.errors import ConfigError, DataError
from promptvit.preprocessing import Preprocessing

DIGITS = DataConfig()


@pytest.fixture
def make_model(make_vit):
    """A tuned model of a small ViT with what is trained moved, and the pretrained backbone."""

    def make(method, timm_model=None):
        timm_model = make_vit(depth=2) if timm_model is None else timm_model
        backbone = pv.from_timm(timm_model.float(), preprocessing=Preprocessing(size=(16, 16)))
        model = pv.tune(backbone, method, 10)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval(), backbone

    return make


def literal_distances(model, backbone, blocks=2):
    """Norms of concatenated values, block by block."""
    before, after = backbone.model.state_dict(), model.backbone.model.state_dict()
    found = []
    for block in range(blocks):
        names = [name for name in before if name.startswith(f"blocks.{block}.")]
        change = torch.cat([(after[name] - before[name]).flatten() for name in names]).double()
        found.append((change.norm() / torch.cat([before[name].flatten() for name in names]).double().norm()).item())
    return found


@pytest.mark.parametrize("method", [pv.Full(), pv.Partial(), pv.Bias()], ids=lambda method: method.kind)
def test_distances_of_trained_weights_are_norms_of_changes(method, make_model):
    model, backbone = make_model(method)
    found = weight_distances(model, backbone)
    assert found == pytest.approx(literal_distances(model, backbone), rel=1e-5)
    assert (found[0] == 0) is (method.kind == "partial")
    assert found[1] > 0.01


@pytest.mark.parametrize(
    "method",
    [pv.Linear(), pv.VPT(length=2), pv.Adapter(), pv.Pixel(location="below", length=1), pv.Pixel(location="pad")],
    ids=str,
)
def test_methods_that_keep_the_blocks_have_moved_none(method, make_model):
    assert weight_distances(*make_model(method)) == [0, 0]


def test_an_update_of_low_rank_counts_as_its_change(make_model):
    pytest.importorskip("peft")
    model, backbone = make_model(pv.LoRA(rank=2, alpha=6.0, targets=["qkv", "mlp.fc1"]))
    squares = [0.0, 0.0]
    for name, module in model.backbone.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            squares[int(name.split(".")[1])] += module.get_delta_weight("default").double().square().sum().item()
    norms = [torch.cat([p.flatten() for p in block.parameters()]).double().norm() for block in backbone.model.blocks]
    expected = [np.sqrt(square) / norm.item() for square, norm in zip(squares, norms, strict=True)]
    assert weight_distances(model, backbone) == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0.01


def test_similarity_is_cka_of_depths_and_cosine_distance(make_model):
    model, backbone = make_model(pv.VPT(length=2))
    layers = split_layers(model, backbone, load_split(read_digits().val, model.preprocessing, DIGITS), 12)
    found = similarity(layers)
    assert found.images == 12
    for row in ("cls", "patch"):
        before, after = layers.before[row], layers.after[row]
        assert found.cka[row] == [[linear_cka(one, other) for other in after] for one in before]
        assert found.same_depth(row) == [linear_cka(*pair) for pair in zip(before, after, strict=True)]
        for distance, one, other in zip(found.cosine[row], before, after, strict=True):
            each = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, other, strict=True)]
            assert distance == pytest.approx(np.mean(each), abs=1e-12)
    assert found.same_depth("cls")[0] is None
    assert found.same_depth("patch")[0] == pytest.approx(1)
    assert found.cosine["patch"][0] == pytest.approx(0, abs=1e-6)
    assert found.same_depth("patch")[2] < 0.9999


@pytest.fixture
def other(tmp_path):
    """Twelve images of noise in two classes, with their own validation images."""
    from PIL import Image

    for split in ("train", "val"):
        for place in range(12):
            path = tmp_path / "noise" / split / str(place % 2) / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(place).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return DataConfig(source=str(tmp_path / "noise"))


def test_everything_is_found_at_once_and_comes_back_from_plain_values(make_model, other):
    found = preservation(*make_model(pv.Full()), DIGITS, other=other, images=60)
    assert (found.read, found.own.images, found.other.images) == ("cls", 60, 12)
    assert len(found.weights) == 2
    assert len(found.own.cka["cls"]) == len(found.probes["after"]["patch"]["knn"]) == 3
    assert Preservation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    text = reading(found)
    linear = [100 * found.probes[moment]["cls"]["linear"][-1] for moment in ("before", "after")]
    assert f"right for {linear[0]:.1f} % of the validation images before tuning and {linear[1]:.1f} % after" in text
    assert f"{found.own.cka['cls'][-1][-1]:.2f} with the pretrained" in text
    assert f"({found.other.cka['cls'][-1][-1]:.2f} on other images)" in text
    assert f"moved by {100 * min(found.weights):.2g} to {100 * max(found.weights):.2g} %." in text


def test_a_head_alone_keeps_everything(make_model, other):
    found = preservation(*make_model(pv.Linear()), DIGITS, other=other, images=40)
    assert found.probes["before"] == found.probes["after"]
    for each in (found.own, found.other):
        assert each.same_depth("patch") == pytest.approx([1, 1, 1])
        assert each.cosine["cls"] == pytest.approx([0, 0, 0], abs=1e-12)
    assert reading(found).endswith("(1.00 on other images). No weight of a block has moved.")


def test_a_swin_has_patches_alone(make_small, make_model):
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0, "drop_path_rate": 0}
    swin = make_small(lambda: SwinTransformer(**size, depths=(1, 1), num_heads=(2, 4), window_size=2))
    found = preservation(*make_model(pv.VPT(length=2), swin), DIGITS, images=40)
    assert found.read == "patch"
    assert list(found.own.cka) == list(found.probes["before"]) == ["patch"]
    assert found.other is None
    assert "on other images" not in reading(found)


def test_what_cannot_be_measured_is_refused(make_model, make_small, other):
    model, backbone = make_model(pv.VPT(length=2))
    with pytest.raises(ConfigError, match="other='digits', the images that the model was tuned on"):
        preservation(model, backbone, DIGITS, other=DIGITS)
    with pytest.raises(DataError, match="1 images; expected at least 4"):
        preservation(model, backbone, DIGITS, images=1)
    with pytest.raises(DataError, match="'missing' is neither built in nor a folder"):
        preservation(model, backbone, DIGITS, other=DataConfig(source="missing"))
    conv = make_small(lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=0))
    with pytest.raises(ConfigError, match="a convnext backbone, which has no rows"):
        preservation(*make_model(pv.Full(), conv), DIGITS)
