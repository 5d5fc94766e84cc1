"""Reading JSON; writing so that a killed process or a full disk leaves the old file or the new one, never a half."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from promptvit.errors import DataError, OutputError

PARTIAL = ".partial"


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; raises OutputError and leaves no partial file."""
    write_all({path: content})


def write_all(contents: dict[Path, bytes]) -> None:
    """Replace several files, none before all are on the disk; raises OutputError and leaves no partial file."""
    written: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
            path.parent.mkdir(parents=True, exist_ok=True)
            written[path] = temporary
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in written.items():
            temporary.replace(path)
    except OSError as error:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
        raise OutputError.at(path, error) from error


def is_begun(marker: Path, what: str, *, resume: bool) -> bool:
    """Whether the folder of `marker` holds `what`, as that file tells; raises OutputError if it does and is not to be
    resumed, or if something else is in it. What a killed process has left half written does not count."""
    folder = marker.parent
    if marker.exists():
        if not resume:
            raise OutputError(f"{folder} holds {what} already", fix="Go on with it: --resume; or choose another --out")
        return True
    if folder.exists() and not (folder.is_dir() and all(path.name.endswith(PARTIAL) for path in folder.iterdir())):
        raise OutputError(f"{folder} is in use", expected="a new or empty folder", fix="Choose another --out")
    return False


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, values: Any) -> None:
    """`write_bytes` of `json_bytes`."""
    write_bytes(path, json_bytes(values))


def write_compact_json(path: Path, values: Any) -> None:
    """`write_bytes` of JSON in one line: for what no person reads."""
    write_bytes(path, json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """The values in a JSON file; raises DataError if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", expected="JSON") from None


def json_bytes(values: Any) -> bytes:
    """Indented JSON with a closing newline; NaN and infinity are refused, bytes of odd file names escaped."""
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
