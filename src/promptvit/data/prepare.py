"""A benchmark's data from a folder, a zip, an address or the Hub: brought into one layout, checked and recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptvit.data.archive import unpack
from promptvit.data.arrange import arrange, find_tasks
from promptvit.data.catalog import Benchmark, find_task
from promptvit.data.check import Finding, allow, check_scan, check_tasks, problems
from promptvit.data.collection import MANIFEST, data_home, name_tasks
from promptvit.data.download import download
from promptvit.data.manifest import read_manifest, task_record
from promptvit.data.scan import scan_task
from promptvit.errors import DataError, OutputError
from promptvit.files import PARTIAL, write_json

HUB: dict[Benchmark, str] = {"vtab-1k": "XiN0919/VTAB-1k", "fgvc": "XiN0919/FGVC"}
"""Public copies, by others than the benchmarks' authors."""
SOURCE = ".source"
Progress = Callable[[str, int, int], None]
"""Called with what is done (`unpacking`), how far it is, and how far it goes."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What came of a preparation.

    - `folder`: where the tasks are.
    - `state`: `refused` left nothing behind but what was unpacked, for another try.
    - `manifest`: what is written beside the tasks; empty if refused.
    """

    folder: Path
    state: Literal["prepared", "complete already", "refused"]
    findings: tuple[Finding, ...]
    manifest: dict[str, Any]


def prepare(
    benchmark: Benchmark,
    source: str,
    out: Path | None = None,
    *,
    copy: bool = False,
    splits: str | None = None,
    allowed: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> Prepared:
    """Bring the tasks in `source` into `out` (by default where `open_collection(benchmark)` looks), and check them.

    `source` is a folder, a zip file, the http address of one, or `hub`. `splits` is a folder with JSON splits of the
    fgvc sets, or `hub`, where they are not beside the images. Problems refuse it, except those of the `allowed` kinds.
    A preparation that was killed goes on when it is called again; a complete one is left as it is. Raises DataError or
    OutputError where there is nothing to check.
    """
    out = (out or data_home() / benchmark).expanduser().absolute()
    begun = {"benchmark": benchmark, "source": _identity(benchmark, source)}
    done = read_manifest(out)
    if done is not None:
        return _complete(out, done, begun)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out} is in use", expected="a new or empty folder", fix="Choose another --out")
    staging = out.with_name(f".{out.name}{PARTIAL}")
    _begin(staging, {**begun, "modified": _modified(source)})
    root = _fetch(benchmark, source, staging, progress)
    try:
        _refuse_nested(root, out, staging)
        json_splits = _from_hub(benchmark) if splits == "hub" else Path(splits).expanduser() if splits else None
        origins = _arrange_all(root, staging, benchmark, copy, json_splits)
        findings, records = _check(benchmark, staging, origins, progress)
    except DataError:
        _clear(staging)
        raise
    findings = allow(findings, allowed)
    if problems(findings):
        _clear(staging)
        return Prepared(folder=out, state="refused", findings=findings, manifest={})
    manifest = {
        "format": 1,
        **begun,
        "images": "copies" if copy else "links",
        "allowed": sorted(allowed),
        "tasks": records,
        "findings": [finding.to_dict() for finding in findings],
    }
    write_json(staging / MANIFEST, manifest)
    (staging / _BEGUN).unlink()
    if out.exists():
        out.rmdir()
    staging.rename(out)
    return Prepared(folder=out, state="prepared", findings=findings, manifest=manifest)


_BEGUN = ".begun.json"


def _identity(benchmark: Benchmark, source: str) -> dict[str, Any]:
    """What tells this source from another."""
    if source == "hub":
        return {"kind": "hub", "name": HUB[benchmark]}
    if _is_address(source):
        return {"kind": "url", "name": source}
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return {"kind": "folder", "name": str(path)}
    if not path.is_file():
        raise DataError(f"no file or folder {source}", expected="a folder, a zip file, the address of one, or hub")
    return {"kind": "zip", "name": path.name, "bytes": path.stat().st_size}


def _modified(source: str) -> int:
    """What tells a zip that was mended from the one of the same size that was refused."""
    path = Path(source).expanduser()
    return path.stat().st_mtime_ns if path.is_file() else 0


