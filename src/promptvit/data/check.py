"""What is wrong with a task's images and lists, each with task, file and line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from promptvit.data.catalog import BENCHMARKS, Benchmark, TaskInfo
from promptvit.data.collection import TaskFolder, open_collection, task_folders
from promptvit.data.lists import CLASSES, Row
from promptvit.data.load import BUILT_IN
from promptvit.data.scan import Scan, scan_task
from promptvit.data.sources import is_foreign, local_folder

Kind = Literal["tasks", "lists", "sizes", "classes", "labels", "missing", "unreadable", "duplicates", "union", "jpeg"]
KINDS: tuple[str, ...] = get_args(Kind)
Severity = Literal["problem", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found.

    - `severity`: a problem stands in the way of trusted numbers; a note does not.
    - `where`: the first file and line, relative to the task's folder; empty for a whole task.
    - `count`: how many lines or images it is about.
    """

    severity: Severity = "problem"
    kind: Kind
    task: str = ""
    where: str = ""
    text: str
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        place = "/".join(part for part in (self.task, self.where) if part)
        more = f" (and {self.count - 1:,} more)" if self.count > 1 else ""
        return f"{place}: {self.text}{more}" if place else f"{self.text}{more}"


def check_task(folder: Path, info: TaskInfo | None) -> tuple[Finding, ...]:
    """What is wrong with the task in `folder`; with `info`, also by what is known of it."""
    return check_scan(scan_task(folder), info, folder.resolve().name)


def check_scan(scan: Scan, info: TaskInfo | None, task: str) -> tuple[Finding, ...]:
    """What is wrong with a task that was scanned; problems first."""
    found = [
        *_lists(scan, info),
        *_sizes(scan, info),
        *_classes(scan, info),
        *_labels(scan, info),
        *_files(scan),
        *_duplicates(scan, info),
        *_union(scan),
        *_jpeg(scan, info),
    ]
    found.sort(key=lambda finding: finding.severity == "note")
    return tuple(replace(finding, task=task) for finding in found)


def check(source: str, progress: Callable[[str, int, int], None]) -> tuple[Finding, ...]:
    """What is wrong with a task, or with all tasks of a collection: with whatever `open_collection` and `--data` take.

    `progress` is called with what is checked, the number of images done and of all. What was allowed when the
    collection was prepared is a note. Raises DataError if there is nothing to check.
    """
    if source in BUILT_IN:
        return ()
    if is_foreign(source):
        source = str(local_folder(source))
    root = Path(source).expanduser()
    if root.is_dir() and not task_folders(root):  # class folders
        what = f"checking {root.resolve().name}"
        return check_scan(scan_task(root, partial(progress, what)), None, root.resolve().name)
    collection = open_collection(source)
    single = [task.folder for task in collection.tasks] == [root.absolute()]
    found = [] if single or not collection.benchmark else list(check_tasks(collection.benchmark, collection.tasks))
    for task in collection.tasks:
        scan = scan_task(task.folder, partial(progress, f"checking {task.name}"))
        found += check_scan(scan, collection.info(task), task.name)
    return allow(found, collection.allowed)


def check_tasks(benchmark: Benchmark, tasks: Sequence[TaskFolder]) -> tuple[Finding, ...]:
    """Tasks of the benchmark that are not there, and others that are."""
    names = [info.name for info in BENCHMARKS[benchmark]]
    present = {task.name for task in tasks}
    missing = [name for name in names if name not in present]
    there = f"{len(names) - len(missing)} of {len(names)} tasks of {benchmark} are there, without {', '.join(missing)}"
    others = sorted(present.difference(names))
    return (
        *([Finding(kind="tasks", text=there)] if missing else []),
        *(Finding(severity="note", kind="tasks", task=name, text=f"not a task of {benchmark}") for name in others),
    )


def allow(findings: Iterable[Finding], kinds: Sequence[str]) -> tuple[Finding, ...]:
    """The findings, with problems of these `kinds` as notes."""
    return tuple(replace(each, severity="note") if each.kind in kinds else each for each in findings)


