"""Small tasks from the sets that torchvision reads: our own seeded 800 and 200 images, not VTAB's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from promptvit.data.catalog import find_task
from promptvit.data.collection import data_home
from promptvit.data.export import Example, export_task
from promptvit.errors import DataError
from promptvit.registry import unknown

TRAIN, VAL = 800, 200


@dataclass(frozen=True, kw_only=True)
class RawSet:
    """How a set is read.

    - `reader`: its class in `torchvision.datasets`.
    - `train`, `test`: the class's arguments for either split; without `test`, test images come from the same pool.
    - `classes`: the attribute with the names of its classes, or how many there are.
    """

    reader: str
    train: Mapping[str, Any]
    test: Mapping[str, Any] | None
    classes: str | int


_TRAIN, _TEST = {"split": "train"}, {"split": "test"}
SETS = {
    "caltech101": RawSet(reader="Caltech101", train={}, test=None, classes="categories"),
    "cifar10": RawSet(reader="CIFAR10", train={"train": True}, test={"train": False}, classes="classes"),
    "cifar100": RawSet(reader="CIFAR100", train={"train": True}, test={"train": False}, classes="classes"),
    "dtd": RawSet(reader="DTD", train=_TRAIN, test=_TEST, classes="classes"),
    "eurosat": RawSet(reader="EuroSAT", train={}, test=None, classes="classes"),
    "fgvc_aircraft": RawSet(reader="FGVCAircraft", train={"split": "trainval"}, test=_TEST, classes="classes"),
    "flowers102": RawSet(reader="Flowers102", train=_TRAIN, test=_TEST, classes=102),
    "food101": RawSet(reader="Food101", train=_TRAIN, test=_TEST, classes="classes"),
    "gtsrb": RawSet(reader="GTSRB", train=_TRAIN, test=_TEST, classes=43),
    "oxford_iiit_pet": RawSet(reader="OxfordIIITPet", train={"split": "trainval"}, test=_TEST, classes="classes"),
    "patch_camelyon": RawSet(reader="PCAM", train=_TRAIN, test=_TEST, classes=2),
    "sun397": RawSet(reader="SUN397", train={}, test=None, classes="classes"),
    "svhn": RawSet(reader="SVHN", train=_TRAIN, test=_TEST, classes=10),
}
"""By the names that `prepare raw` takes."""


def prepare_raw(
    name: str, root: Path, out: Path | None = None, *, seed: int = 0, test: int = 2000, download: bool = False
) -> Path:
    """The folder of a task of 800 training, 200 validation and at most `test` test images, drawn by `seed`.

    `root` is what torchvision calls so; nothing is loaded unless `download`. Images become PNG files, so that no pixel
    changes. A folder that is there is left as it is. Raises DataError if the set is not in `root` or is too small.
    """
    if name not in SETS:
        raise unknown("set", name, SETS, f"Known: {', '.join(SETS)}")
    assert test >= 1, test
    kind = SETS[name]
    folder = out or data_home() / "raw" / f"{name}-seeded{seed}"
    if folder.exists():
        return folder
    pool = _open(kind, kind.train, root, download)
    order = np.random.default_rng(seed).permutation(len(pool)).tolist()
    others = pool if kind.test is None else _open(kind, kind.test, root, download)
    rest = order[TRAIN + VAL :] if kind.test is None else np.random.default_rng(seed).permutation(len(others)).tolist()
    if len(order) < TRAIN + VAL or not rest:
        raise DataError(f"{len(order)} images of {name}", expected=f"more than {TRAIN + VAL}", where=str(root))
    info = find_task(name, "vtab-1k")
    folder.parent.mkdir(parents=True, exist_ok=True)
    export_task(
        folder,
        {
            "train": _examples(pool, order[:TRAIN]),
            "val": _examples(pool, order[TRAIN : TRAIN + VAL]),
            "test": _examples(others, rest[:test]),
        },
        classes=_classes(kind, pool),
        about={
            "group": info.group if info else "",
            "provenance": f"seeded subset (seed {seed}) of {kind.reader} in torchvision, not VTAB's",
        },
    )
    return folder


def _open(kind: RawSet, arguments: Mapping[str, Any], root: Path, download: bool) -> Any:
    from torchvision import datasets  # takes seconds: only when it is needed

    try:
        return getattr(datasets, kind.reader)(root, download=download, **arguments)
    except Exception as error:  # not found, damaged, no network, a missing package: all kinds
        reason = " ".join(str(error).split()).removesuffix(".")
        raise DataError(
            f"{kind.reader} cannot be read in {root}: {reason}",
            expected="the files as torchvision.datasets has them",
            fix="Load it with --download, or put its files there",
        ) from error


def _classes(kind: RawSet, pool: Any) -> tuple[str, ...]:
    if isinstance(kind.classes, int):
        return tuple(str(label) for label in range(kind.classes))
    return tuple(" ".join(name) if isinstance(name, tuple | list) else name for name in getattr(pool, kind.classes))


def _examples(images: Any, indices: list[int]) -> Iterator[Example]:
    for index in indices:
        image, label = images[index]
        file = BytesIO()
        image.save(file, "PNG")
        yield Example(file.getvalue(), "png", int(label))
