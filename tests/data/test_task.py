from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptvit.data.task import Split, Task, stratified_holdout, stratified_share
from promptvit.errors import DataError


def paths(labels):
    return Split(images=tuple(Path(f"{i}.png") for i in range(len(labels))), labels=np.array(labels, dtype=np.int64))


def pixels(labels, size=2):
    labels = np.array(labels, dtype=np.int64)
    return Split(images=np.zeros((len(labels), size, size, 3), dtype=np.uint8), labels=labels)


def test_select_and_join_keep_images_with_their_labels():
    joined = paths([0, 1, 2]).select([2, 0]).join(paths([5]))
    assert joined.images == (Path("2.png"), Path("0.png"), Path("0.png"))
    assert joined.labels.tolist() == [2, 0, 5]
    assert len(pixels([0, 1]).join(pixels([1])).select([2, 2])) == 2


@pytest.mark.parametrize("other", [pixels([0]), pixels([0], size=3)])
def test_join_refuses_another_kind_of_images(other):
    with pytest.raises(DataError, match="joined with pixels"):
        (pixels([0]) if other.images.shape[1] == 3 else paths([0])).join(other)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((Path("a"),), np.array([0, 1]), "1 images with 2 labels"),
        ((Path("a"),), np.array([0.0]), "labels of float64"),
        ((Path("a"),), np.array([[0]]), r"labels of int64 \[1, 1\]"),
        (np.zeros((1, 2, 2, 3)), np.array([0]), "images of float64"),
        (np.zeros((1, 2, 2), np.uint8), np.array([0]), "expected uint8"),
    ],
)
def test_a_split_that_does_not_fit_together_is_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        Split(images=images, labels=labels)


@pytest.mark.parametrize(
    ("classes", "test", "message"),
    [
        (("a",), None, "1 class; expected at least 2"),
        (("a", "b", "a"), None, "given twice: a"),
        (("a", "b"), paths([0, 2]), "label 2; expected 0 to 1 .in the test split of task t"),
        (("a", "b"), paths([-1]), "label -1"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(classes, test, message):
    with pytest.raises(DataError, match=message):
        Task(name="t", classes=classes, train=paths([0]), val=paths([0]), test=test)


labels = st.lists(st.integers(0, 5), min_size=2, max_size=60).filter(lambda given: len(set(given)) < len(given))


@settings(deadline=None, max_examples=60)
@given(labels, st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_holdout_divides_the_split_and_leaves_every_class_in_training(labels, fraction, seed):
    split = paths(labels)
    train, val = stratified_holdout(split, fraction, seed)
    assert sorted(train.images + val.images) == sorted(split.images)
    assert set(train.labels.tolist()) == set(labels)
    again, _ = stratified_holdout(split, fraction, seed)
    assert again.images == train.images


def test_holdout_keeps_proportions_and_order_and_depends_on_the_seed():
    split = paths([0] * 80 + [1] * 20)
    train, val = stratified_holdout(split, 0.2, 0)
    assert np.bincount(val.labels).tolist() == [16, 4]
    assert np.all(np.diff([int(path.stem) for path in train.images]) > 0)
    assert stratified_holdout(split, 0.2, 1)[1].images != val.images


def test_holdout_keeps_single_images_in_training():
    train, val = stratified_holdout(paths([0, 0, 0, 1]), 0.5, 0)
    assert 1 in train.labels
    assert 1 not in val.labels


def test_a_small_class_is_not_held_out_whole():
    train, val = stratified_holdout(paths([0] * 20 + [1] * 2), 0.9, 0)  # in proportion, training gets none of 1
    assert np.bincount(train.labels).tolist() == [2, 1]
    assert np.bincount(val.labels).tolist() == [18, 1]


def test_holdout_says_when_there_is_nothing_to_hold_out():
    with pytest.raises(DataError, match="no two of one class"):
        stratified_holdout(paths([0, 1, 2]), 0.2, 0)


@settings(deadline=None, max_examples=60)
@given(labels, st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)), st.integers(0, 2**32 - 1))
def test_a_smaller_share_lies_inside_a_larger_one(labels, shares, seed):
    split = paths(labels)
    small, large = (stratified_share(split, share, seed) for share in sorted(shares))
    assert set(small.images) <= set(large.images)
    for label, count in zip(*np.unique(split.labels, return_counts=True), strict=True):
        assert np.count_nonzero(small.labels == label) == max(1, round(min(shares) * count))


def test_a_share_is_the_same_in_another_order_and_another_folder():
    split = paths([0] * 30 + [1] * 10)
    share = stratified_share(split, 0.3, 0)
    assert np.bincount(share.labels).tolist() == [9, 3]
    assert share.images == tuple(image for image in split.images if image in set(share.images))  # in its order
    turned = stratified_share(split.select(range(39, -1, -1)), 0.3, 0)
    assert set(turned.images) == set(share.images)
    moved = Split(images=tuple(Path("elsewhere") / image for image in split.images), labels=split.labels)
    assert stratified_share(moved, 0.3, 0).images == tuple(Path("elsewhere") / image for image in share.images)
    assert stratified_share(split, 0.3, 1).images != share.images
    assert stratified_share(split, 1.0, 0).images == split.images


def test_a_share_of_pixels_keeps_images_with_their_labels():
    split = pixels([0, 1] * 10)
    split.images[:] = np.arange(20, dtype=np.uint8)[:, None, None, None]
    share = stratified_share(split, 0.2, 0)
    assert share.labels.tolist() == (share.images[:, 0, 0, 0] % 2).tolist()
    assert len(share) == 4


def test_class_names_that_are_no_text_are_refused():
    with pytest.raises(DataError, match=r"udce9.*expected printable text"):
        Task(name="menu", classes=("tea", "caf\udce9"), train=paths([0, 1]), val=paths([0, 1]), test=None)
