"""One file over HTTP that may take hours: what has come is kept, and a broken connection is taken up where it broke."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from promptvit.errors import DataError, OutputError

CHUNK = 2**20
Progress = Callable[[int, int], None]


def download(
    url: str,
    path: Path,
    *,
    progress: Progress | None = None,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> Path:
    """The file behind `url` at `path`; until it is whole, `path` with `.part` behind it.

    A connection that breaks is made again and asked for the rest, at once while something comes, and then after
    `pause` seconds, twice that and so on; DataError after `attempts` in a row without a byte. A process that was
    killed goes on in the same way. A file that has changed meanwhile (by ETag or date) is loaded anew.
    `progress` gets the bytes that are there and the bytes of all, 0 if the server does not say.
    """
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.tag")
    in_vain = 0
    while True:
        before = _size(part)
        try:
            reason = _fetch(url, part, tag, progress, timeout)
        except HTTPError as error:
            if error.code == 416:  # there is no rest: it is all here, or the file is no longer as long
                if error.headers.get("Content-Range") == f"bytes */{before}":
                    break
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise DataError(f"{url} answers {error.code} {error.reason}", fix="Check the address") from None
            reason = f"{error.code} {error.reason}"
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        if not reason:
            break
        in_vain = 0 if _size(part) > before else in_vain + 1
        if in_vain == attempts:
            raise DataError(
                f"{url} cannot be loaded: {reason}",
                where=f"byte {_size(part):,}",
                fix="Run the same command again to go on from there",
            )
        time.sleep(pause * 2 ** (in_vain - 1) if in_vain else 0)
    part.replace(path)
    tag.unlink(missing_ok=True)
    return path


def _fetch(url: str, part: Path, tag: Path, progress: Progress | None, timeout: float) -> str:
    """One connection: append to `part` what comes. Returns why that is not all, or nothing."""
    start = _size(part)
    known = tag.read_text() if tag.exists() else ""
    # Without something to tell the file by, its rest may be the rest of another file.
    headers = {"Range": f"bytes={start}-", "If-Range": known} if start and known else {}
    with urlopen(Request(url, headers=headers), timeout=timeout) as answer:
        goes_on = answer.status == 206
        total = _total(answer)
        tag.write_text(_validator(answer))
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                _write(file, chunk, part)
                if progress:
                    progress(file.tell(), total)
    return f"{_size(part):,} of {total:,} bytes came" if total and _size(part) != total else ""


def _write(file: BinaryIO, chunk: bytes, part: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:  # a full disk is no broken connection
        raise OutputError.at(part, error) from error


def _validator(answer: HTTPResponse) -> str:
    """What tells this file from a later one; weak ETags do not."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _total(answer: HTTPResponse) -> int:
    """The length of the whole file, or 0 if it is not said."""
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    return int(whole[1] if whole else answer.headers.get("Content-Length", 0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
