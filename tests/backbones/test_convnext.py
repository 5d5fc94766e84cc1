import copy
import pickle

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt

from promptvit.backbones.base import NOTHING
from promptvit.backbones.convnext import ConvNeXtBackbone
from promptvit.backbones.load import from_timm
from promptvit.errors import BackboneError, ConfigError

# one of each kind in timm's registry: stems, norms, MLPs and heads
NAMES = [
    *("convnext_base", "convnext_atto", "convnext_atto_ols", "convnext_tiny_hnf", "convnext_large_mlp"),
    *("convnext_zepto_rms_ols", "convnextv2_tiny", "convnext_xxlarge", "test_convnext3"),
]
SMALL = {"depths": (2, 1, 2, 1), "dims": (8, 12, 16, 20), "num_classes": 0}
OPTIONS = {
    "hidden head": {"head_hidden_size": 7},
    "max": {"global_pool": "max"},
    "norm first, catavgmax": {"head_norm_first": True, "global_pool": "catavgmax"},
    "patch of 2": {"patch_size": 2},
    "dilated": {"output_stride": 8},
    "grey": {"in_chans": 1},
}


@pytest.fixture
def make(make_small):
    """A small ConvNeXt of timm's, by name, or from the class."""

    def make(name=None, **arguments):
        build = ConvNeXt if name is None else lambda **given: timm.create_model(name, **given)
        return make_small(lambda: build(**SMALL | arguments))

    return make


@pytest.fixture(scope="module")
def base():
    """ConvNeXt-B without values."""
    with torch.device("meta"):
        return from_timm(timm.create_model("convnext_base", num_classes=0))


def count(backbone, names):
    return sum(backbone.weights()[name].numel() for name in names)


@torch.no_grad()
def assert_equals_timm(model):
    images = torch.randn(2, model.in_chans, 40, 48, dtype=torch.float64)
    backbone, expected = from_timm(model), model(images)
    assert expected.std() > 1e-3
    assert backbone.info.width == expected.shape[1]
    torch.testing.assert_close(backbone(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_timms_own_model(name, make):
    assert_equals_timm(make(name))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_architecture_option_is_driven(option, make):
    assert_equals_timm(make(**OPTIONS[option]))


def test_a_model_with_a_classifier_gives_its_features(make):
    model, images = make(num_classes=5), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    backbone = from_timm(model)
    torch.testing.assert_close(model.head.fc(backbone(images)), model(images), rtol=0, atol=1e-12)
    assert "head.norm.weight" in backbone.body()
    assert not [name for name in backbone.body() if name.startswith("head.fc")]


def test_convnext_base_has_the_papers_sizes(base):
    assert count(base, base.weights()) == 87_566_464
    assert count(base, base.biases()) == 130_304
    assert count(base, base.under(*base.units()[-1], *base.last())) == 8_450_048
    info = base.info
    assert (info.width, info.depth, info.widths, info.prefix, info.cls) == (1024, 0, (), 0, False)
    assert (info.patch_size, info.channels, info.readout, base.preprocessing.size) == ((4, 4), 3, "avg", (224, 224))


def test_units_stages_and_the_rest_are_the_body(make):
    backbone = from_timm(make())
    blocks = [f"stages.{stage}.blocks.{block}" for stage, n in enumerate((2, 1, 2, 1)) for block in range(n)]
    assert [unit[0] for unit in backbone.units()] == blocks
    assert [unit[1:] for unit in backbone.units()] == [
        *([], ["stages.1.downsample"], ["stages.2.downsample"], [], ["stages.3.downsample"], [])
    ]
    in_units = [name for unit in backbone.units() for name in backbone.under(*unit)]
    in_stages = [name for stage in backbone.stages() for name in backbone.under(*stage)]
    assert sorted(in_units) == sorted(in_stages)
    around = backbone.under("stem", *backbone.last())
    assert sorted(in_units + around) == sorted(backbone.weights())
    assert {"head.norm.weight", "stem.0.weight"} <= set(around)
    assert set(backbone.under(backbone.first_convolution)) == {"stem.0.weight", "stem.0.bias"}


def test_prompts_have_no_place_in_it(make):
    backbone, images = from_timm(make()), torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"1 block inputs and readout='own'; expected no inputs"):
        backbone(images, [NOTHING])
    with pytest.raises(ConfigError, match="readout='image'"):
        backbone(images, (), "image")
    with pytest.raises(ConfigError, match=r"shape \[1, 2, 32, 32\]; expected 3 channels"):
        backbone(images[:, :2])
    assert backbone.fold(()) == ()


def test_a_model_without_pooling_is_refused(make):
    with pytest.raises(BackboneError, match="global_pool='' gives a map of features"):
        from_timm(make(global_pool=""))


def test_resized_shares_every_tensor(make):
    backbone = from_timm(make())
    twin = backbone.resized((48, 40))
    assert isinstance(twin, ConvNeXtBackbone)
    assert (twin.preprocessing.size, backbone.preprocessing.size) == ((48, 40), (224, 224))
    assert all(twin.weights()[name] is weight for name, weight in backbone.weights().items())


def test_checkpointing_is_timms_flag_and_changes_no_gradient(make):
    backbone = from_timm(make())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(backbone(images).square().sum(), images)
    assert not backbone.checkpointing
    backbone.set_checkpointing(True)
    assert backbone.checkpointing
    assert all(stage.grad_checkpointing for stage in backbone.model.stages)
    (again,) = torch.autograd.grad(backbone(images).square().sum(), images)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-12)


def test_copies_and_low_precision(make):
    backbone, images = from_timm(make().float()), torch.randn(2, 3, 32, 32)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(twin(images), backbone(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone(images).float()
    torch.testing.assert_close(low, backbone(images), rtol=0.1, atol=0.1)
