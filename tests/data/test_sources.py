import io
import sys

import numpy as np
import pytest
from PIL import Image

from promptvit.data.config import DataConfig
from promptvit.data.decode import decode
from promptvit.data.load import load_task
from promptvit.data.sources import local_folder
from promptvit.errors import DataError

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")
datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTVIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "home"


def picture(value, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, form)
    return file.getvalue()


def dataset(start, stop, label=None):
    label = label or datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"picture": datasets.Image(), "label": label})
    rows = [{"picture": {"bytes": picture(i), "path": None}, "label": i % 2} for i in range(start, stop)]
    return datasets.Dataset.from_list(rows, features=features)


def reds(split):
    return [np.asarray(decode(path))[0, 0, 0] for path in split.images]


def test_a_saved_dataset_is_a_task(tmp_path, home):
    splits = {"train": dataset(0, 6), "validation": dataset(6, 8), "test": dataset(8, 11)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pets")
    task = load_task(DataConfig(source=f"hf:{tmp_path / 'pets'}"))
    assert (task.name, task.classes) == ("pets", ("cat", "dog"))
    assert task.test is not None
    assert [reds(split) for split in (task.train, task.val, task.test)] == [[*range(6)], [6, 7], [8, 9, 10]]
    assert task.test.labels.tolist() == [0, 1, 0]
    assert {path.suffix for path in task.train.images} == {".png"}
    first = local_folder(f"hf:{tmp_path / 'pets'}")
    assert first.parent.parent == home / "sources"
    assert first.stat().st_ino == local_folder(f"hf:{tmp_path / 'pets'}").stat().st_ino
    datasets.DatasetDict(splits | {"train": dataset(20, 26)}).save_to_disk(tmp_path / "pets")
    assert reds(load_task(DataConfig(source=f"hf:{tmp_path / 'pets'}")).train) == [*range(20, 26)]


def test_names_of_classes_are_a_line_each(tmp_path):
    dataset(0, 6, datasets.ClassLabel(names=["cat\nor so", " "])).save_to_disk(tmp_path / "odd")
    assert load_task(DataConfig(source=f"hf:{tmp_path / 'odd'}")).classes == ("cat or so", "1")


def test_a_single_split_of_whole_numbers_holds_out_validation_images(tmp_path):
    dataset(0, 10, datasets.Value("int64")).save_to_disk(tmp_path / "numbers")
    task = load_task(DataConfig(source=f"hf:{tmp_path / 'numbers'}", validation_fraction=0.2))
    assert (len(task.train), len(task.val), task.test, task.classes) == (8, 2, None, ("0", "1"))


def test_a_folder_of_images_is_read_by_datasets_too(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / "pets" / split / name / f"{i}.jpg").write_bytes(picture(i, "JPEG"))
    task = load_task(DataConfig(source=f"hf:{tmp_path / 'pets'}"))
    assert task.classes == ("cat", "dog")
    assert task.test is not None
    assert len(task.test) == 6
    assert {path.suffix for path in task.test.images} == {".jpg"}


def test_datasets_that_are_no_task_are_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match=r"has image columns \[\] and label columns \['label'\]; expected one Image"):
        local_folder(f"hf:{tmp_path / 'text'}")
    datasets.DatasetDict({"test": dataset(0, 2)}).save_to_disk(tmp_path / "test-only")
    with pytest.raises(DataError, match="has the splits test; expected train among them"):
        local_folder(f"hf:{tmp_path / 'test-only'}")
    with pytest.raises(
        DataError, match=r"hf:nobody/nothing cannot be loaded: .*; expected a dataset's name on the Hub"
    ):
        local_folder("hf:nobody/nothing")


def shard(path, samples):
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for key, files in samples.items():
            tar.write({"__key__": key, **files})


def samples(start, stop):
    return {f"{i:04d}": {"png": picture(i), "cls": str(i % 2).encode()} for i in range(start, stop)}


def test_shards_are_a_task(tmp_path):
    for name, start, stop in (("train-0", 0, 4), ("train-1", 4, 6), ("val-0", 6, 8), ("test-0", 8, 11)):
        shard(tmp_path / "pets" / f"{name}.tar", samples(start, stop))
    (tmp_path / "pets" / "classes.txt").write_text("cat\ndog\n")
    for pattern in ("{split}-*.tar", "{split}-{0..1}.tar"):
        task = load_task(DataConfig(source=f"webdataset:{tmp_path}/pets/{pattern}"))
        assert (task.name, task.classes) == ("pets", ("cat", "dog"))
        assert task.test is not None
        assert [reds(split) for split in (task.train, task.val, task.test)] == [[*range(6)], [6, 7], [8, 9, 10]]
    task = load_task(DataConfig(source=f"webdataset:{tmp_path}/pets/train-*.tar", validation_fraction=0.5))
    assert (len(task.train), len(task.val), task.test) == (3, 3, None)


def test_shards_that_are_no_task_are_refused_whole(tmp_path, home):
    with pytest.raises(DataError, match=r"no file matches webdataset:.*none.tar; expected tar files"):
        local_folder(f"webdataset:{tmp_path}/none.tar")
    shard(tmp_path / "a" / "a.tar", samples(0, 2) | {"x": {"txt": b"1"}})
    with pytest.raises(DataError, match=r"sample x has txt; expected one image .* and cls \(in .*a.tar\)"):
        local_folder(f"webdataset:{tmp_path}/a/a.tar")
    shard(tmp_path / "a" / "b.tar", {"x": {"jpg": picture(1), "cls": b"cat"}})
    with pytest.raises(DataError, match="label 'cat' of x; expected a number"):
        local_folder(f"webdataset:{tmp_path}/a/b.tar")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_truncated_shard_is_named(tmp_path, home):
    shard(tmp_path / "a" / "a.tar", samples(0, 4))
    path = tmp_path / "a" / "a.tar"
    path.write_bytes(path.read_bytes()[:1800])
    with pytest.raises(DataError, match=r"a.tar is no whole tar file"):
        local_folder(f"webdataset:{path}")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"hf:x needs datasets, which is not installed. Install it: pip install 'promptvit"
    ):
        load_task(DataConfig(source="hf:x"))
