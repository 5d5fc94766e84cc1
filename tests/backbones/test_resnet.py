import copy
import pickle

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from promptvit.backbones.base import NOTHING
from promptvit.backbones.load import from_timm
from promptvit.errors import BackboneError, ConfigError

# one of each kind in timm's registry: blocks, stems, attention, pooling, norms
NAMES = [
    *("resnet18", "resnet50", "resnet50d", "resnet50t", "resnet50_gn", "resnext50_32x4d", "seresnet50"),
    *("ecaresnet26t", "resnetblur18", "resnetaa50d", "resnetrs50", "senet154", "wide_resnet50_2"),
    *("res2net50_14w_8s", "skresnet18"),
]
SMALL = {"layers": (2, 1, 1, 1), "channels": (32, 32, 32, 32), "num_classes": 0}
OPTIONS = {"max": {"global_pool": "max"}, "catavgmax": {"global_pool": "catavgmax"}, "grey": {"in_chans": 1}}


@pytest.fixture
def make(make_small):
    """A small ResNet of timm's, by name, or from the class."""

    def make(name=None, **arguments):
        build = (lambda **given: ResNet(Bottleneck, **given)) if name is None else None
        build = build or (lambda **given: timm.create_model(name, **given))
        model = make_small(lambda: build(**SMALL | arguments))
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 1.5)
        return model

    return make


@pytest.fixture(scope="module")
def resnet50():
    """ResNet-50 without values."""
    with torch.device("meta"):
        return from_timm(timm.create_model("resnet50", num_classes=0))


def count(backbone, names):
    return sum(backbone.weights()[name].numel() for name in names)


@torch.no_grad()
def assert_equals_timm(model):
    images = torch.randn(2, model.in_chans, 64, 96, dtype=torch.float64)
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
    torch.testing.assert_close(model.fc(backbone(images)), model(images), rtol=0, atol=1e-12)
    assert not [name for name in backbone.body() if name.startswith("fc")]


def test_resnet50_has_the_papers_sizes(resnet50):
    assert count(resnet50, resnet50.weights()) == 23_508_032
    assert count(resnet50, resnet50.biases()) == 26_560
    assert count(resnet50, resnet50.under(*resnet50.units()[-1], *resnet50.last())) == 4_462_592
    stages = [count(resnet50, resnet50.under(*(name for s in resnet50.stages()[-k:] for name in s))) for k in (1, 2, 3)]
    assert stages == [14_964_736, 22_063_104, 23_282_688]
    info = resnet50.info
    assert (info.width, info.depth, info.widths, info.prefix, info.cls) == (2048, 0, (), 0, False)
    assert (info.patch_size, info.channels, info.readout) == ((7, 7), 3, "avg")


def test_units_stages_and_the_stem_are_the_body(make):
    backbone = from_timm(make("resnet50d"))
    assert backbone.units() == [["layer1.0"], ["layer1.1"], ["layer2.0"], ["layer3.0"], ["layer4.0"]]
    assert backbone.stages() == [["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    in_units = [name for unit in backbone.units() for name in backbone.under(*unit)]
    assert sorted(in_units + backbone.under("conv1", "bn1")) == sorted(backbone.weights())
    assert backbone.last() == []


@pytest.mark.parametrize(("name", "convolution"), [("resnet18", "conv1"), ("resnet50d", "conv1.0")])
def test_the_first_convolution_sees_the_image(name, convolution, make):
    backbone = from_timm(make(name))
    assert backbone.first_convolution == convolution
    assert backbone.model.get_submodule(convolution).in_channels == 3


def test_frozen_batch_norms_keep_their_statistics(make):
    backbone = from_timm(make().train())
    before = copy.deepcopy(backbone.body())
    backbone(torch.randn(4, 3, 32, 32, dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.body().items())


def test_prompts_have_no_place_in_it(make):
    backbone, images = from_timm(make()), torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"1 block inputs and readout='own'; expected no inputs.*a resnet backbone"):
        backbone(images, [NOTHING])
    with pytest.raises(ConfigError, match="readout='all'"):
        backbone(images, (), "all")


def test_a_model_without_pooling_is_refused(make):
    with pytest.raises(BackboneError, match="global_pool='' gives a map of features"):
        from_timm(make(global_pool=""))


def test_resized_shares_every_parameter(make):
    backbone = from_timm(make())
    twin = backbone.resized((48, 40))
    assert (twin.preprocessing.size, backbone.preprocessing.size) == ((48, 40), (224, 224))
    assert all(twin.weights()[name] is weight for name, weight in backbone.weights().items())


def test_checkpointing_is_timms_flag_and_changes_no_gradient(make):
    backbone = from_timm(make())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(backbone(images).square().sum(), images)
    assert not backbone.checkpointing
    backbone.set_checkpointing(True)
    assert backbone.checkpointing
    (again,) = torch.autograd.grad(backbone(images).square().sum(), images)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-12)


def test_copies_and_low_precision(make):
    backbone, images = from_timm(make().float()), torch.randn(2, 3, 32, 32)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(twin(images), backbone(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = backbone(images).float()
    torch.testing.assert_close(low, backbone(images), rtol=0.1, atol=0.1)
