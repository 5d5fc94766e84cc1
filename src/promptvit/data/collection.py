"""Several tasks in one folder: a benchmark, or whatever somebody has put together."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptvit.data.catalog import BENCHMARKS, Benchmark, TaskInfo, benchmark_of, find_task
from promptvit.data.lists import has_lists
from promptvit.errors import DataError

MANIFEST = "promptvit-data.json"
"""What `prepare` writes beside the tasks, see `manifest.py`."""


@dataclass(frozen=True, kw_only=True)
class TaskFolder:
    """Where a task's list files are; `load_task` reads them.

    - `name`: from the catalog if the folder goes by a name or alias there, else the folder's.
    - `group`: natural, specialized, structured or fgvc; else what `about.json` in the folder says, or empty.
    - `folder`: absolute.
    """

    name: str
    group: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Tasks that are reported together: those of the catalog in its order, then others by name.

    - `name`: `vtab-1k`, `fgvc`, or the folder's name.
    - `benchmark`: whose facts hold for its tasks, if any; `find_task` has them.
    - `allowed`: kinds of problems that were accepted when it was prepared.
    """

    name: str
    benchmark: Benchmark | None
    tasks: tuple[TaskFolder, ...]
    allowed: tuple[str, ...] = ()

    def info(self, task: TaskFolder) -> TaskInfo | None:
        """What the catalog knows of `task`."""
        return find_task(task.name, self.benchmark) if self.benchmark else None


def data_home() -> Path:
    """Where prepared data lies: $PROMPTVIT_HOME, or ~/.cache/promptvit."""
    return Path(os.environ.get("PROMPTVIT_HOME") or "~/.cache/promptvit").expanduser().absolute()


def open_collection(source: str) -> Collection:
    """The tasks of `source`: `vtab-1k` or `fgvc` as prepared in `data_home()`, a folder of tasks, or a task's folder.

    Tasks lie one or two levels below the folder (`clevr_count/`, `Structured/clevr_count/`) and have list files.
    Raises DataError if there are none, or two of one name, and says what to do.
    """
    benchmark: Benchmark | None = next((name for name in BENCHMARKS if name == source), None)
    root = data_home() / benchmark if benchmark else Path(source).expanduser().absolute()
    if not root.is_dir():
        raise DataError(
            f"no folder {root}",
            expected=f"the tasks of {source}" if benchmark else f"{', '.join(BENCHMARKS)}, or a folder of tasks",
            fix=f"Prepare it: promptvit data prepare {benchmark} --help" if benchmark else "Check the path",
        )
    folders = task_folders(root)
    if not folders:
        raise DataError(
            f"no task in {root}",
            expected="folders with the lists train800.txt, val200.txt, test.txt (or train.txt and so on)",
            fix=f"Prepare it: promptvit data prepare {benchmark or 'vtab-1k'} --from {root}",
        )
    manifest = _read(root / MANIFEST)
    recorded: Benchmark | None = next((name for name in BENCHMARKS if name == manifest.get("benchmark")), None)
    benchmark = benchmark or recorded or benchmark_of([folder.name for folder in folders])
    allowed = tuple(str(kind) for kind in manifest.get("allowed", ()))
    return Collection(name=root.name, benchmark=benchmark, tasks=name_tasks(folders, benchmark), allowed=allowed)


def task_folders(root: Path) -> list[Path]:
    """The folders with list files: `root` itself, or those one or two levels below, by path."""
    if has_lists(root):
        return [root]
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found += [folder] if has_lists(folder) else sorted(path for path in folder.iterdir() if has_lists(path))
    return found


def name_tasks(folders: list[Path], benchmark: Benchmark | None) -> tuple[TaskFolder, ...]:
    """The folders with names and groups as in `benchmark`, in its order; raises DataError on two of a name."""
    tasks: dict[str, TaskFolder] = {}
    for folder in folders:
        info = find_task(folder.name, benchmark) if benchmark else None
        name = info.name if info else folder.name
        if name in tasks:
            raise DataError(
                f"two folders for the task {name}: {tasks[name].folder} and {folder}",
                expected="one",
                fix="Move one of them elsewhere",
            )
        tasks[name] = TaskFolder(name=name, group=info.group if info else _own_group(folder), folder=folder)
    order = [info.name for info in BENCHMARKS[benchmark]] if benchmark else []
    known = [tasks.pop(name) for name in order if name in tasks]
    return (*known, *(tasks[name] for name in sorted(tasks)))


def _own_group(folder: Path) -> str:
    group = _read(folder / "about.json").get("group", "")
    return group if isinstance(group, str) else ""


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, because nobody has to write these files."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
