"""The five fine-grained sets: their splits from JSON files, or made from what the authors of a set publish."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptvit.data.catalog import TaskInfo, find_task
from promptvit.data.task import Split, stratified_holdout
from promptvit.errors import DataError

SEED = 0  # part of our splits' definition: another one is another benchmark
_Rows = Mapping[str, tuple[tuple[str, Any], ...]]  # by split: the image's path below the root, the id of its class


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which image is in which split.

    - `root`: the folder that image paths are relative to.
    - `rows`: by split, paths and labels from 0.
    - `classes`: names in label order, where the set has them.
    - `origin`: where the splits come from, for the manifest.
    """

    root: Path
    rows: Mapping[str, tuple[tuple[str, int], ...]]
    classes: tuple[str, ...] | None
    origin: str


def read_splits(folder: Path, info: TaskInfo, splits: Path | None = None) -> Splits:
    """The splits of the set in `folder`; JSON files in `splits` or `folder` win over the set's own lists.

    JSON files are `train.json`, `val.json` and `test.json`, each {path: class id}. Labels are the ids in order. Where
    nobody gives validation images, a tenth of the training images is held out, class by class, always the same.
    Raises DataError if there are neither JSON files nor the set's own lists.
    """
    found = _places(splits, info) if splits else _below(folder)
    place = next((place for place in found if (place / "train.json").is_file()), None)
    if place:
        rows, names, origin = _from_json(place), {}, "JSON splits"
    else:
        rows, names = _from_authors(folder, info)
        origin = "the set's own train and test images"
    ids = sorted({key for split in rows.values() for _, key in split}, key=_order)
    label_of = {key: label for label, key in enumerate(ids)}
    labelled = {split: tuple((path, label_of[key]) for path, key in pairs) for split, pairs in rows.items()}
    if "val" not in labelled:
        labelled["train"], labelled["val"] = _hold_out(labelled["train"], info)
        origin += f"; validation images are ours: a seeded tenth of train (seed {SEED})"
    classes = tuple(str(names.get(key, key)) for key in ids)
    first = next(iter(labelled["train"]), ("", 0))[0]
    return Splits(
        root=_image_root(folder, info, first),
        rows={split: labelled[split] for split in ("train", "val", "test")},
        classes=classes if len(set(classes)) == len(classes) else None,
        origin=origin,
    )


def _order(key: Any) -> tuple[int, Any]:
    """Ids that are numbers go by value, even where they are written as text."""
    text = str(key)
    return (0, int(text)) if text.isdecimal() else (1, text)


def _below(folder: Path) -> list[Path]:
    """`folder` and the folders in it."""
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))]


def _places(splits: Path, info: TaskInfo) -> list[Path]:
    """Where split files of this set may be: a folder with its name, or `splits` itself."""
    named = [path for path in _below(splits) if find_task(path.name, "fgvc") is info]
    return [place for path in named for place in _below(path)] or [splits]


def _from_json(place: Path) -> _Rows:
    rows = {}
    for split in ("train", "val", "test"):
        path = place / f"{split}.json"
        if split == "val" and not path.is_file():
            continue
        try:
            pairs = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}", expected="a JSON object {path: class id}") from None
        if not isinstance(pairs, dict) or not all(isinstance(key, int | str) for key in pairs.values()):
            raise DataError(f"{path} holds something else", expected="a JSON object {path: class id}")
        rows[split] = tuple(pairs.items())
    return rows


def _hold_out(rows: tuple[tuple[str, int], ...], info: TaskInfo) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Training and validation rows, as many as the paper has where the set is whole."""
    labels = np.array([label for _, label in rows], dtype=np.int64)
    images = tuple(Path(path) for path, _ in rows)
    fraction = info.val / (info.train + info.val)
    parts = stratified_holdout(Split(images=images, labels=labels), fraction, SEED)
    return tuple(
        tuple((path.as_posix(), int(label)) for path, label in zip(part.images, part.labels, strict=True))
        for part in parts
    )


def _image_root(folder: Path, info: TaskInfo, first: str) -> Path:
    places = [place / inner for place in _below(folder) for inner in (info.images, ".", "images", "Images", "jpg")]
    return next((place for place in places if (place / first).is_file()), folder / info.images)


def _from_authors(folder: Path, info: TaskInfo) -> tuple[_Rows, Mapping[Any, str]]:
    """Rows and class names from the lists that a set is published with."""
    marker, read = _AUTHORS[info.name]
    place = next((place for place in _below(folder) if (place / marker).is_file()), None)
    if place is None:
        raise DataError(
            f"no splits of {info.name}",
            expected=f"train.json, test.json and perhaps val.json, or the set's own {marker}",
            where=str(folder),
            fix="Put them there, or say where the JSON files are: --splits FOLDER",
        )
    try:
        return read(place)
    except Exception as error:  # damaged files make SciPy's reader raise nearly anything
        raise DataError(f"{place / marker} or a file beside it cannot be read: {error}") from error


def _birds(place: Path) -> tuple[_Rows, Mapping[Any, str]]:
    """CUB-200-2011 and NABirds: text files of `image value`."""
    paths, classes, in_train = (_table(place / f"{name}.txt") for name in _BIRD_FILES)
    rows = {
        split: tuple((path, int(classes[image])) for image, path in paths.items() if in_train[image] == flag)
        for split, flag in (("train", "1"), ("test", "0"))
    }
    names = _table(place / "classes.txt") if (place / "classes.txt").is_file() else {}
    return rows, {int(key): name for key, name in names.items()}


_BIRD_FILES = ("images", "image_class_labels", "train_test_split")


def _table(path: Path) -> dict[str, str]:
    """The first word of each line, and the rest."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(" ") for line in lines if line.strip())}


def _flowers(place: Path) -> tuple[_Rows, Mapping[Any, str]]:
    labels, parts = _matlab(place / "imagelabels.mat")["labels"], _matlab(place / "setid.mat")
    names = {"train": "trnid", "val": "valid", "test": "tstid"}
    return {
        split: tuple((f"jpg/image_{number:05d}.jpg", int(labels[number - 1])) for number in np.atleast_1d(parts[name]))
        for split, name in names.items()
    }, {}


def _dogs(place: Path) -> tuple[_Rows, Mapping[Any, str]]:
    rows = {}
    for split in ("train", "test"):
        lists = _matlab(place / f"{split}_list.mat")
        pairs = zip(np.atleast_1d(lists["file_list"]), np.atleast_1d(lists["labels"]), strict=True)
        rows[split] = tuple((str(path), int(label)) for path, label in pairs)
    return rows, {label: path.partition("/")[0] for path, label in rows["train"]}


def _cars(place: Path) -> tuple[_Rows, Mapping[Any, str]]:
    content = _matlab(place / "cars_annos.mat")
    cars = np.atleast_1d(content["annotations"])
    rows = {
        split: tuple((str(car["relative_im_path"]), int(car["class"])) for car in cars if int(car["test"]) == flag)
        for split, flag in (("train", 0), ("test", 1))
    }
    return rows, {number: str(name) for number, name in enumerate(content["class_names"], start=1)}


def _matlab(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat  # only these sets need it

    return loadmat(path, squeeze_me=True)


_AUTHORS: dict[str, tuple[str, Callable[[Path], tuple[_Rows, Mapping[Any, str]]]]] = {
    "cub": ("images.txt", _birds),
    "nabirds": ("images.txt", _birds),
    "oxford_flowers": ("setid.mat", _flowers),
    "stanford_dogs": ("train_list.mat", _dogs),
    "stanford_cars": ("cars_annos.mat", _cars),
}
