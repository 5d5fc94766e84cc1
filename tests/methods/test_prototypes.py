import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import promptvit as pv
from promptvit.errors import ConfigError, DataError
from promptvit.methods.prototypes import class_means
from promptvit.methods.samples import DatasetSamples


@pytest.fixture
def vit(make_vit):
    """Four blocks in float64, with a CLS token."""
    return pv.from_timm(make_vit(depth=4))


@pytest.fixture
def samples():
    """Twelve images of three classes in batches of five, once."""
    pixels, labels = torch.randn(12, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 1, 2, 2, 2])
    return pixels, labels


def dataset(samples, batch_size=5):
    return DatasetSamples(TensorDataset(*samples), batch_size)


def literal_means(backbone, samples):
    """The class means of the CLS row, from what goes into and comes out of timm's own blocks."""
    rows = []
    blocks = backbone.model.blocks
    hooks = [blocks[0].register_forward_pre_hook(lambda _, given: rows.append(given[0][:, 0]))]
    hooks += [block.register_forward_hook(lambda *given: rows.append(given[2][:, 0])) for block in blocks]
    backbone.model(samples[0])
    for hook in hooks:
        hook.remove()
    return torch.stack([torch.stack(rows)[:, samples[1] == label].mean(dim=1) for label in range(3)], dim=1)


@pytest.mark.parametrize(
    ("init", "depth", "entries"),
    [
        ("final-cls", "deep", [4, 4, 4, 4]),
        ("cls-nolastl", "deep", [0, 1, 2, 3]),
        ("cls-nofirstl", "deep", [1, 2, 3, 4]),
        ("final-cls", "shallow", [4]),
        ("cls-nolastl", "shallow", [0]),
        ("cls-nofirstl", "shallow", [1]),
    ],
)
@pytest.mark.parametrize("kind", [{}, {"reg_tokens": 4, "global_pool": "avg"}, {"pre_norm": True}], ids=str)
def test_prompts_start_at_class_means(init, depth, entries, kind, make_vit, samples):
    backbone = pv.from_timm(make_vit(depth=4, **kind))
    model = pv.tune(backbone, pv.VPT(length=3, init=init, depth=depth), 3, samples=dataset(samples))
    expected = literal_means(backbone, samples)[entries]
    torch.testing.assert_close(model.delta.prompts[0].double(), expected, rtol=0, atol=1e-6)  # prompts are float32


def test_class_means_do_not_depend_on_the_batches(vit, samples):
    expected = literal_means(vit, samples)
    for size in (1, 5, 12):
        torch.testing.assert_close(class_means(vit, dataset(samples, size), 3), expected, rtol=0, atol=1e-12)


def test_prompts_that_start_alike_are_not_one_tensor(vit, samples):
    model = pv.tune(vit, pv.VPT(length=3, init="final-cls"), 3, samples=dataset(samples)).double()
    optimizer = torch.optim.SGD(model.delta.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(samples[0]), samples[1]).backward()
    optimizer.step()
    (prompts,) = model.delta.prompts
    assert not torch.equal(prompts[0], prompts[1])


def test_class_means_need_every_class_and_as_many_prompts(vit, samples):
    method = pv.VPT(length=3, init="final-cls")
    with pytest.raises(ConfigError, match="starts from the task's images; expected samples"):
        pv.tune(vit, method, 3)
    with pytest.raises(ConfigError, match="length=3 with init=final-cls; expected one prompt per class, 4"):
        pv.tune(vit, method, 4, samples=dataset(samples))
    with pytest.raises(DataError, match="no image of class 1, 2; expected at least one"):
        class_means(vit, dataset((samples[0][:1], samples[1][:1])), 3)
    with pytest.raises(DataError, match="labels from 0 to 2; expected 0 to 1"):
        class_means(vit, dataset(samples), 2)


def test_a_delta_from_class_means_is_loaded_without_samples(make_vit, samples, tmp_path):
    backbone = pv.from_timm(make_vit().float())
    images = samples[0].float()
    model = pv.tune(backbone, pv.VPT(length=3, init="cls-nolastl"), 3, samples=dataset((images, samples[1])))
    loaded = pv.load(model.save(tmp_path), backbone=backbone)
    assert torch.equal(loaded(images), model.eval()(images))
