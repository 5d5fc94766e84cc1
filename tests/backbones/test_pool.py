"""How a ViT or EVA is read: its CLS row, or the mean of its rows and then a fresh norm or its own."""

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch.nn.functional import layer_norm

import promptvit as pv
from promptvit.backbones.source import BackboneSource
from promptvit.errors import BackboneError, ConfigError

NAME = "test_vit"  # timm's own small one: width 64, 6 blocks, 160x160


def spread(name, **arguments):
    """timm's model `name` with every tensor away from where it starts."""
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(3)
    return spread(NAME).state_dict()


@pytest.fixture
def mae(weights, tmp_path):
    """A checkpoint as MAE's authors write it: the encoder with its norm."""
    torch.save({"model": weights}, tmp_path / "mae.pth")
    return tmp_path / "mae.pth"


def behind(weights, scale=None, shift=None):
    """`weights` with the norm behind the pooling: its own, or one with `scale` and `shift`."""
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("norm.")}
    own = (weights["norm.weight"], weights["norm.bias"]) if scale is None else (scale, shift)
    return body | {"fc_norm.weight": own[0], "fc_norm.bias": own[1]}


def timms(weights):
    """timm's own model that norms what it has pooled."""
    model = timm.create_model(NAME, num_classes=0, global_pool="avg").eval()
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("decoder", [False, True])
def test_a_fresh_norm_behind_the_mean(decoder, weights, tmp_path, caplog):
    extra = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 64)} if decoder else {}
    torch.save({"model": weights | extra}, tmp_path / "mae.pth")
    backbone = pv.load_backbone(NAME, checkpoint=tmp_path / "mae.pth", pool="avg")
    left_out = {"norm.weight", "norm.bias"} | ({"decoder_embed.weight"} if decoder else set())
    assert all(name in caplog.text for name in left_out)
    theirs, images = timms(behind(weights, torch.ones(64), torch.zeros(64))), torch.randn(2, 3, 160, 160)
    assert backbone.fingerprint == pv.from_timm(theirs).fingerprint
    torch.testing.assert_close(backbone(images), theirs(images), rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in pv.tune(backbone, pv.VPT(), 3).backbone.parameters())
    assert {"fc_norm.weight", "fc_norm.bias"} <= pv.tune(backbone, pv.Full(), 3).trained


