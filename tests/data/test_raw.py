import json

import numpy as np
import pytest
from PIL import Image

from promptvit.data.check import check_task, problems
from promptvit.data.config import DataConfig
from promptvit.data.decode import decode
from promptvit.data.load import load_task
from promptvit.data.raw import SETS, prepare_raw
from promptvit.errors import DataError, UnknownNameError


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """EuroSAT and DTD as torchvision has them, with 1,100 small images."""
    root = tmp_path_factory.mktemp("raw")
    for i in range(1100):
        draw(root / "eurosat" / "2750" / ("Forest", "River")[i % 2] / f"{i:04d}.jpg", i)
    dtd = root / "dtd" / "dtd"
    (dtd / "labels").mkdir(parents=True)
    parts = {"train": range(1000), "test": range(1000, 1100)}
    for split, numbers in parts.items():
        names = [f"{('banded', 'dotted')[i % 2]}/{i:04d}.jpg" for i in numbers]
        (dtd / "labels" / f"{split}1.txt").write_text("\n".join(names))
        for name, i in zip(names, numbers, strict=True):
            draw(dtd / "images" / name, i)
    return root


def test_a_set_without_a_test_split_is_drawn_apart(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTVIT_HOME", str(tmp_path))
    folder = prepare_raw("eurosat", root, test=60)
    assert folder == tmp_path / "raw" / "eurosat-seeded0"
    assert problems(check_task(folder, None)) == ()  # no image twice
    task = load_task(DataConfig(source=str(folder)))
    assert task.test is not None
    assert [len(split) for split in (task.train, task.val, task.test)] == [800, 200, 60]
    assert task.classes == ("Forest", "River")
    about = json.loads((folder / "about.json").read_text())
    assert about == {
        "group": "specialized",
        "provenance": "seeded subset (seed 0) of EuroSAT in torchvision, not VTAB's",
    }
    before = (folder / "train.txt").stat().st_ino
    assert prepare_raw("eurosat", root).joinpath("train.txt").stat().st_ino == before
    other, again = prepare_raw("eurosat", root, seed=1), prepare_raw("eurosat", root, tmp_path / "again", test=60)
    first = "images/train/000000.png"
    assert (again / first).read_bytes() == (folder / first).read_bytes() != (other / first).read_bytes()


def test_a_set_with_a_test_split_keeps_it_and_its_pixels(root, tmp_path):
    folder = prepare_raw("dtd", root, tmp_path / "dtd", seed=3)
    task = load_task(DataConfig(source=str(folder)))
    assert task.test is not None
    assert [len(split) for split in (task.train, task.val, task.test)] == [800, 200, 100]
    at = np.random.default_rng(3).permutation(1000)[0]
    original = decode(root / "dtd" / "dtd" / "images" / f"{('banded', 'dotted')[at % 2]}/{at:04d}.jpg")
    assert np.array_equal(np.asarray(decode(task.train.images[0])), np.asarray(original))
    assert task.train.labels[0] == at % 2


def test_what_is_not_there_is_refused_with_what_to_do(root, tmp_path):
    with pytest.raises(DataError, match=r"CIFAR100 cannot be read in .*: Dataset not found.*--download"):
        prepare_raw("cifar100", tmp_path, tmp_path / "out")
    with pytest.raises(UnknownNameError, match="Did you mean cifar100"):
        prepare_raw("cifar1000", root)
    for i in range(10):
        draw(tmp_path / "eurosat" / "2750" / "ab"[i % 2] / f"{i}.jpg", i)
    with pytest.raises(DataError, match="10 images of eurosat; expected more than 1000"):
        prepare_raw("eurosat", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_one_of_torchvisions(name, tmp_path):
    with pytest.raises(DataError, match=r"cannot be read in .*: (?!.*argument)"):
        prepare_raw(name, tmp_path, tmp_path / "out")
