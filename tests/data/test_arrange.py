import pytest

from promptvit.data.arrange import arrange, find_tasks
from promptvit.data.catalog import find_task
from promptvit.errors import DataError


def test_a_copy_never_writes_through_a_link_and_a_link_takes_its_place(make_task, tmp_path):
    source, target = make_task(tmp_path / "from" / "pets"), tmp_path / "to" / "oxford_iiit_pet"
    info = find_task("pets", "vtab-1k")
    first = "images/test/000000.png"
    arrange(source, target, info, copy=False)
    assert (target / "images").is_symlink()
    arrange(source, target, info, copy=True)
    assert not (target / "images").is_symlink()
    before = (target / first).stat().st_ino
    (target / "images" / "test" / "000001.png").write_bytes(b"half")
    arrange(source, target, info, copy=True)
    assert (target / first).stat().st_ino == before  # whole: not copied again
    assert (target / "images/test/000001.png").read_bytes() == (source / "images/test/000001.png").read_bytes()
    arrange(source, target, info, copy=False)
    assert (target / "images").is_symlink()
    assert (source / first).is_file()
    assert not (source / "classes.txt").exists()  # the source stays as it was
    assert len((target / "classes.txt").read_text().split()) == 37


def test_a_copy_has_what_lies_behind_links_and_no_circles(make_task, tmp_path):
    source, target = make_task(tmp_path / "from" / "dtd"), tmp_path / "to" / "dtd"
    (source / "images" / "test").rename(tmp_path / "elsewhere")
    (source / "images" / "test").symlink_to(tmp_path / "elsewhere")
    (source / "images" / "round").symlink_to(source)
    arrange(source, target, None, copy=True)
    assert (target / "images/test/000001.png").is_file()
    assert not (target / "images" / "test").is_symlink()
    assert not (target / "images" / "round").exists()


def test_links_name_no_place_if_both_can_be_moved_together(make_task, tmp_path):
    source = make_task(tmp_path / "all" / ".source" / "deep" / "dtd")
    arrange(source, tmp_path / "all" / "dtd", None, copy=False)
    (tmp_path / "all").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "dtd" / "images" / "test" / "000000.png").is_file()


def test_tasks_are_found_below_a_lone_folder_and_only_once(make_task, tmp_path):
    make_task(tmp_path / "a" / "b" / "Natural" / "CIFAR100")
    make_task(tmp_path / "a" / "b" / "mine")
    found = find_tasks(tmp_path, "vtab-1k")
    assert {name: folder.name for name, folder in found.items()} == {"cifar": "CIFAR100", "mine": "mine"}
    make_task(tmp_path / "a" / "b" / "cifar")
    with pytest.raises(DataError, match=r"two folders for the task cifar: Natural/CIFAR100 and cifar"):
        find_tasks(tmp_path, "vtab-1k")
    assert find_tasks(tmp_path / "a" / "b" / "mine" / "images" / "test", "vtab-1k") == {}
