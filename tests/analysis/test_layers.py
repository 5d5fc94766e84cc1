import numpy as np
import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import promptvit as pv
from promptvit.analysis.layers import layer_features, read_row, split_layers
from promptvit.data.config import DataConfig
from promptvit.data.digits import read_digits
from promptvit.data.load import load_split
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import ConfigError, DataError
from promptvit.preprocessing import Preprocessing

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
SWIN = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
MODELS = {
    "vit": lambda: VisionTransformer(**SMALL, reg_tokens=2),
    "no cls": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="avg"),
    "eva": lambda: Eva(**SMALL, use_rot_pos_emb=True, global_pool="token"),
    "swin": lambda: SwinTransformer(**SWIN, depths=(1, 1), num_heads=(2, 4), window_size=2, drop_path_rate=0),
}


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16)


@pytest.fixture
def make_backbone(make_small):
    def make(name):
        return pv.from_timm(make_small(MODELS[name]).float(), preprocessing=Preprocessing(size=(16, 16)))

    return make


@torch.no_grad()
def literal_vit(model, images, prompts):
    """Rows at each depth of a timm ViT with fresh prompts behind the image rows of each block."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    depths = [x]
    for block, tokens in zip(model.blocks, prompts, strict=True):
        rows = x.shape[1]
        x = block(torch.cat([x, tokens.expand(len(x), -1, -1)], dim=1))[:, :rows]
        depths.append(x)
    return depths


@pytest.mark.parametrize("name", ["vit", "no cls"])
def test_features_are_rows_of_the_literal_model(name, make_backbone, images):
    backbone = make_backbone(name)
    model = pv.tune(backbone, pv.VPT(length=3), 5)
    prefix = {"vit": 3, "no cls": 0}[name]
    prompts = {backbone: [torch.zeros(0, 24)] * 2, model: [given.tokens for given in model.delta(backbone, 3)]}
    for each, tokens in prompts.items():
        found = layer_features(each, iter([images[:2], images[2:]]))
        depths = literal_vit(backbone.model, images, tokens)
        assert list(found) == (["cls", "patch"] if name == "vit" else ["patch"])
        for depth, rows in enumerate(depths):
            np.testing.assert_allclose(found["patch"][depth], rows[:, prefix:].mean(dim=1), atol=1e-5)
            if name == "vit":
                np.testing.assert_allclose(found["cls"][depth], rows[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_of_transformers_has_its_depths(name, make_backbone, images):
    backbone = make_backbone(name)
    found = layer_features(backbone, [images])
    widths = [*backbone.info.widths, backbone.info.width]  # as they enter each block, and leave the last
    assert [rows.shape for rows in found["patch"]] == [(3, width) for width in widths]
    assert ("cls" in found) == (name in ("vit", "eva"))


@pytest.mark.parametrize(
    "method", [pv.Linear(), pv.VPT(length=2), pv.Full(), pv.Adapter(), pv.Pixel(location="pad", length=4)], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_the_tuned_model_is_read_whole_and_left_alone(method, training, make_backbone, images):
    backbone = make_backbone("vit")
    model = pv.tune(backbone, method, 5).train(training)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    before, after = layer_features(backbone, [images]), layer_features(model, [images])
    assert model.training is training
    with torch.no_grad():
        np.testing.assert_allclose(
            model.backbone.final_norm(torch.from_numpy(after["cls"][-1]).float()[:, None])[:, 0],
            model.eval().features(images),
            atol=1e-5,
        )
    assert np.array_equal(before["cls"][-1], after["cls"][-1]) is (method.kind == "linear")


def test_what_the_head_reads_is_known(make_backbone):
    assert read_row(pv.tune(make_backbone("vit"), pv.VPT(), 5)) == "cls"
    assert read_row(pv.tune(make_backbone("vit"), pv.VPT(pooling="image"), 5)) == "patch"
    assert read_row(pv.tune(make_backbone("no cls"), pv.Linear(), 5)) == "patch"
    assert read_row(pv.tune(make_backbone("swin"), pv.Linear(), 5)) == "patch"


def test_both_models_see_the_same_images(make_backbone):
    backbone, data = make_backbone("vit"), DataConfig()
    model = pv.tune(backbone, pv.VPT(length=2), 10)
    found = split_layers(model, backbone, load_split(read_digits().val, model.preprocessing, data), 7)
    numbers = sorted(np.random.default_rng(0).permutation(len(read_digits().val))[:7])
    assert found.labels.tolist() == read_digits().val.labels[numbers].tolist()
    pixels = torch.stack([prepare(read_digits().val.images[number], model.preprocessing) for number in numbers])
    seen = [normalise(pixels, model.preprocessing)]
    for features, each in ((found.before, backbone), (found.after, model)):
        np.testing.assert_allclose(features["cls"][-1], layer_features(each, seen)["cls"][-1], atol=1e-6)
    tuned, dataset = pv.tune(backbone, pv.Full(), 10), load_split(read_digits().val, model.preprocessing, data)
    with pytest.raises(ConfigError, match="the backbone of a tuned model; expected the pretrained one"):
        split_layers(tuned, tuned.backbone, dataset)
    with pytest.raises(ConfigError, match="another backbone than that of the model; expected the pretrained one"):
        split_layers(model, make_backbone("no cls"), dataset)


def test_what_has_no_layers_is_refused(make_small, make_backbone, images):
    conv = pv.from_timm(make_small(lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=0)).float())
    for each in (conv, pv.tune(conv, pv.Linear(), 5)):
        with pytest.raises(ConfigError, match=r"a convnext backbone, which has no rows.*expected a transformer"):
            layer_features(each, [images])
    backbone = make_backbone("vit")
    for nothing in ([], [images[:0]]):
        with pytest.raises(DataError, match="no images"):
            layer_features(backbone, nothing)
    with torch.no_grad():
        backbone.model.blocks[1].mlp.fc2.bias.fill_(float("nan"))
    with pytest.raises(DataError, match=r"features of 3 of 3 images are not finite.*depth 2"):
        layer_features(backbone, [images])
