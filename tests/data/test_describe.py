import numpy as np
import pytest
from PIL import Image

from promptvit.data.config import DataConfig
from promptvit.data.describe import CLASSES, ROWS, THUMB, contact_sheet, describe_task, sheet_of_classes, sheet_of_tasks
from promptvit.data.load import load_task, load_tasks
from promptvit.data.task import Split, Task


def coloured(classes, count):
    """A task whose images have the grey value of their class."""
    labels = np.repeat(np.arange(classes), count)
    pixels = np.broadcast_to(labels[:, None, None, None], (len(labels), 4, 4, 3)).astype(np.uint8)
    split = Split(images=pixels, labels=labels)
    names = tuple(f"class {label}" for label in range(classes))
    return Task(name="grey", classes=names, train=split, val=split, test=None)


def test_figures_of_files(tmp_path):
    for name, count, form in (("cat", 3, "jpg"), ("dog", 1, "png")):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (4 + i, 6)).save(tmp_path / split / name / f"{i}.{form}")
    (tmp_path / "val" / "dog" / "0.png").write_bytes(b"no image")
    figures = describe_task(load_task(DataConfig(source=str(tmp_path))))
    assert (figures.name, figures.classes) == (tmp_path.name, 2)
    assert figures.formats == {"JPEG": 6, "PNG": 1, "unreadable": 1}
    assert figures.sizes == {"4 x 6": 3, "5 x 6": 2, "6 x 6": 2}
    assert (figures.distinct_sizes, figures.smallest, figures.largest) == (3, (4, 6), (6, 6))
    train = figures.splits["train"]
    assert (train.images, train.majority, train.largest, train.smallest, train.empty) == (
        4,
        0.75,
        ("cat", 3),
        ("dog", 1),
        0,
    )
    assert "test" not in figures.splits


def test_figures_of_pixels_and_of_classes_without_images():
    task = coloured(3, 2)
    test = task.train.select([0, 1, 2])
    figures = describe_task(Task(name="grey", classes=task.classes, train=task.train, val=task.val, test=test))
    assert figures.formats == {"pixels": 15}
    assert figures.sizes == {"4 x 4": 15}
    assert figures.splits["test"].empty == 1
    assert figures.splits["test"].smallest == ("class 1", 1)


@pytest.mark.parametrize(("classes", "columns"), [(2, 1), (ROWS + 1, 2), (CLASSES + 5, CLASSES // ROWS)])
def test_a_sheet_has_a_row_for_each_class(classes, columns):
    sheet = np.asarray(sheet_of_classes(coloured(classes, 3), count=2))
    one = np.asarray(sheet_of_classes(coloured(2, 3), count=2))
    assert sheet.shape[1] - 6 == columns * (one.shape[1] - 6)
    shown = min(classes, CLASSES)
    for label in range(0, shown, 7):
        at = np.all(sheet == label, axis=2)
        assert at.sum() >= 2 * THUMB * THUMB  # both thumbnails, all of it


def test_broken_images_are_grey_boxes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.png").write_bytes(b"no image")
    sheet = np.asarray(sheet_of_classes(load_task(DataConfig(source=str(tmp_path), validation_fraction=0.5))))
    assert np.all(sheet[32:, 160:] == 0xBB, axis=2).sum() == 2 * THUMB * THUMB


def test_long_names_are_cut_off():
    image = Image.new("RGB", (THUMB, THUMB), "red")
    sheet = contact_sheet("title", [("a name that has no end " * 9, "note", [image])], 1)
    assert sheet.getpixel((150 + 12, 32 + 10)) == (255, 0, 0)  # not written over


def test_a_folder_of_tasks_is_a_sheet_of_tasks(make_task, tmp_path):
    for name in ("one", "two", "three"):
        make_task(tmp_path / name)
    name, tasks = load_tasks(str(tmp_path))
    assert [task.name for task in tasks] == ["one", "three", "two"]
    assert sheet_of_tasks(name, tasks).height == 32 + 3 * (THUMB + 6) + 6
    assert [task.name for task in load_tasks(str(tmp_path / "two"))[1]] == ["two"]
    assert load_tasks("digits")[0] == "digits"
