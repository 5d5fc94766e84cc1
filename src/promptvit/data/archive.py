"""Zip files, unpacked with care: nothing outside the folder, no links, every checksum compared."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from promptvit.errors import DataError, OutputError
from promptvit.files import PARTIAL

Progress = Callable[[int, int], None]
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")


def unpack(archive: Path, folder: Path, progress: Progress | None = None) -> None:
    """The files of a zip below `folder`; files that are there already are kept, so that a killed process goes on.

    `progress` gets the number of files done and of all. Raises DataError, which names the archive and the member, if
    it is no zip, truncated, damaged, encrypted, or would write outside of `folder`, and OutputError if the disk is
    too small.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not member.is_dir() and not _is_litter(member)]
            for member in members:
                _refuse_unsafe(archive, member)
            _refuse_too_large(folder, members)
            for done, member in enumerate(members, start=1):
                _unpack_one(file, member, folder / member.filename, archive)
                if progress:
                    progress(done, len(members))
    except zipfile.BadZipFile as error:
        raise _damaged(archive, error) from None


def _unpack_one(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, archive: Path) -> None:
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    partial = target.with_name(f".{target.name}{PARTIAL}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open(member) as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, 2**20)
        partial.replace(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        partial.unlink(missing_ok=True)
        raise _damaged(archive, error, member.filename) from None
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError.at(target, error) from error


def _damaged(archive: Path, error: Exception, member: str = "") -> DataError:
    return DataError(
        f"{archive} is no whole zip file: {error or type(error).__name__}",
        where=member,
        fix="Download it again and compare its size or checksum with what the source states",
    )


def _is_litter(member: zipfile.ZipInfo) -> bool:
    return any(part in LITTER for part in PurePosixPath(member.filename).parts)


def _refuse_unsafe(archive: Path, member: zipfile.ZipInfo) -> None:
    parts = member.filename.replace("\\", "/").split("/")
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if ".." in parts or not parts[0] or ":" in parts[0] or is_link:
        raise DataError(
            f"{archive} holds {member.filename!r}",
            expected="plain files with paths that stay inside",
            fix="Do not use this file",
        )
    if member.flag_bits & 1:
        raise DataError(f"{archive} is encrypted", expected="a zip without a password", where=member.filename)


def _refuse_too_large(folder: Path, members: list[zipfile.ZipInfo]) -> None:
    needed = sum(member.file_size for member in members if not (folder / member.filename).is_file())
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OutputError(
            f"{needed / 2**30:,.1f} GiB to unpack, {free / 2**30:,.1f} GiB free",
            where=str(place),
            fix="Free some space, or choose another --out",
        )
