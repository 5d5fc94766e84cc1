import hashlib
import json
import os
from pathlib import Path

import pytest

from promptvit.errors import OutputError
from promptvit.files import digest, write_bytes, write_json, write_text


def test_it_replaces_what_was_there_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_text_is_utf8_and_json_ends_with_a_newline(tmp_path):
    write_text(tmp_path / "text", "naïve ✓")
    assert (tmp_path / "text").read_bytes().decode("utf-8") == "naïve ✓"
    write_json(tmp_path / "json", {"name": "naïve", "values": [1, 2.5]})
    text = (tmp_path / "json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "naïve" in text
    assert json.loads(text) == {"name": "naïve", "values": [1, 2.5]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value, tmp_path):
    write_json(tmp_path / "json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "json", {"loss": value})
    assert (tmp_path / "json").read_text() == "1\n"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(step, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OutputError, match=r"file cannot be written: No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_in_the_place_of_a_folder_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "below", b"")


def test_a_folder_in_the_place_of_a_file_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes(tmp_path, b"")
    assert list(tmp_path.iterdir()) == []
    assert [p.name for p in tmp_path.parent.iterdir() if p.name.endswith(".partial")] == []


def test_digest_is_sha256():
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()
