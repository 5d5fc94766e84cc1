"""VTAB list files: a text file per split with a line `path label` per image, and perhaps `classes.txt`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from promptvit.data.task import Split, Task, stratified_holdout
from promptvit.errors import DataError

# The first that exists. VTAB's train800val200.txt is not read: it lists train800 and val200 once more.
TRAIN_LISTS = ("train800.txt", "train.txt")
VAL_LISTS = ("val200.txt", "val.txt")
TEST_LISTS = ("test.txt",)

_Row = tuple[str, Path, int]  # where the line is, the image, its label


def has_lists(root: Path) -> bool:
    """Whether `root` holds list files; a training list is enough."""
    return _find(root, TRAIN_LISTS) is not None


def read_lists(root: Path | str, *, validation_fraction: float = 0.2, seed: int = 0) -> Task:
    """The task in a folder of list files; image paths are relative to `root` and may contain spaces.

    Class names come from `classes.txt`, a line each in label order; without it they are the numbers up to the
    highest training label. Without a val list, `validation_fraction` of the training images is held out.
    Raises DataError, with file and line, on a malformed line, a label out of range or a missing image.
    """
    root = Path(root)
    train_list, val_list, test_list = (_find(root, names) for names in (TRAIN_LISTS, VAL_LISTS, TEST_LISTS))
    if train_list is None:
        raise DataError(f"no training list in {root}", expected=" or ".join(TRAIN_LISTS))
    train_rows = _read_rows(train_list)
    classes = _read_classes(root / "classes.txt")
    known = "classes.txt"
    if classes is None:
        known = f"the labels of {train_list.name}"
        classes = tuple(str(label) for label in range(max(label for _, _, label in train_rows) + 1))
    train = _to_split(train_rows, classes, known)
    test = _to_split(_read_rows(test_list), classes, known) if test_list else None
    if val_list:
        val = _to_split(_read_rows(val_list), classes, known)
    else:
        train, val = stratified_holdout(train, validation_fraction, seed)
    return Task(name=root.resolve().name, classes=classes, train=train, val=val, test=test)


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().split("\n")  # -sig: some editors begin with a mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}", fix="Save it as UTF-8") from None


def _read_rows(path: Path) -> list[_Row]:
    """The images of one list file; blank lines do not count."""
    lines = enumerate(_read_lines(path), start=1)
    rows = [_read_row(line, path, f"{path}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path} lists no images", expected="a line 'path label' for each image")
    return rows


def _read_row(line: str, path: Path, where: str) -> _Row:
    parts = line.rsplit(maxsplit=1)  # the label is after the last space: paths may hold spaces themselves
    if len(parts) != 2:
        raise DataError(f"line {line.strip()!r}", expected="'path label'", where=where)
    if not re.fullmatch(r"-?[0-9]+", parts[1]):
        raise DataError(f"label {parts[1]!r} of {parts[0]}", expected="an integer", where=where)
    return where, path.parent / parts[0], int(parts[1])


def _read_classes(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in _read_lines(path))
    if "" in names:
        raise DataError("an empty class name", expected="a name on each line", where=f"{path}:{names.index('') + 1}")
    return names


def _to_split(rows: list[_Row], classes: tuple[str, ...], known: str) -> Split:
    for where, image, label in rows:
        if not 0 <= label < len(classes):
            raise DataError(
                f"label {label} of {image.name}",
                expected=f"0 to {len(classes) - 1}, from {known}",
                where=where,
                fix="Mend the label, or list all class names in classes.txt, a line each",
            )
        if not image.is_file():
            raise DataError(f"no image {image}", where=where, fix="Paths are relative to the list file's folder")
    labels = np.array([label for _, _, label in rows], dtype=np.int64)
    return Split(images=tuple(image for _, image, _ in rows), labels=labels)
