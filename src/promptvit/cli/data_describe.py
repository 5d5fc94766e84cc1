"""`promptvit data describe ANY`: figures of a task or of a folder of tasks, and a sheet of images."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.cli.options import make_parser, parse
from promptvit.errors import ConfigError

if TYPE_CHECKING:
    from promptvit.data.describe import SplitFigures, TaskFigures


def run(arguments: list[str]) -> None:
    """Parse, describe, print."""
    parser = make_parser(
        "data describe",
        "Count images and classes, say how large and how balanced they are, and draw a sheet of them.",
        "ANY ",
    )
    parser.add_argument("source", metavar="ANY", help="what --data takes, or vtab-1k, fgvc, a folder of tasks")
    parser.add_argument("--out", type=str | None, default=None, metavar="FILE.png", help="a sheet of images")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)
    out = None if values["out"] is None else Path(values["out"])
    if out is not None and out.suffix != ".png":
        raise ConfigError(f"--out {out}", expected="a name that ends with .png")

    from promptvit.data.describe import describe_task, sheet_of_classes, sheet_of_tasks  # after parsing
    from promptvit.data.load import load_tasks
    from promptvit.files import write_bytes

    name, tasks = load_tasks(values["source"])
    figures = [describe_task(task) for task in tasks]
    if out is not None:
        sheet, file = sheet_of_classes(tasks[0]) if len(tasks) == 1 else sheet_of_tasks(name, tasks), BytesIO()
        sheet.save(file, "PNG")
        write_bytes(out, file.getvalue())
    if values["json"]:
        print(json.dumps({"tasks": [each.to_dict() for each in figures]}, ensure_ascii=False))
        return
    print("\n\n".join(describe(each) for each in figures))
    if out is not None:
        print(f"\nsheet in {out}")


def describe(task: TaskFigures) -> str:
    """A few lines for a person."""
    sizes = ", ".join(f"{size} ({count:,})" for size, count in task.sizes.items())
    smallest, largest = (" x ".join(map(str, size)) for size in (task.smallest, task.largest))
    spread = "" if task.distinct_sizes == 1 else f"; {task.distinct_sizes:,} sizes from {smallest} to {largest}"
    formats = ", ".join(f"{count:,} {form}" for form, count in task.formats.items())
    return "\n".join(
        [
            f"{task.name}: {task.classes} classes; {formats}",
            f"  sizes  {sizes}{spread}",
            *(f"  {name:<5}  {_split(split)}" for name, split in task.splits.items()),
        ]
    )


def _split(split: SplitFigures) -> str:
    (most, count), (least, few) = split.largest, split.smallest
    share = f"{100 * split.majority:.1f} %"
    classes = f"largest class {most}: {count:,} ({share}), smallest {least}: {few:,}"
    balance = f"all classes alike ({share})" if count == few else classes
    empty = f", {split.empty} class{'' if split.empty == 1 else 'es'} without images" if split.empty else ""
    return f"{split.images:>7,} images; {balance}{empty}"
