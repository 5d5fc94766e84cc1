"""Task folders of any name as a benchmark has them: list files of their own, images as links or copies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from promptvit.data.catalog import Benchmark, TaskInfo, find_task
from promptvit.data.collection import task_folders
from promptvit.data.fgvc import read_splits
from promptvit.data.lists import CLASSES, has_lists
from promptvit.errors import DataError, OutputError
from promptvit.files import PARTIAL

TEXTS = (".txt", ".json")


def find_tasks(root: Path, benchmark: Benchmark) -> dict[str, Path]:
    """The task folders below `root` by name, those of the catalog by the name there.

    They lie one or two levels below `root`, or below the only folder in it. For `fgvc`, folders with the name of a set
    count, with or without list files. Raises DataError on two folders for one task.
    """
    while len(inner := _visible(root)) == 1 and not has_lists(root) and not _is_task(inner[0], benchmark):
        root = inner[0]
    found: dict[str, Path] = {}
    for folder in _candidates(root, benchmark):
        info = find_task(folder.name, benchmark)
        name = info.name if info else folder.name
        if name in found:
            both = f"{found[name].relative_to(root)} and {folder.relative_to(root)}"
            raise DataError(f"two folders for the task {name}: {both}", expected="one", where=str(root))
        found[name] = folder
    return found


def arrange(folder: Path, target: Path, info: TaskInfo | None, *, copy: bool, splits: Path | None = None) -> str:
    """Make `target` a task that `read_lists` reads, with the images of `folder`; returns where its splits come from.

    Lists are always copies; images are links unless `copy`. Without names of classes, those of the catalog's tasks
    are numbers, so that classes without training images count too. What is there already is used again.
    """
    target.mkdir(parents=True, exist_ok=True)
    if info and info.group == "fgvc" and not has_lists(folder):
        made = read_splits(folder, info, splits)
        _bring(made.root, target / "images", copy=copy)
        for split, rows in made.rows.items():
            _write(target / f"{split}.txt", [f"images/{path} {label}" for path, label in rows])
        classes, origin = made.classes, made.origin
    else:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in TEXTS:
                _bring(path, target / path.name, copy=True)
            elif not path.name.startswith("."):
                _bring(path, target / path.name, copy=copy)
        classes, origin = None, "lists as given"
    if info and not (target / CLASSES).exists():
        _write(target / CLASSES, classes or [str(label) for label in range(info.classes)])
    return origin


def _candidates(root: Path, benchmark: Benchmark) -> list[Path]:
    if benchmark == "vtab-1k":
        return task_folders(root)
    levels = [folder for outer in _visible(root) for folder in (outer, *_visible(outer))]
    known = [folder for folder in levels if _is_task(folder, benchmark)]
    # CUB/CUB_200_2011: the outer one stands for both
    return [folder for folder in known if folder.parent not in known]


def _is_task(folder: Path, benchmark: Benchmark) -> bool:
    return has_lists(folder) or (benchmark == "fgvc" and find_task(folder.name, benchmark) is not None)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _write(path: Path, lines: list[str] | tuple[str, ...]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _bring(source: Path, target: Path, *, copy: bool) -> None:
    try:
        if target.is_symlink():
            target.unlink()  # never write through a link
        if not copy:
            _link(source, target)
        elif source.is_dir():
            for path in _files_below(source):
                _copy(path, target / path.relative_to(source))
        else:
            _copy(source, target)
    except OSError as error:
        raise OutputError.at(target, error) from error


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, also behind links to other folders, but not behind those to a folder that they are in."""
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        folders[:] = sorted(name for name in folders if not here.is_relative_to(Path(place, name).resolve()))
        yield from (path for name in sorted(files) if (path := Path(place, name)).is_file())


def _link(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    # Where both lie below one folder, that folder can be moved: the link does not name it.
    below = target.parent.parent in source.parents
    try:
        target.symlink_to(os.path.relpath(source, target.parent) if below else source, source.is_dir())
    except OSError as error:
        raise OutputError(
            f"{target} cannot be a link: {error.strerror or error}", fix="Copy the images instead: --copy"
        ) from None


def _copy(source: Path, target: Path) -> None:
    """A copy that keeps the time of its source: by both and the size, one that is whole is known again."""
    known = source.stat()
    if target.is_file() and not target.is_symlink():
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (known.st_size, known.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}{PARTIAL}")
    shutil.copy2(source, partial)
    partial.replace(target)
