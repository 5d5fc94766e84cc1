"""What was prepared, as a file beside it: the same for the same data, whenever and wherever it was made."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from promptvit.data.catalog import TaskInfo
from promptvit.data.collection import MANIFEST
from promptvit.data.scan import Scan
from promptvit.errors import DataError
from promptvit.files import digest


def task_record(scan: Scan, info: TaskInfo | None, group: str, splits: str) -> dict[str, Any]:
    """What the manifest says of a task: counts, SHA-256 of every list, and of all images with their names."""
    pictures = scan.pictures
    lines = "".join(f"{name} {picture.content}\n" for name, picture in sorted(pictures.items()))
    sizes = sorted({picture.size for picture in pictures.values() if picture.form})
    return {
        "group": group,
        "classes": len(scan.classes) if scan.classes else info.classes if info else None,
        "counts": {split: len(rows) for split, rows in scan.rows.items()},
        "splits": splits,
        "lists": list_digests(scan.folder),
        "images": {
            "count": len(pictures),
            "sha256": digest(lines.encode()),
            "formats": dict(sorted(Counter(picture.form for picture in pictures.values()).items())),
            "smallest": list(min(sizes, default=(0, 0), key=_area)),
            "largest": list(max(sizes, default=(0, 0), key=_area)),
        },
    }


def list_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the text files of a task's folder."""
    return {path.name: digest(path.read_bytes()) for path in sorted(folder.glob("*.txt"))}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in `folder`, None without one; raises DataError if it is no manifest, or a list has changed."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recorded = {task: record["lists"] for task, record in manifest["tasks"].items()}
        _ = manifest["benchmark"], manifest["source"]["name"], manifest["findings"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}", fix=f"Remove {folder} and prepare it again") from None
    for task, lists in recorded.items():
        there = list_digests(folder / task)
        changed = sorted(name for name in {*lists, *there} if lists.get(name) != there.get(name))
        if changed:
            raise DataError(
                f"{folder / task / changed[0]} is not as it was prepared",
                fix=f"Undo the change, or remove {folder} and prepare it again",
            )
    return manifest


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
