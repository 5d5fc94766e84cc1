"""A task's folder as it is: its lists with what is wrong in them, and every image file looked at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from promptvit.data.decode import decode, quiet_pillow
from promptvit.data.folder import read_folder
from promptvit.data.lists import (
    CLASSES,
    JOINT_LISTS,
    TEST_LISTS,
    TRAIN_LISTS,
    VAL_LISTS,
    Fault,
    Row,
    find_list,
    has_lists,
    parse_list,
    read_classes,
)
from promptvit.errors import BrokenImageError, DataError
from promptvit.files import digest

LISTS = {"train": TRAIN_LISTS, "val": VAL_LISTS, "test": TEST_LISTS, "train+val": JOINT_LISTS}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image file.

    - `content`, `pixels`: SHA-256 of its bytes and of its size and 8-bit RGB values; empty if it cannot be read.
    - `form`: Pillow's name of the format.
    - `size`: width and height.
    - `quality`: that of a JPEG with the usual tables (1 to 100); 0 for others.
    - `missing`, `fault`: there is no such file; or why it cannot be decoded.
    """

    content: str = ""
    pixels: str = ""
    form: str = ""
    size: tuple[int, int] = (0, 0)
    quality: int = 0
    missing: bool = False
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A task's folder.

    - `rows`: the lines of its lists by split: train, val, test, and `train+val` for VTAB's joint list.
    - `faults`: lines and files that cannot be read.
    - `files`: the list files, by split.
    - `classes`: names in label order, if there are any.
    - `pictures`: by the name in the list.
    """

    folder: Path
    rows: Mapping[str, tuple[Row, ...]]
    faults: tuple[Fault, ...]
    files: Mapping[str, str]
    classes: tuple[str, ...] | None
    pictures: Mapping[str, Picture]


def scan_task(folder: Path, progress: Progress | None = None) -> Scan:
    """Read the lists of `folder`, or its class folders, and look at every image, in threads.

    `progress` gets the number of images done and of all. Raises DataError if there are neither lists nor classes.
    """
    rows, faults, files, classes = _from_lists(folder) if has_lists(folder) else _from_classes(folder)
    names = sorted({row.name for split in rows.values() for row in split})
    return Scan(
        folder=folder,
        rows=MappingProxyType(rows),
        faults=tuple(faults),
        files=MappingProxyType(files),
        classes=classes,
        pictures=MappingProxyType(dict(zip(names, _look_at(folder, names, progress), strict=True))),
    )


def look(path: Path) -> Picture:
    """What is to be known of one image file."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Picture(missing=True)
    except (OSError, ValueError) as error:  # a name with a null byte is none
        return Picture(fault=(getattr(error, "strerror", None) or str(error)).lower())
    try:
        rgb = decode(BytesIO(content))
    except BrokenImageError as error:
        return Picture(content=digest(content), fault=error.reason)
    with Image.open(BytesIO(content)) as image:
        quality = jpeg_quality(image) if isinstance(image, JpegImageFile) else 0
        size, form = image.size, image.format or ""
    pixels = digest(b"%d x %d " % rgb.size + rgb.tobytes())
    return Picture(content=digest(content), pixels=pixels, form=form, size=size, quality=quality)


def jpeg_quality(image: JpegImageFile) -> int:
    """The quality (1 to 100) at which the usual encoders write these tables; 0 for other tables."""
    return _qualities().get(tuple(image.quantization.get(0, ())), 0)


@cache
def _qualities() -> dict[tuple[int, ...], int]:
    found = {}
    for quality in range(1, 101):
        file = BytesIO()
        Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            assert isinstance(image, JpegImageFile)
            found[tuple(image.quantization[0])] = quality
    return found


def _look_at(folder: Path, names: list[str], progress: Progress | None) -> Iterable[Picture]:
    # Pillow and hashlib let go of the interpreter lock, so threads do run side by side.
    with quiet_pillow(), ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for done, picture in enumerate(pool.map(look, (folder / name for name in names)), start=1):
            yield picture
            if progress:
                progress(done, len(names))


_Read = tuple[dict[str, tuple[Row, ...]], list[Fault], dict[str, str], tuple[str, ...] | None]


def _from_lists(folder: Path) -> _Read:
    rows, faults, files = {}, [], {}
    for split, names in LISTS.items():
        path = find_list(folder, names)
        if path is not None:
            found, wrong = parse_list(path)
            rows[split], files[split] = tuple(found), path.name
            faults += wrong
    try:
        classes = read_classes(folder)
    except DataError as error:
        faults.append(Fault(file=CLASSES, line=0, given=str(error), expected="a name for each class"))
        classes = None
    return rows, faults, files, classes


def _from_classes(folder: Path) -> _Read:
    task = read_folder(folder)
    splits = {"train": task.train, "val": task.val, "test": task.test}
    rows = {
        split: tuple(
            Row(file="", line=0, name=str(Path(image).relative_to(folder)), label=int(label))
            for image, label in zip(images.images, images.labels, strict=True)
        )
        for split, images in splits.items()
        if images is not None
    }
    return rows, [], {}, task.classes