def problems(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those that are problems."""
    return tuple(finding for finding in findings if finding.severity == "problem")


def _lists(scan: Scan, info: TaskInfo | None) -> Iterator[Finding]:
    for split in ("val", "test"):
        if split not in scan.rows:  # one's own task may do without
            yield Finding(severity="problem" if info else "note", kind="lists", text=f"no {split} images")
    for fault in scan.faults:
        expected = f"; expected {fault.expected}" if fault.expected else ""
        yield Finding(kind="lists", where=fault.where, text=f"{fault.given}{expected}")
    for split, rows in scan.rows.items():
        names = Counter(row.name for row in rows)
        twice = [row for row in rows if names[row.name] > 1]
        if twice:
            text = f"{twice[0].name} is listed {names[twice[0].name]} times in {split}"
            yield _at(twice, text, kind="lists", count=len(twice) - len({row.name for row in twice}))


def _sizes(scan: Scan, info: TaskInfo | None) -> Iterator[Finding]:
    for split, expected in info.counts.items() if info else ():
        count = len(scan.rows.get(split, ()))
        if split in scan.rows and count != expected:
            where = scan.files.get(split, "")
            yield Finding(kind="sizes", where=where, text=f"{count:,} images; expected {expected:,} of {split}")


def _classes(scan: Scan, info: TaskInfo | None) -> Iterator[Finding]:
    if info is None:
        return
    if scan.classes is not None and len(scan.classes) != info.classes:
        text = f"{len(scan.classes)} classes; expected {info.classes}"
        yield Finding(kind="classes", where=CLASSES if scan.files else "", text=text)
    elif scan.classes is None:
        highest = max((row.label for row in scan.rows.get("train", ())), default=-1)
        if highest + 1 < info.classes:
            text = f"no {CLASSES}, and no training image of class {highest + 1} or above; expected {info.classes} lines"
            yield Finding(kind="classes", where=CLASSES, text=text)


def _labels(scan: Scan, info: TaskInfo | None) -> Iterator[Finding]:
    if scan.classes is not None:
        count = len(scan.classes)
    else:
        count = info.classes if info else 1 + max((row.label for row in scan.rows.get("train", ())), default=0)
    for rows in scan.rows.values():
        wrong = [row for row in rows if not 0 <= row.label < count]
        if wrong:
            yield _at(wrong, f"label {wrong[0].label} of {wrong[0].name}; expected 0 to {count - 1}", kind="labels")


def _files(scan: Scan) -> Iterator[Finding]:
    for rows in scan.rows.values():
        missing = [row for row in rows if scan.pictures[row.name].missing]
        broken = [row for row in rows if scan.pictures[row.name].fault]
        if missing:
            yield _at(missing, f"no image {missing[0].name}", kind="missing")
        if broken:
            first = broken[0].name
            yield _at(broken, f"{first} cannot be decoded: {scan.pictures[first].fault}", kind="unreadable")


def _duplicates(scan: Scan, info: TaskInfo | None) -> Iterator[Finding]:
    """Pictures that are there twice, by their pixels; a problem where one is a test image and the other is not."""
    first_of: dict[str, tuple[str, Row]] = {}
    for split in ("train", "val", "test"):
        twice: dict[str, list[tuple[Row, Row]]] = {}
        for row in scan.rows.get(split, ()):
            pixels = scan.pictures[row.name].pixels
            other, before = first_of.setdefault(pixels, (split, row)) if pixels else (split, row)
            if before is not row:
                twice.setdefault(other, []).append((row, before))
        for other, pairs in twice.items():
            row, before = pairs[0]
            label = "" if row.label == before.label else f", with label {row.label} in place of {before.label}"
            twins = f": {info.twins}" if info and info.twins and split != other else ""
            yield _at(
                [row for row, _ in pairs],
                f"{row.name} is the same picture as {before.where}{label}{twins}",
                kind="duplicates",
                severity="problem" if split == "test" != other and not twins else "note",
            )


def _union(scan: Scan) -> Iterator[Finding]:
    """The joint list is to hold the images and labels of train and val, each as often."""
    if "train+val" not in scan.rows:
        return
    joint = scan.rows["train+val"]
    apart = (*scan.rows.get("train", ()), *scan.rows.get("val", ()))
    for rows, others, text in (
        (joint, apart, "neither in train nor in val with this label"),
        (apart, joint, f"not in {scan.files['train+val']} with this label"),
    ):
        left = Counter(_identity(scan, row) for row in others)
        alone = []
        for row in rows:
            left[_identity(scan, row)] -= 1
            if left[_identity(scan, row)] < 0:
                alone.append(row)
        if alone:
            yield _at(alone, f"{alone[0].name} {alone[0].label}: {text}", kind="union")


def _identity(scan: Scan, row: Row) -> tuple[str, int]:
    """The picture, whatever its file, and its label."""
    return scan.pictures[row.name].pixels or row.name, row.label


def _jpeg(scan: Scan, info: TaskInfo | None) -> Iterator[Finding]:
    """Copies of the benchmark's images that were compressed once more, as far as they show it."""
    pictures = scan.pictures.values()
    jpegs = [picture for picture in pictures if picture.form == "JPEG"]
    usual = Counter(picture.quality for picture in jpegs if picture.quality).most_common(1)
    if info is None or not jpegs or not usual:
        return
    quality, count = usual[0]
    if info.lossless or (info.group != "fgvc" and quality == 75 and count == len(pictures)):
        exact = "the originals hold exact pixels" if info.lossless else "all with the same tables"
        text = f"{len(jpegs):,} of {len(pictures):,} images are JPEG of quality {quality}, {exact}: a re-encoded copy"
        yield Finding(severity="note", kind="jpeg", text=text)


def _at(
    rows: Sequence[Row], text: str, *, kind: Kind, severity: Severity = "problem", count: int | None = None
) -> Finding:
    """The finding about `rows`, at the first of them."""
    return Finding(severity=severity, kind=kind, where=rows[0].where, text=text, count=count or len(rows))
