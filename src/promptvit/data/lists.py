"""VTAB list files: a text file per split with a line `path label` per image, and perhaps `classes.txt`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promptvit.data.task import Split, Task, stratified_holdout
from promptvit.errors import DataError

# The first that exists.
TRAIN_LISTS = ("train800.txt", "train.txt")
VAL_LISTS = ("val200.txt", "val.txt")
TEST_LISTS = ("test.txt",)
JOINT_LISTS = ("train800val200.txt",)
"""VTAB's list of train800 and val200 once more, perhaps with copies of their images. It is checked, not read."""
CLASSES = "classes.txt"
LABEL = "an integer below a million"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of a list.

    - `file`, `line`: where it is; lines count from 1. Of an image that is in no list: empty, 0.
    - `name`: the image as written, relative to the list's folder.
    """

    file: str
    line: int
    name: str
    label: int

    @property
    def where(self) -> str:
        """`test.txt:12`, or the image of a task without lists."""
        return f"{self.file}:{self.line}" if self.file else self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A line that cannot be read, or with line 0 a whole file: what it says, and what it should."""

    file: str
    line: int
    given: str
    expected: str

    @property
    def where(self) -> str:
        """`test.txt:12`, or `test.txt`."""
        return f"{self.file}:{self.line}" if self.line else self.file


def has_lists(root: Path) -> bool:
    """Whether `root` holds list files; a training list is enough."""
    return find_list(root, TRAIN_LISTS) is not None


def read_lists(root: Path | str, *, validation_fraction: float = 0.2, seed: int = 0) -> Task:
    """The task in a folder of list files; image paths are relative to `root` and may contain spaces.

    Class names come from `classes.txt`, a line each in label order; without it they are the numbers up to the
    highest training label. Without a val list, `validation_fraction` of the training images is held out.
    Raises DataError, with file and line, on a malformed line, a label out of range or a missing image.
    """
    root = Path(root)
    train_list, val_list, test_list = (find_list(root, names) for names in (TRAIN_LISTS, VAL_LISTS, TEST_LISTS))
    if train_list is None:
        raise DataError(f"no training list in {root}", expected=" or ".join(TRAIN_LISTS))
    train_rows = _read_rows(train_list)
    classes = read_classes(root)
    known = CLASSES
    if classes is None:
        known = f"the labels of {train_list.name}"
        classes = tuple(str(label) for label in range(max(row.label for row in train_rows) + 1))
    train = _to_split(root, train_rows, classes, known)
    test = _to_split(root, _read_rows(test_list), classes, known) if test_list else None
    if val_list:
        val = _to_split(root, _read_rows(val_list), classes, known)
    else:
        train, val = stratified_holdout(train, validation_fraction, seed)
    return Task(name=root.resolve().name, classes=classes, train=train, val=val, test=test)


def find_list(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the lists that is in `root`."""
    return next((root / name for name in names if (root / name).is_file()), None)


def parse_list(path: Path) -> tuple[list[Row], list[Fault]]:
    """The images of one list file and the lines that cannot be read; blank lines do not count."""
    try:
        lines = _read_lines(path)
    except DataError as error:
        return [], [Fault(file=path.name, line=0, given=str(error), expected="")]
    rows: list[Row] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        found = _parse_line(line, path.name, number) if line.strip() else None
        if isinstance(found, Row):
            rows.append(found)
        elif found:
            faults.append(found)
    if not rows and not faults:
        given = f"{path} lists no images"
        faults.append(Fault(file=path.name, line=0, given=given, expected="a line 'path label' for each image"))
    return rows, faults


def read_classes(root: Path) -> tuple[str, ...] | None:
    """Class names in label order; None without `classes.txt`, DataError if a name is missing."""
    path = root / CLASSES
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in _read_lines(path))
    if "" in names:
        raise DataError("an empty class name", expected="a name on each line", where=f"{path}:{names.index('') + 1}")
    return names


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().split("\n")  # -sig: some editors begin with a mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}", fix="Save it as UTF-8") from None


def _read_rows(path: Path) -> list[Row]:
    """The images of one list file; raises DataError at the first line that cannot be read."""
    rows, faults = parse_list(path)
    if faults:
        first = faults[0]
        raise DataError(first.given, expected=first.expected, where=f"{path}:{first.line}" if first.line else "")
    return rows


def _parse_line(line: str, file: str, number: int) -> Row | Fault:
    parts = line.rsplit(maxsplit=1)  # the label is after the last space: paths may hold spaces themselves
    if len(parts) != 2:
        return Fault(file=file, line=number, given=f"line {line.strip()!r}", expected="'path label'")
    name, label = parts
    if not re.fullmatch(r"-?[0-9]{1,6}", label):  # without classes.txt there are as many classes as it says
        return Fault(file=file, line=number, given=f"label {label[:20]!r} of {name}", expected=LABEL)
    return Row(file=file, line=number, name=name, label=int(label))


def _to_split(root: Path, rows: list[Row], classes: tuple[str, ...], known: str) -> Split:
    images = tuple(root / row.name for row in rows)
    for row, image in zip(rows, images, strict=True):
        if not 0 <= row.label < len(classes):
            raise DataError(
                f"label {row.label} of {image.name}",
                expected=f"0 to {len(classes) - 1}, from {known}",
                where=f"{root / row.where}",
                fix="Mend the label, or list all class names in classes.txt, a line each",
            )
        if not image.is_file():
            raise DataError(
                f"no image {image}", where=f"{root / row.where}", fix="Paths are relative to the list file's folder"
            )
    return Split(images=images, labels=np.array([row.label for row in rows], dtype=np.int64))
