import numpy as np
import pytest
import torch

from promptvit.data.dataset import FeatureDataset, ImageDataset
from promptvit.data.loader import EpochSampler, FeatureLoader, make_loader
from promptvit.data.task import Split
from promptvit.preprocessing import Preprocessing


def dataset(cache_bytes=2**20, count=10):
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    split = Split(images=images, labels=np.arange(count))
    return ImageDataset(split, Preprocessing(size=(4, 4)), cache_bytes=cache_bytes)


def order(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(20, seed=3, shuffle=True)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(20))
    later = EpochSampler(20, seed=3, shuffle=True)
    later.set_epoch(1)
    assert list(later) == orders[1] != list(EpochSampler(20, seed=4, shuffle=True))
    assert list(EpochSampler(3, seed=3, shuffle=False)) == [0, 1, 2]


@pytest.mark.parametrize(("cache_bytes", "workers"), [(2**20, 2), (0, 0), (0, 2)])
def test_batches_hold_every_image_once_and_the_last_one_is_smaller(cache_bytes, workers):
    data = dataset(cache_bytes)
    loader = make_loader(data, batch_size=4, shuffle=True, seed=0, workers=workers)
    assert loader.num_workers == (0 if cache_bytes else workers)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [4, 4, 2] == [len(pixels) for pixels, _ in batches]
    assert sorted(order(batches)) == list(range(10))
    for pixels, labels in batches:
        assert torch.equal(pixels, data.__getitems__(labels.tolist())[0])  # labels are indices here


def test_reading_leaves_the_global_random_state_alone():
    loader = make_loader(dataset(), batch_size=4, shuffle=True, seed=0, workers=0)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_accelerate_prepares_it_and_passes_the_epoch_on():
    from accelerate import Accelerator

    plain = make_loader(dataset(), batch_size=4, shuffle=True, seed=0, workers=0)
    prepared = Accelerator(cpu=True).prepare(make_loader(dataset(), batch_size=4, shuffle=True, seed=0, workers=0))
    orders = []
    for epoch in (0, 5, 0):
        plain.sampler.set_epoch(epoch)
        prepared.set_epoch(epoch)
        orders.append(order(prepared))
        assert orders[-1] == order(plain)
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize(("shuffle", "drop_last"), [(False, False), (True, False), (True, True)])
def test_batches_of_features_are_those_of_a_loader(shuffle, drop_last):
    features = FeatureDataset(torch.randn(11, 3), torch.arange(11))
    settings = {"batch_size": 4, "shuffle": shuffle, "seed": 3, "drop_last": drop_last}
    plain = make_loader(features, **settings, workers=0)
    ours = FeatureLoader(features, **settings, device=torch.device("cpu"))
    for epoch in (0, 5):
        plain.sampler.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert len(ours) == len(plain)
        for mine, theirs in zip(ours, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
