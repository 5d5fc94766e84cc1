"""Image folders: `root/<class>/<image>`, or the same below `train`, `val` and `test`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from promptvit.data.task import Split, Task, stratified_holdout
from promptvit.errors import DataError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LAYOUTS = "Arrange the images as CLASS/IMAGE, or as train/CLASS/IMAGE with val/ and test/ beside train/"


def read_folder(root: Path | str, *, validation_fraction: float = 0.2, seed: int = 0) -> Task:
    """The task in an image folder; classes are the folder names of the training images, sorted.

    Images may lie deeper inside a class folder; hidden files and other kinds of files are not seen. Without a
    val folder (or `valid`, `validation`), `validation_fraction` of the training images is held out.
    Raises DataError if there is no folder, no image, a class without training images, or a single class.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no folder {root}", expected="a folder with one folder of images per class")
    folders = _split_folders(root)
    classes = tuple(folder.name for folder in _subfolders(folders["train"]))
    if len(classes) < 2:
        raise DataError(
            f"{len(classes)} class folders", expected="at least 2", where=str(folders["train"]), fix=LAYOUTS
        )
    splits = {name: _read_split(folder, classes) for name, folder in folders.items()}
    _refuse_empty_classes(splits["train"], classes, folders["train"])
    train, val = splits["train"], splits.get("val")
    if val is None:
        train, val = stratified_holdout(train, validation_fraction, seed)
    return Task(name=root.resolve().name, classes=classes, train=train, val=val, test=splits.get("test"))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split there is; `root` itself is `train` if it holds the classes."""
    present = {folder.name: folder for folder in _subfolders(root)}
    aliases = {alias for names in SPLITS.values() for alias in names}
    # A class may be called "train" too (vehicles): then it holds images, and other classes lie beside it.
    has_splits = "train" in present and bool(_subfolders(present["train"]))
    if not present or not (has_splits or present.keys() <= aliases):
        return {"train": root}
    found = {split: [present[name] for name in names if name in present] for split, names in SPLITS.items()}
    if not found["train"]:
        raise DataError(f"no train folder beside {', '.join(sorted(present))}", where=str(root), fix=LAYOUTS)
    if len(found["val"]) > 1:
        names = " and ".join(folder.name for folder in found["val"])
        raise DataError(f"validation folders {names}", expected="only one of them", where=str(root))
    return {split: folders[0] for split, folders in found.items() if folders}


def _read_split(folder: Path, classes: tuple[str, ...]) -> Split:
    """All images below `folder`, class by class; raises DataError on an unknown class or no images."""
    paths: list[Path] = []
    labels: list[int] = []
    for class_folder in _subfolders(folder):
        images = image_paths(class_folder)
        if not images:
            continue
        if class_folder.name not in classes:
            raise DataError(
                f"class {class_folder.name!r} has no training images",
                expected=f"one of the {len(classes)} classes in train",
                where=str(folder),
                fix="Add training images of it, or remove the folder",
            )
        paths += images
        labels += [classes.index(class_folder.name)] * len(images)
    if not paths:
        raise DataError("no images", expected=" ".join(EXTENSIONS), where=str(folder), fix=LAYOUTS)
    return Split(images=tuple(paths), labels=np.array(labels, dtype=np.int64))


def _refuse_empty_classes(train: Split, classes: tuple[str, ...], folder: Path) -> None:
    empty = [classes[label] for label in np.setdiff1d(np.arange(len(classes)), train.labels)]
    if empty:
        raise DataError(
            f"class folders without images: {', '.join(empty)}",
            expected="at least one image in each",
            where=str(folder),
            fix="Add images, or remove the folder",
        )


def _subfolders(folder: Path) -> list[Path]:
    """The visible folders directly in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_paths(folder: Path) -> list[Path]:
    """The visible image files in `folder` and below, in one order on every file system."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in EXTENSIONS)
