import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from promptvit.data.catalog import FGVC
from promptvit.data.check import problems
from promptvit.data.config import DataConfig
from promptvit.data.fgvc import read_splits
from promptvit.data.load import load_task
from promptvit.data.prepare import prepare
from promptvit.errors import DataError

INFO = {task.name: task for task in FGVC}
NUMBERS = iter(range(10_000))


def draw(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(next(NUMBERS)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)


def birds(folder):
    """CUB and NABirds: ids of images, and of classes that leave some out."""
    rows = [
        (f"id-{i}", f"{c}.Bird_{c}/bird {i}.png", c, int(i % 4 != 3)) for i, c in enumerate([3, 7, 12] * 40, start=1)
    ]
    (folder / "images").mkdir(parents=True)
    draw(*(folder / "images" / path for _, path, _, _ in rows))
    for name, column in (("images", 1), ("image_class_labels", 2), ("train_test_split", 3)):
        (folder / f"{name}.txt").write_text("\n".join(f"{row[0]} {row[column]}" for row in rows) + "\n")
    (folder / "classes.txt").write_text("".join(f"{i} Bird number {i}\n" for i in range(20)))


def flowers(folder):
    labels = np.array([1, 2, 3] * 10)
    draw(*(folder / "jpg" / f"image_{i:05d}.jpg" for i in range(1, 31)))
    savemat(folder / "imagelabels.mat", {"labels": labels})
    parts = {"trnid": np.arange(1, 7), "valid": np.arange(7, 13), "tstid": np.arange(13, 31)}
    savemat(folder / "setid.mat", parts)


def dogs(folder):
    for split, start, stop in (("train", 0, 40), ("test", 40, 60)):
        paths = [f"n{i % 2}-Dog_{i % 2}/{i}.jpg" for i in range(start, stop)]
        draw(*(folder / "Images" / path for path in paths))
        (folder / "lists").mkdir(exist_ok=True)
        cells = np.array([[path] for path in paths], dtype=object)
        labels = [[i % 2 + 1] for i in range(start, stop)]
        savemat(folder / "lists" / f"{split}_list.mat", {"file_list": cells, "labels": labels})


def cars(folder):
    kinds = [("relative_im_path", object), ("class", object), ("test", object)]
    rows = [(f"car_ims/{i:06d}.jpg", i % 2 + 1, int(i > 40)) for i in range(1, 61)]
    draw(*(folder / path for path, _, _ in rows))
    annotations = np.array([rows], dtype=kinds)
    savemat(
        folder / "cars_annos.mat", {"annotations": annotations, "class_names": np.array([["Ford", "Fiat"]], object)}
    )


MAKERS = {"CUB_200_2011": birds, "nabirds": birds, "OxfordFlowers": flowers, "StanfordDogs": dogs, "cars": cars}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All five as their authors publish them, small."""
    root = tmp_path_factory.mktemp("fgvc")
    for name, make in MAKERS.items():
        make(root / name)
    return root


def test_the_sets_as_published_become_tasks(root, tmp_path):
    done = prepare("fgvc", str(root), tmp_path / "out", allowed=("sizes", "classes"))
    assert done.state == "prepared"
    counts = {name: task["counts"] for name, task in done.manifest["tasks"].items()}
    assert counts == {
        "cub": {"train": 81, "val": 9, "test": 30},
        "nabirds": {"train": 81, "val": 9, "test": 30},
        "oxford_flowers": {"train": 6, "val": 6, "test": 18},
        "stanford_dogs": {"train": 36, "val": 4, "test": 20},
        "stanford_cars": {"train": 36, "val": 4, "test": 20},
    }
    origins = {name: task["splits"] for name, task in done.manifest["tasks"].items()}
    assert "ours: a seeded tenth of train (seed 0)" in origins["cub"]
    assert "ours" not in origins["oxford_flowers"]
    bird, car = (load_task(DataConfig(source=str(tmp_path / "out" / name))) for name in ("cub", "stanford_cars"))
    assert bird.classes == ("Bird number 3", "Bird number 7", "Bird number 12")
    assert Counter(bird.val.labels.tolist()) == {0: 3, 1: 3, 2: 3}
    for image, label in zip(bird.train.images, bird.train.labels, strict=True):
        assert f"/{(3, 7, 12)[label]}.Bird" in str(image)
    assert car.classes == ("Ford", "Fiat")
    assert car.test is not None
    assert [path.name for path in car.test.images] == [f"{i:06d}.jpg" for i in range(41, 61)]
    assert car.test.labels.tolist() == [1, 0] * 10
    again = prepare("fgvc", str(root), tmp_path / "again", allowed=("sizes", "classes"))
    assert again.manifest == done.manifest


def test_json_splits_win_and_may_lie_elsewhere(root, tmp_path):
    rows = {f"3.Bird_3/bird {i}.png": 10 for i in (1, 4, 7)} | {f"7.Bird_7/bird {i}.png": "9" for i in (2, 5, 8)}
    for folder in ("CUB", "other"):
        (tmp_path / "splits" / folder).mkdir(parents=True)
    for split, part in (("train", slice(0, 4)), ("val", slice(4, 5)), ("test", slice(5, 6))):
        text = json.dumps(dict(list(rows.items())[part]))
        (tmp_path / "splits" / "CUB" / f"{split}.json").write_text(text)
    found = read_splits(root / "CUB_200_2011", INFO["cub"], tmp_path / "splits")
    assert found.origin == "JSON splits"
    assert found.root == root / "CUB_200_2011" / "images"
    assert {split: len(part) for split, part in found.rows.items()} == {"train": 4, "val": 1, "test": 1}
    assert found.rows["train"][0] == ("3.Bird_3/bird 1.png", 1)  # 9 comes before 10
    assert found.classes == ("9", "10")
    (tmp_path / "splits" / "CUB" / "val.json").unlink()
    found = read_splits(root / "CUB_200_2011", INFO["cub"], tmp_path / "splits" / "CUB")
    assert {split: len(part) for split, part in found.rows.items()} == {"train": 3, "val": 1, "test": 1}
    assert "ours" in found.origin


def test_what_has_no_splits_is_refused(root, tmp_path):
    (tmp_path / "StanfordDogs" / "Images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no splits of stanford_dogs; expected train.json, .*own train_list.mat"):
        read_splits(tmp_path / "StanfordDogs", INFO["stanford_dogs"])
    (tmp_path / "StanfordDogs" / "train.json").write_text("[1]")
    with pytest.raises(DataError, match=r"train.json holds something else; expected a JSON object \{path: class id\}"):
        read_splits(tmp_path / "StanfordDogs", INFO["stanford_dogs"])
    (tmp_path / "StanfordDogs" / "train.json").unlink()
    (tmp_path / "StanfordDogs" / "train_list.mat").write_text("no file of Matlab")
    with pytest.raises(DataError, match=r"train_list.mat or a file beside it cannot be read"):
        read_splits(tmp_path / "StanfordDogs", INFO["stanford_dogs"])


def test_images_that_are_missing_are_named_with_the_list(root, tmp_path):
    (tmp_path / "mine" / "cub").mkdir(parents=True)
    for path in (root / "CUB_200_2011").glob("*.txt"):
        (tmp_path / "mine" / "cub" / path.name).write_text(path.read_text())
    (tmp_path / "mine" / "cub" / "images").mkdir()
    done = prepare("fgvc", str(tmp_path / "mine"), tmp_path / "out", allowed=("sizes", "classes", "tasks"))
    assert done.state == "refused"
    assert str(problems(done.findings)[0]).startswith("cub/train.txt:1: no image images/3.Bird_3/bird 1.png (and 80")
