import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from promptvit.data.dataset import ImageDataset
from promptvit.data.task import Split
from promptvit.errors import BrokenImageError, DataError
from promptvit.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(8, 6))
COUNT = 7


@pytest.fixture
def split(tmp_path):
    generator = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{i}.png" for i in range(COUNT))
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (11, 9, 3), dtype=np.uint8)).save(path)
    return Split(images=paths, labels=np.arange(COUNT) % 3)


def break_files(split, *indices):
    for index in indices:
        Path(split.images[index]).write_bytes(b"broken")


def test_cached_and_uncached_are_the_same_items_and_batches(split):
    cached, uncached = ImageDataset(split, PREPROCESSING), ImageDataset(split, PREPROCESSING, cache_bytes=0)
    assert (cached.cached, uncached.cached) == (True, False)
    for dataset in (cached, uncached):
        pixels, labels = dataset.__getitems__([4, 0, 4])
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, 3, 8, 6)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [1, 0, 1]
    for index in range(COUNT):
        (pixels, label), (others, other) = cached[index], uncached[index]
        assert torch.equal(pixels, others)
        assert torch.equal(pixels, cached.__getitems__([index])[0][0])
        assert label == other == index % 3


def test_pixels_in_memory_are_read_like_files(split):
    arrays = np.stack([np.asarray(Image.open(path)) for path in split.images])
    from_memory = Split(images=arrays, labels=split.labels)
    files = ImageDataset(split, PREPROCESSING)
    for budget in (0, 2**20):
        dataset = ImageDataset(from_memory, PREPROCESSING, cache_bytes=budget)
        assert torch.equal(dataset.__getitems__(range(COUNT))[0], files.__getitems__(range(COUNT))[0])


def test_the_budget_is_in_bytes(split):
    size = COUNT * 3 * 8 * 6
    assert ImageDataset(split, PREPROCESSING, cache_bytes=size).cached
    assert not ImageDataset(split, PREPROCESSING, cache_bytes=size - 1).cached


def test_changing_what_was_read_does_not_change_the_cache(split):
    dataset = ImageDataset(split, PREPROCESSING)
    item, batch = dataset[2][0].clone(), dataset.__getitems__([1, 2])[0].clone()
    dataset[2][0].zero_()
    pixels, labels = dataset.__getitems__([1, 2])
    pixels.zero_()
    labels.zero_()
    assert torch.equal(dataset[2][0], item)
    assert torch.equal(dataset.__getitems__([1, 2])[0], batch)
    assert dataset[1][1] == 1


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_broken_files_stop_or_are_skipped(split, cache_bytes):
    whole = ImageDataset(split, PREPROCESSING)
    break_files(split, 2, 5)
    with pytest.raises(BrokenImageError, match=r"2\.png cannot be decoded: not an image"):
        ImageDataset(split, PREPROCESSING, cache_bytes=cache_bytes)
    dataset = ImageDataset(split, PREPROCESSING, broken="skip", cache_bytes=cache_bytes)
    assert [error.path for error in dataset.skipped] == [split.images[2], split.images[5]]
    kept = [0, 1, 3, 4, 6]
    assert len(dataset) == len(kept)
    assert dataset.labels.tolist() == [index % 3 for index in kept]
    assert torch.equal(dataset.__getitems__(range(5))[0], whole.__getitems__(kept)[0])


def test_no_image_left_is_an_error(split):
    break_files(split, *range(COUNT))
    with pytest.raises(DataError, match="all 7 images are broken"):
        ImageDataset(split, PREPROCESSING, broken="skip")
    with pytest.raises(DataError, match="without images"):
        ImageDataset(split.select([]), PREPROCESSING)


def test_progress_counts_every_image(split):
    counts = []
    ImageDataset(split, PREPROCESSING, progress=counts.append)
    assert counts == list(range(1, COUNT + 1))


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_it_pickles(split, cache_bytes):
    dataset = ImageDataset(split, PREPROCESSING, cache_bytes=cache_bytes, progress=lambda done: None)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3][0], dataset[3][0])