def _is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _complete(out: Path, manifest: dict[str, Any], begun: dict[str, Any]) -> Prepared:
    recorded = manifest["source"]
    same = all(recorded.get(key) == value for key, value in begun["source"].items())
    if not same or manifest["benchmark"] != begun["benchmark"]:
        raise OutputError(
            f"{out} holds {manifest['benchmark']} from {recorded['name']} already",
            fix="Remove that folder, or choose another --out",
        )
    findings = tuple(Finding(**values) for values in manifest["findings"])
    return Prepared(folder=out, state="complete already", findings=findings, manifest=manifest)


def _begin(staging: Path, begun: dict[str, Any]) -> None:
    """A staging folder for this source: the one that a killed process left, unless it was for another."""
    marker = staging / _BEGUN
    if staging.exists() and not (marker.is_file() and json.loads(marker.read_text()) == begun):
        shutil.rmtree(staging)
    write_json(marker, begun)


def _clear(staging: Path) -> None:
    """Remove what was arranged; what was loaded and unpacked stays for another try."""
    if not (staging / SOURCE).exists():
        shutil.rmtree(staging)
        return
    for path in staging.iterdir():
        if path.is_dir() and path.name != SOURCE:
            shutil.rmtree(path)


def _fetch(benchmark: Benchmark, source: str, staging: Path, progress: Progress) -> Path:
    """The folder in which the tasks of `source` are; after an error nothing stays but a part of a download."""
    unpacked, archive = staging / SOURCE, staging / "download.zip"
    if unpacked.exists():
        return unpacked
    try:
        if source == "hub":
            root = _from_hub(benchmark)
            archives = sorted(root.rglob("*.zip"))
        elif _is_address(source):
            root = archive
            if not archive.exists():
                download(source, archive, progress=lambda done, total: progress("loading", done, total))
            archives = [archive]
        else:
            root = Path(source).expanduser().absolute()
            archives = [] if root.is_dir() else [root]
        if not archives:
            return root
        unpacking = staging / f"{SOURCE}{PARTIAL}"
        for each in archives:
            unpack(each, unpacking, lambda done, total: progress("unpacking", done, total))
    except DataError:
        if not archive.with_name(f"{archive.name}.part").exists():
            shutil.rmtree(staging)
        raise
    unpacking.rename(unpacked)  # whole from here on
    archive.unlink(missing_ok=True)
    return unpacked


def _from_hub(benchmark: Benchmark) -> Path:
    from huggingface_hub import snapshot_download

    name = HUB[benchmark]
    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except Exception as error:  # the Hub's client raises of all kinds, and so does what is below it
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise DataError(
            f"{name} cannot be loaded from the Hub: {reason}",
            fix=f"Fetch https://huggingface.co/datasets/{name} by hand, on any machine, and prepare it from there: "
            f"promptvit data prepare {benchmark} --from FOLDER_OR_ZIP",
        ) from error


def _arrange_all(root: Path, staging: Path, benchmark: Benchmark, copy: bool, splits: Path | None) -> dict[str, str]:
    """Arrange every task below `root`; returns where the splits of each come from."""
    found = find_tasks(root, benchmark)
    if not found:
        kinds = {"vtab-1k": "the lists train800.txt, val200.txt, test.txt", "fgvc": "the names of the five sets"}
        raise DataError(f"no task of {benchmark} in {root}", expected=f"folders with {kinds[benchmark]}")
    return {
        name: arrange(folder, staging / name, find_task(name, benchmark), copy=copy, splits=splits)
        for name, folder in found.items()
    }


def _refuse_nested(root: Path, out: Path, staging: Path) -> None:
    root, out, staging = (path.resolve() for path in (root, out, staging))
    if staging not in root.parents and (root == out or root in out.parents or out in root.parents):
        raise DataError(f"{out} and {root} lie in each other", expected="two folders", fix="Choose another --out")


def _check(
    benchmark: Benchmark, staging: Path, origins: dict[str, str], progress: Progress
) -> tuple[tuple[Finding, ...], dict[str, Any]]:
    """Findings on all tasks, and the manifest's records of them."""
    tasks = name_tasks([staging / name for name in origins], benchmark)
    findings, records = list(check_tasks(benchmark, tasks)), {}
    for task in tasks:
        info = find_task(task.name, benchmark)
        what = f"checking {task.name}"
        scan = scan_task(task.folder, lambda done, total, what=what: progress(what, done, total))
        findings += check_scan(scan, info, task.name)
        records[task.name] = task_record(scan, info, task.group, origins[task.name])
    return tuple(findings), records
