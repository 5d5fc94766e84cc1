"""Images from elsewhere as a folder with list files, so that one reader reads all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from promptvit.data.lists import CLASSES
from promptvit.errors import DataError, OutputError
from promptvit.files import PARTIAL


class Example(NamedTuple):
    """An encoded image: its bytes, the ending of its file, such as `png`, and its label."""

    content: bytes
    ending: str
    label: int


def export_task(
    folder: Path,
    splits: Mapping[str, Iterable[Example]],
    *,
    classes: tuple[str, ...] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write `train.txt`, `images/train/000000.png` and so on, `classes.txt` and `about.json`; all of it or nothing.

    If another process has written `folder` meanwhile, that one stays. Raises DataError on a split without images.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}")
    try:
        for split, examples in splits.items():
            lines = [_write(staging, split, number, each) for number, each in enumerate(examples)]
            if not lines:
                raise DataError(f"no {split} images", where=folder.name)
            (staging / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        if classes:
            lines = [" ".join(name.split()) or str(label) for label, name in enumerate(classes)]  # a line each
            (staging / CLASSES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if about:
            (staging / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        if not folder.exists():
            staging.rename(folder)
    except OSError as error:
        raise OutputError.at(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(staging: Path, split: str, number: int, example: Example) -> str:
    """The line for the list."""
    path = staging / "images" / split / f"{number:06d}.{example.ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(example.content)
    return f"{path.relative_to(staging).as_posix()} {example.label}\n"
