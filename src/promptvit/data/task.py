"""A task: named classes, and images with labels in a training, a validation and perhaps a test split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptvit.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images with labels; raises DataError if the two do not belong together.

    - `images`: n paths, or uint8 pixels [n, height, width, 3].
    - `labels`: int64 [n], indices into the task's classes.
    """

    images: tuple[Path, ...] | np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray):
            _check_array("images", self.images, np.uint8, "[n, height, width, 3]", self.images.shape[3:] == (3,))
        _check_array("labels", self.labels, np.int64, "[n]", self.labels.ndim == 1)
        if len(self.images) != len(self.labels):
            raise DataError(
                f"{len(self.images)} images with {len(self.labels)} labels",
                expected="one label for each image",
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The images at `indices`, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        if isinstance(self.images, np.ndarray):
            return Split(images=self.images[rows], labels=self.labels[rows])
        return Split(images=tuple(self.images[row] for row in rows), labels=self.labels[rows])

    def join(self, other: Split) -> Split:
        """These images, then those of `other`; DataError unless both are paths or pixels of one size."""
        mine, others = self.images, other.images
        if _kind(mine) != _kind(others):
            raise DataError(f"{_kind(mine)} joined with {_kind(others)}", expected="two of a kind")
        images = (*mine, *others) if isinstance(mine, tuple) else np.concatenate([mine, np.asarray(others)])
        return Split(images=images, labels=np.concatenate([self.labels, other.labels]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A classification task; raises DataError on a single class, equal names or labels out of range."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise DataError(f"{len(self.classes)} class", expected="at least 2 classes", where=f"task {self.name}")
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise DataError(f"class names given twice: {', '.join(twice)}", where=f"task {self.name}")
        odd = [name for name in self.classes if not name.isprintable()]  # bytes that are no UTF-8 are not printable
        if odd:
            raise DataError(f"class names {odd!a}", expected="printable text", where="task", fix="Rename the folders")
        _check_labels(self.train, len(self.classes), f"the train split of task {self.name}")
        _check_labels(self.val, len(self.classes), f"the val split of task {self.name}")
        if self.test is not None:
            _check_labels(self.test, len(self.classes), f"the test split of task {self.name}")


def stratified_holdout(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """The split in two, training then validation, with the classes in proportion; the same for the same seed.

    Every class keeps a training image, and one with a single image is all training. About `fraction` of the
    images are validation, but never fewer than there are classes to draw from, so that small sets work too.
    Both parts keep the order of `split`. Raises DataError if no class has two images.
    """
    from sklearn.model_selection import train_test_split  # takes a second: only when it is needed

    assert 0 < fraction < 1, fraction
    names, counts = np.unique(split.labels, return_counts=True)
    shared = np.flatnonzero(np.isin(split.labels, names[counts > 1]))
    if not len(shared):
        raise DataError(
            f"{len(split)} training images with no two of one class",
            expected="a class with 2 images or more, to hold one out for validation",
            fix="Add images, or a validation split of your own",
        )
    classes = np.count_nonzero(counts > 1)
    size = int(np.clip(round(fraction * len(shared)), classes, len(shared) - classes))
    _, held = train_test_split(shared, test_size=size, stratify=split.labels[shared], random_state=seed)
    is_val = np.zeros(len(split), dtype=bool)
    is_val[held] = True
    gone = np.setdiff1d(split.labels, split.labels[~is_val])  # proportions can round a small class to none
    for label in gone:
        is_val[np.argmax(split.labels == label)] = False
    return split.select(np.flatnonzero(~is_val)), split.select(np.flatnonzero(is_val))


def stratified_share(split: Split, share: float, seed: int) -> Split:
    """About `share` of the images of every class, at least one, in the order of `split`; the same for the same seed.

    A smaller share lies inside a larger one. Of files, it does not matter in which order they are listed, nor where
    their folder is.
    """
    assert 0 < share <= 1, share
    return _of_each_class(split, lambda images: max(1, round(share * images)), seed)


def few_shots(split: Split, shots: int, seed: int) -> Split:
    """The first `shots` images of every class in the order of `stratified_share`, or all that there are."""
    return _of_each_class(split, lambda images: shots, seed)


def _of_each_class(split: Split, wanted: Callable[[int], int], seed: int) -> Split:
    """As many images of each class as `wanted` says of how many there are, drawn once per class and seed."""
    kept = []
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label).tolist()
        if isinstance(split.images, tuple):
            rows.sort(key=split.images.__getitem__)
        order = np.random.default_rng((seed, int(label))).permutation(len(rows))
        kept += [rows[place] for place in order[: wanted(len(rows))]]
    return split.select(sorted(kept))


def _check_array(name: str, array: np.ndarray, dtype: type, shape: str, has_shape: bool) -> None:
    if array.dtype != dtype or not has_shape:
        raise DataError(
            f"{name} of {array.dtype} {list(array.shape)}",
            expected=f"{np.dtype(dtype)} {shape}",
            where="Split",
        )


def _check_labels(split: Split, classes: int, where: str) -> None:
    wrong = split.labels[(split.labels < 0) | (split.labels >= classes)]
    if len(wrong):
        raise DataError(f"label {wrong[0]}", expected=f"0 to {classes - 1}", where=where)


def _kind(images: tuple[Path, ...] | np.ndarray) -> str:
    """Paths, or pixels with their size: what two splits must share to be joined."""
    return f"pixels {list(images.shape[1:])}" if isinstance(images, np.ndarray) else "paths"
