import pytest

import promptvit as pv
from promptvit.backbones.source import BackboneSource
from promptvit.counting import count, outline, safetensors_bytes
from promptvit.errors import ConfigError
from promptvit.methods import METHODS


@pytest.fixture(scope="module")
def pico():
    return outline(BackboneSource())


def test_an_outline_has_the_names_and_shapes_of_the_backbone_and_no_values(pico):
    loaded = pv.load_backbone()
    assert {name: tensor.shape for name, tensor in pico.body().items()} == {
        name: tensor.shape for name, tensor in loaded.body().items()
    }
    assert all(tensor.is_meta for tensor in pico.body().values())
    assert (pico.info, pico.fingerprint) == (loaded.info, "")


@pytest.mark.parametrize("name", ["linear", "mlp-3", "vpt-deep", "vpt-fixed", "adapter", "lora", "pixel-pad", "full"])
def test_counts_are_those_of_a_model_and_of_its_file(name, pico, tmp_path):
    method = METHODS[name].build()
    counted = count(pico, method, 7)
    model = pv.tune(pv.load_backbone(), method, 7)
    model.save(tmp_path)
    assert counted.trained == counted.delta + counted.head == model.trained_parameters()
    assert counted.tuned_percent == pytest.approx(100 * model.trained_parameters() / model.total_parameters())
    assert counted.bytes == (tmp_path / "delta.safetensors").stat().st_size
    assert counted.bytes == safetensors_bytes(model.trained_tensors())


def test_what_many_tasks_store(pico):
    body = sum(weight.numel() for weight in pico.weights().values())
    linear, full = (count(pico, method, 7, tasks=10) for method in (pv.Linear(), pv.Full()))
    assert linear.ratio == pytest.approx((body + 10 * 7 * 129) / body)
    assert linear.percent_of_backbone == pytest.approx(100 * 7 * 129 / body)
    assert full.ratio == pytest.approx(10 * (body + 7 * 129) / body)  # no backbone beside them
    with pytest.raises(ConfigError, match="tasks=0; expected at least 1"):
        count(pico, pv.Linear(), 7, tasks=0)


def test_what_a_backbone_cannot_have_is_said_with_the_reason():
    resnet = outline(BackboneSource(name="resnet18"))
    with pytest.raises(ConfigError, match="VPT on a resnet backbone: prompts need tokens"):
        count(resnet, pv.VPT(), 7)
