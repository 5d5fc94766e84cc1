import stat
import zipfile

import pytest

from promptvit.data.archive import unpack
from promptvit.errors import DataError


def write(path, names, content=b"x" * 1000):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, content)
    return path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_are_unpacked_without_litter(tmp_path):
    archive = write(tmp_path / "a.zip", ["a/0.txt", "a/b/1.txt", "__MACOSX/a/._0.txt", "a/.DS_Store"])
    seen = []
    unpack(archive, tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert files(tmp_path / "out") == ["a/0.txt", "a/b/1.txt"]
    assert seen == [(1, 2), (2, 2)]


def test_unpacking_goes_on_after_a_kill(tmp_path):
    archive = write(tmp_path / "a.zip", ["0.txt", "1.txt"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.txt").write_bytes(b"y" * 1000)  # whole: it has its size
    (tmp_path / "out" / "1.txt").write_bytes(b"y")
    unpack(archive, tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes()[:1] for name in ("0.txt", "1.txt")] == [b"y", b"x"]


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "c:/outside.txt", "..\\o.txt"]
)
def test_a_path_outside_is_refused_before_anything_is_written(tmp_path, name):
    archive = write(tmp_path / "a.zip", ["0.txt", name])
    with pytest.raises(DataError, match=r"a.zip holds '.*'; expected plain files with paths that stay inside"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path) == ["a.zip"]


def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc")
    with pytest.raises(DataError, match="holds 'link'"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    archive = write(tmp_path / "a.zip", [f"{i}.txt" for i in range(20)])
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"a.zip is no whole zip file: .*Download it again"):
        unpack(archive, tmp_path / "out")


def test_a_damaged_member_is_named(tmp_path):
    archive = write(tmp_path / "a.zip", ["0.txt", "1.txt"], content=bytes(range(256)) * 9)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        place = file.getinfo("1.txt").header_offset + 40
    content[place : place + 20] = b"\0" * 20
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a.zip is no whole zip file: .*\(in 1.txt\)"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == ["0.txt"]
