import pytest
from PIL import Image

from promptvit.data.folder import read_folder
from promptvit.errors import DataError


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / name)


def test_class_folders_become_a_task_with_held_out_validation(tmp_path):
    make(tmp_path, *(f"{name}/{i}.png" for name in ("dog", "cat") for i in range(5)))
    task = read_folder(tmp_path, validation_fraction=0.2)
    assert task.classes == ("cat", "dog")
    assert (len(task.train), len(task.val), task.test) == (8, 2, None)
    assert task.name == tmp_path.name
    for path, label in zip(task.train.images, task.train.labels, strict=True):
        assert path.parent.name == task.classes[label]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_share_the_mapping_of_train(tmp_path, val):
    make(tmp_path, "train/b/0.png", "train/a/0.png", "train/c/0.png", f"{val}/c/0.png", "test/b/0.png")
    task = read_folder(tmp_path)
    assert task.classes == ("a", "b", "c")
    assert task.val.labels.tolist() == [2]
    assert task.test is not None
    assert task.test.labels.tolist() == [1]


def test_images_are_found_deep_and_in_any_case_and_hidden_or_other_files_are_not(tmp_path):
    make(tmp_path, "train/a/x/y/0.JPG", "train/a/1.Png", "train/b/0.gif", "val/a/0.png")
    make(tmp_path, "train/a/.hidden.png", "train/a/.cache/0.png", "train/.git/0.png")
    (tmp_path / "train/a/notes.txt").write_text("no image")
    task = read_folder(tmp_path)
    assert [path.name for path in task.train.images] == ["1.Png", "0.JPG", "0.gif"]


def test_other_folders_beside_the_splits_are_not_classes(tmp_path):
    make(tmp_path, "train/b/0.png", "train/a/0.png", "val/a/0.png", "annotations/0.png")
    assert read_folder(tmp_path).classes == ("a", "b")


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, *(f"{name}/{i}.png" for name in ("train", "bus") for i in range(2)))
    assert read_folder(tmp_path).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png"], "0 class folders; expected at least 2"),
        (["a/0.png"], "1 class folders; expected at least 2"),
        (["train/0.png", "test/0.png"], "0 class folders"),
        (["val/a/0.png", "test/a/0.png"], "no train folder beside test, val"),
        (["train/a/0.png", "train/b/0.png", "val/x/0.png"], "class 'x' has no training images"),
        (["train/a/0.png", "train/b/0.png", "test/x/0.png"], "class 'x' has no training images"),
        (["train/a/0.png", "train/b/0.png", "val/a/0.png", "valid/a/0.png"], "folders val and valid"),
    ],
)
def test_a_folder_that_cannot_be_a_task_is_refused(tmp_path, names, message):
    make(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")
    for name in ("a", "b"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=r"no images; expected .bmp"):
        read_folder(tmp_path / "empty")
    make(tmp_path, "empty/a/0.png")
    with pytest.raises(DataError, match="class folders without images: b"):
        read_folder(tmp_path / "empty")
