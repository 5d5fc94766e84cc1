import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptvit.data.lists import has_lists, read_lists
from promptvit.errors import DataError


@pytest.fixture
def root(tmp_path):
    """A folder with images 0.png to 3.png, one in a folder with a space in its name, and no lists yet."""
    for name in ("0.png", "1.png", "2.png", "my images/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["bccd_cells", "cifar10", "grocery", "pneumonia", "sprites"])
def test_the_shared_tasks_are_read_whole(name, mini_vtab):
    about = json.loads((mini_vtab / name / "about.json").read_text())
    task = read_lists(mini_vtab / name)
    assert task.name == name
    assert task.test is not None
    assert {"train": len(task.train), "val": len(task.val), "test": len(task.test)} == about["counts"]
    assert len(task.classes) == about["classes"]
    both = (mini_vtab / name / "train800val200.txt").read_text().split("\n")
    joined = task.train.join(task.val)
    listed = zip(joined.images, joined.labels, strict=True)
    mine = {f"{Path(image).relative_to(mini_vtab / name)} {label}" for image, label in listed}
    assert mine == {line for line in both if line}


def test_plain_lists_spaces_and_class_names(root):
    (root / "train.txt").write_text("0.png 0\n\n1.png 1\r\nmy images/3.png 1\n")
    (root / "val.txt").write_text("2.png 0\n")
    (root / "classes.txt").write_text("22.5 deg\nnew york\n\n")
    task = read_lists(root)
    assert task.classes == ("22.5 deg", "new york")
    assert task.train.images == (root / "0.png", root / "1.png", root / "my images/3.png")
    assert task.train.labels.dtype == np.int64
    assert (task.train.labels.tolist(), task.val.labels.tolist(), task.test) == ([0, 1, 1], [0], None)


def test_without_names_and_val_list_classes_are_numbers_and_images_are_held_out(root):
    (root / "train.txt").write_text("\ufeff0.png 0\n1.png 0\n2.png 1\nmy images/3.png 1\n", encoding="utf-8")
    task = read_lists(root, validation_fraction=0.5)
    assert task.classes == ("0", "1")
    assert (len(task.train), len(task.val)) == (2, 2)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("0.png 0\n1.png\n", r"line '1.png'; expected 'path label' \(in .*train.txt:2\)"),
        ("0.png zero\n", r"label 'zero' of 0.png; expected an integer below a million \(in .*train.txt:1\)"),
        ("0.png 1_0\n", "label '1_0'"),
        ("0.png 0\n\n1.png -1\n", r"label -1 of 1.png; expected 0 to .*train.txt:3"),
        ("0.png 0\ngone.png 1\n", r"no image .*gone.png \(in .*train.txt:2\)"),
        ("\n \n", "train.txt lists no images"),
        ("0.png 0\n1.png 0\n", "1 class; expected at least 2"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_with_its_line(root, train, message):
    (root / "train.txt").write_text(train)
    with pytest.raises(DataError, match=message):
        read_lists(root)


def test_labels_beyond_the_known_classes_are_refused(root):
    (root / "train.txt").write_text("0.png 0\n1.png 1\n")
    (root / "test.txt").write_text("2.png 2\n")
    with pytest.raises(
        DataError, match=r"label 2 of 2.png; expected 0 to 1, from the labels of train.txt .*test.txt:1"
    ):
        read_lists(root)
    (root / "classes.txt").write_text("a\nb\nc\n")
    (root / "test.txt").write_text("2.png 3\n")
    with pytest.raises(DataError, match=r"expected 0 to 2, from classes.txt"):
        read_lists(root)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (b"a\n\nb\n", r"an empty class name.*classes.txt:2"),
        (b"a\na\n", "given twice: a"),
        (b"\xff\xfe\n", "not UTF-8 text"),
    ],
)
def test_bad_class_names_are_refused(root, classes, message):
    (root / "train.txt").write_text("0.png 0\n1.png 1\n2.png 0\n")
    (root / "classes.txt").write_bytes(classes)
    with pytest.raises(DataError, match=message):
        read_lists(root)


def test_a_folder_without_lists_is_refused(root):
    assert not has_lists(root)
    with pytest.raises(DataError, match=r"no training list in .*expected train800.txt or train.txt"):
        read_lists(root)
