import json

import pytest

from promptvit.data.collection import MANIFEST
from promptvit.data.manifest import read_manifest, task_record
from promptvit.data.scan import scan_task
from promptvit.errors import DataError


def test_a_record_depends_on_the_images_and_their_names_alone(make_task, tmp_path):
    task = make_task(tmp_path / "small", val=3)
    record = task_record(scan_task(task), None, "natural", "lists as given")
    assert record["counts"] == {"train": 4, "val": 3, "test": 3, "train+val": 7}
    assert record["images"] | {"sha256": ""} == {
        "count": 10,
        "sha256": "",
        "formats": {"PNG": 10},
        "smallest": [8, 8],
        "largest": [8, 8],
    }
    assert set(record["lists"]) == {"train800.txt", "val200.txt", "test.txt", "train800val200.txt"}
    task.rename(tmp_path / "moved")
    assert task_record(scan_task(tmp_path / "moved"), None, "natural", "lists as given") == record
    path = tmp_path / "moved" / "images" / "test" / "000000.png"
    path.write_bytes(path.read_bytes() + b"\0")
    changed = task_record(scan_task(tmp_path / "moved"), None, "natural", "lists as given")
    assert changed["images"]["sha256"] != record["images"]["sha256"]
    assert changed["lists"] == record["lists"]


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"tasks": {}}', '{"tasks": {"a": {}}}'])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    assert read_manifest(tmp_path) is None
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"promptvit-data.json cannot be read: .*prepare it again"):
        read_manifest(tmp_path)


def test_a_list_that_came_or_went_is_a_change(tmp_path):
    whole = {"benchmark": "fgvc", "source": {"name": "x"}, "findings": [], "tasks": {"cub": {"lists": {}}}}
    (tmp_path / MANIFEST).write_text(json.dumps(whole))
    assert read_manifest(tmp_path) == whole
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub" / "train.txt").write_text("a 0")
    with pytest.raises(DataError, match=r"cub/train.txt is not as it was prepared"):
        read_manifest(tmp_path)