def test_the_pretrained_norm_behind_the_mean(weights, mae, tmp_path):
    backbone = pv.load_backbone(NAME, checkpoint=mae, pool="avg-pretrained")
    theirs, images = timms(behind(weights)), torch.randn(2, 3, 160, 160)
    assert backbone.fingerprint == pv.from_timm(theirs).fingerprint
    assert torch.equal(backbone.model(images), theirs(images))
    torch.testing.assert_close(backbone(images), theirs(images), rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert {"fc_norm.weight", "fc_norm.bias"} <= pv.tune(backbone, pv.Partial(), 3).trained
    save_for_hf(spread(NAME), tmp_path / "hub", model_args={"depth": 6}, safe_serialization=True)
    torch.save(pv.load_backbone(str(tmp_path / "hub")).model.state_dict(), mae)
    from_file, from_hub = (
        pv.load_backbone(name, checkpoint=checkpoint, pool="avg-pretrained")
        for name, checkpoint in ((NAME, mae), (str(tmp_path / "hub"), None))
    )
    assert from_file.fingerprint == from_hub.fingerprint != backbone.fingerprint


@pytest.mark.parametrize(("pooling", "last"), [("own", 101), ("all", 105)])
def test_the_norm_of_the_mean_of_rows(pooling, last, weights, mae):
    backbone = pv.load_backbone(NAME, checkpoint=mae, pool="avg-pretrained")
    model = pv.tune(backbone, pv.VPT(length=4, depth="deep", pooling=pooling), 3).double()
    vit, images = timms(behind(weights)).double(), torch.randn(2, 3, 160, 160, dtype=torch.float64)
    with torch.no_grad():
        x = vit._pos_embed(vit.patch_embed(images))
        for block, prompts in zip(vit.blocks, model.delta.prompts[0], strict=True):
            x = block(torch.cat([x[:, :101], prompts.expand(2, -1, -1)], dim=1))
        norm = {"weight": weights["norm.weight"].double(), "bias": weights["norm.bias"].double(), "eps": 1e-6}
        ways = {rows: layer_norm(x[:, 1:rows].mean(dim=1), (64,), **norm) for rows in (101, 105)}
        got = model.features(images)
        torch.testing.assert_close(got, ways[last], rtol=0, atol=1e-10)
        assert (ways[101] - ways[105]).abs().max() > 1e-3
        assert (layer_norm(x[:, 1:last], (64,), **norm).mean(dim=1) - got).abs().max() > 1e-3  # the norm first


def test_a_task_on_the_norm_of_the_mean_is_loaded_again(mae, tmp_path):
    model = pv.tune(pv.load_backbone(NAME, checkpoint=mae, pool="avg-pretrained"), pv.VPT(pooling="all"), 3)
    again, images = pv.load(model.save(tmp_path / "delta")), torch.randn(2, 3, 160, 160)
    assert again.backbone.source == BackboneSource(name=NAME, checkpoint=str(mae), pool="avg-pretrained")
    assert torch.equal(again(images), model.eval()(images))


def test_weights_that_have_a_norm_behind_the_mean_keep_it(weights, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(spread("test_vit2").state_dict(), path)
    read = {pool: pv.load_backbone("test_vit2", checkpoint=path, pool=pool) for pool in (None, "avg", "avg-pretrained")}
    assert len({backbone.fingerprint for backbone in read.values()}) == 1
    torch.save(behind(weights), path)
    own = pv.load_backbone(NAME, checkpoint=path, pool="avg")
    assert own.fingerprint == pv.from_timm(timms(behind(weights))).fingerprint
    with pytest.raises(BackboneError, match=r"has no norm\.weight, norm\.bias; .*pool='avg' reads files whose norm"):
        pv.load_backbone(NAME, checkpoint=path, pool="avg-pretrained")


@pytest.mark.parametrize("name", [NAME, "test_vit3", "vit_tiny_patch16_dinov3_qkvb"])  # CLS, attention pooling, EVA
def test_the_norm_of_any_vit_goes_behind_the_mean(name, tmp_path):
    model = spread(name, depth=2)
    save_for_hf(model, tmp_path, model_args={"depth": 2}, safe_serialization=True)
    backbone = pv.load_backbone(str(tmp_path), pool="avg-pretrained")
    size = backbone.preprocessing.size
    images = torch.randn(1, 3, *size)
    rows = model.forward_features(images)
    model.norm = torch.nn.Identity()
    mean = model.forward_features(images)[:, model.num_prefix_tokens :].mean(dim=1)
    expected = backbone.model.fc_norm(mean)
    torch.testing.assert_close(backbone(images), expected, rtol=0, atol=1e-4)
    assert (rows[:, model.num_prefix_tokens :].mean(dim=1) - expected).abs().max() > 1e-3
    assert backbone.model.attn_pool is None


@pytest.mark.parametrize("name", [NAME, "eva02_tiny_patch14_224", "vit_pico"])
def test_random_weights_have_one_way_to_be_read_by_their_mean(name):
    fingerprints = set()
    for pool in ("avg", "avg-pretrained"):
        torch.manual_seed(0)
        fingerprints.add(pv.load_backbone(name, pretrained=False, pool=pool).fingerprint)
    assert len(fingerprints) == 1


def test_pool_is_refused_where_it_means_nothing(untyped):
    assert pv.load_backbone(NAME, pretrained=False, pool="avg").info.readout == "avg"
    for pool in ("avg", "avg-pretrained"):
        for name in ("resnet18", "deit_tiny_distilled_patch16_224"):
            with pytest.raises(ConfigError, match=f"pool='{pool}'; expected null for a"):
                pv.load_backbone(name, pretrained=False, pool=pool)
    for name in ("vit_base_patch16_radio_v3", "vit_pe_spatial_tiny_patch16_512"):
        with pytest.raises(ConfigError, match="pool='avg-pretrained'; expected avg or null: there is no final norm"):
            pv.load_backbone(name, pool="avg-pretrained")
    with pytest.raises(ConfigError, match="there is no CLS token"):
        pv.load_backbone("vit_base_patch16_siglip_224", pretrained=False, pool="token")
    with pytest.raises(ConfigError, match="pool='mean': expected token, avg, avg-pretrained or null"):
        BackboneSource.from_dict({"pool": "mean"})
