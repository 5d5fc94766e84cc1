import shutil

import pytest
from PIL import Image

from promptvit.data.catalog import TaskInfo
from promptvit.data.check import KINDS, allow, check, check_task, problems

INFO = TaskInfo(name="small", group="natural", classes=2, train=4, val=2, test=3)


@pytest.fixture
def task(make_task, tmp_path):
    return make_task(tmp_path / "small")


def only(findings):
    """The one problem, as kind and text."""
    found = problems(findings)
    assert len(found) == 1, [str(each) for each in found]
    return found[0].kind, str(found[0])


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_whole_task_has_no_findings(task):
    assert check_task(task, INFO) == ()
    assert check_task(task, None) == ()


def test_the_shared_tasks_have_no_problems(mini_vtab):
    found = check_task(mini_vtab / "pneumonia", None)
    assert problems(found) == ()
    # so it is in the copy that is shared
    assert [str(each) for each in found] == [
        "pneumonia/val200.txt:132: images/val200/000131.png is the same picture as train800.txt:656"
    ]


@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        ("000001.png 1", "000001.png 2", "labels", "label 2 of images/test/000001.png; expected 0 to 1"),
        ("000001.png 1", "000001.png one", "lists", "label 'one' of images/test/000001.png; expected an integer"),
        ("000001.png 1", "000001.png 1234567", "lists", "expected an integer below a million"),
        ("000001.png 1", "\0.png 1", "unreadable", "embedded null byte"),
        ("000001.png 1", "000001.png", "lists", "line 'images/test/000001.png'; expected 'path label'"),
        ("test/000001", "test/gone", "missing", "no image images/test/gone.png"),
        ("test/000001", "test/000000", "lists", "images/test/000000.png is listed 2 times in test"),
        ("test/000001", "train800/000003", "duplicates", "train800/000003.png is the same picture as train800.txt:4"),
    ],
)
def test_a_line_that_is_wrong_is_named(task, old, new, kind, message):
    change(task / "test.txt", old, new)
    found, text = only(check_task(task, None))
    assert found == kind
    assert message in text
    assert text.startswith("small/test.txt:1:" if "2 times" in text else "small/test.txt:2:")


def test_an_image_that_cannot_be_decoded_is_named(task):
    path = task / "images" / "val200" / "000001.png"
    path.write_bytes(path.read_bytes()[:60])
    (task / "train800val200.txt").unlink()
    kind, text = only(check_task(task, None))
    assert kind == "unreadable"
    assert text.startswith("small/val200.txt:2: images/val200/000001.png cannot be decoded: ")


def test_the_same_picture_in_another_file_is_found_by_its_pixels(task):
    with Image.open(task / "images" / "train800" / "000001.png") as image:
        image.convert("RGBA").save(task / "images" / "test" / "000000.png", compress_level=0)
    kind, text = only(check_task(task, INFO))
    assert kind == "duplicates"
    assert "test.txt:1" in text
    assert "the same picture as train800.txt:2, with label 0 in place of 1" in text
    twins = TaskInfo(name="small", group="natural", classes=2, train=4, val=2, test=3, twins="drawn twice")
    found = check_task(task, twins)
    assert problems(found) == ()
    assert str(found[0]).endswith("in place of 1: drawn twice")


def test_repeats_outside_the_test_images_are_notes(task):
    shutil.copy(task / "images" / "train800" / "000000.png", task / "images" / "val200" / "000000.png")
    shutil.copy(task / "images" / "train800" / "000001.png", task / "images" / "train800" / "000003.png")
    found = check_task(task, INFO)
    assert problems(found) == ()
    assert [each.where for each in found] == ["train800.txt:4", "val200.txt:1"]


def test_a_joint_list_may_have_copies_but_no_others(task):
    for split in ("train800", "val200"):
        for path in sorted((task / "images" / split).iterdir()):
            copies = task / "images" / "train800val200"
            copies.mkdir(exist_ok=True)
            shutil.copy(path, copies / f"{split}-{path.name}")
    joint = task / "train800val200.txt"
    joint.write_text(
        joint.read_text()
        .replace("800/", "800val200/train800-")
        .replace("images/val200/", "images/train800val200/val200-")
    )
    assert check_task(task, INFO) == ()
    change(task / "val200.txt", "000001.png 1", "000001.png 0")  # a wrong label that is in range
    found = problems(check_task(task, INFO))
    assert {(each.kind, each.where) for each in found} == {("union", "train800val200.txt:6"), ("union", "val200.txt:2")}


def test_what_is_known_of_a_task_is_held_against_it(task):
    (task / "classes.txt").write_text("a\nb\nc\n")
    other = TaskInfo(name="small", group="natural", classes=4, train=4, val=3, test=3)
    assert [str(each) for each in check_task(task, other)] == [
        "small/val200.txt: 2 images; expected 3 of val",
        "small/classes.txt: 3 classes; expected 4",
    ]
    (task / "classes.txt").unlink()
    found = check_task(task, other)
    assert "no classes.txt, and no training image of class 2 or above" in str(found[1])
    assert problems(allow(found, ("classes", "sizes"))) == ()
    assert {each.kind for each in found} <= set(KINDS)
    (task / "test.txt").unlink()
    assert only(check_task(task, INFO)) == ("lists", "small: no test images")
    assert [each.severity for each in check_task(task, None)] == ["note"]


def test_what_was_compressed_again_is_a_note(make_task, tmp_path):
    task = make_task(tmp_path / "small", suffix="jpg")  # Pillow's quality is 75
    (found,) = check_task(task, INFO)
    assert (found.severity, found.kind) == ("note", "jpeg")
    assert "9 of 9 images are JPEG of quality 75" in found.text
    assert check_task(task, None) == ()


def test_many_of_a_kind_are_one_finding(task):
    shutil.rmtree(task / "images" / "test")
    found = problems(check_task(task, None))
    assert [str(each) for each in found] == ["small/test.txt:1: no image images/test/000000.png (and 2 more)"]


def test_image_folders_are_checked_too(make_task, tmp_path):
    make_task(tmp_path / "lists", train=6)
    for index, path in enumerate(sorted((tmp_path / "lists" / "images" / "train800").iterdir())):
        for split, there in (("train", index < 4), ("test", index > 3)):
            folder = tmp_path / "mine" / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            if there:
                shutil.copy(path, folder / path.name)
    assert problems(check_task(tmp_path / "mine", None)) == ()
    shutil.copy(tmp_path / "mine" / "train" / "a" / "000002.png", tmp_path / "mine" / "test" / "a")
    kind, text = only(check_task(tmp_path / "mine", None))
    assert kind == "duplicates"
    assert text == "mine/test/a/000002.png: test/a/000002.png is the same picture as train/a/000002.png"


def test_tasks_that_are_missing_are_counted(make_task, tmp_path):
    for name in ("Natural/CIFAR100", "mine"):
        make_task(tmp_path / name)
    seen = set()
    found = check(str(tmp_path), lambda what, done, total: seen.add((what, done, total)))
    assert ("checking cifar", 9, 9) in seen
    missing = [each for each in problems(found) if each.kind == "tasks"]
    assert len(missing) == 1
    assert str(missing[0]).startswith(
        "1 of 19 tasks of vtab-1k are there, without caltech101, dtd, oxford_flowers102, "
    )
    assert "mine: not a task of vtab-1k" in [str(each) for each in found if each.severity == "note"]
    sizes = [each for each in problems(found) if each.task == "cifar"]
    assert {each.kind for each in sizes} == {"sizes", "classes"}
    alone = check(str(tmp_path / "Natural" / "CIFAR100"), lambda *_: None)
    assert {each.kind for each in problems(alone)} == {"sizes", "classes"}
    assert check("digits", lambda *_: None) == ()  # built in
