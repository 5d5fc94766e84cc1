import json

import pytest

from promptvit.data.collection import data_home, open_collection
from promptvit.errors import DataError


def add(root, *names, group=""):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "train800.txt").write_text("images/0.png 0\n")
        if group:
            (root / name / "about.json").write_text(json.dumps({"group": group}))


def test_aliases_one_or_two_levels_below_come_in_the_catalogs_order(tmp_path):
    add(tmp_path, "zebras", "Structured/dSpr-Loc", "Natural/CIFAR100", "eurosat")
    (tmp_path / ".trash").mkdir()
    add(tmp_path / ".trash", "cifar")
    found = open_collection(str(tmp_path))
    assert [(task.name, task.group) for task in found.tasks] == [
        ("cifar", "natural"),
        ("eurosat", "specialized"),
        ("dsprites_loc", "structured"),
        ("zebras", ""),
    ]
    assert found.tasks[0].folder == tmp_path / "Natural" / "CIFAR100"
    assert (found.name, found.benchmark) == (tmp_path.name, "vtab-1k")
    info = found.info(found.tasks[0])
    assert info is not None
    assert info.classes == 100


def test_tasks_of_no_benchmark_say_their_group_themselves(tmp_path):
    add(tmp_path, "b", "a", group="natural")
    (tmp_path / "a" / "about.json").write_text("no JSON")
    found = open_collection(str(tmp_path))
    assert [(task.name, task.group) for task in found.tasks] == [("a", ""), ("b", "natural")]
    assert found.benchmark is None
    assert found.info(found.tasks[0]) is None


def test_one_task_is_a_collection_too(tmp_path, monkeypatch):
    add(tmp_path, "pets")
    monkeypatch.chdir(tmp_path)
    found = open_collection("pets")
    assert [(task.name, task.folder) for task in found.tasks] == [("oxford_iiit_pet", tmp_path / "pets")]


def test_benchmarks_are_found_where_they_were_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTVIT_HOME", str(tmp_path))
    assert data_home() == tmp_path
    with pytest.raises(DataError, match="Prepare it: promptvit data prepare fgvc"):
        open_collection("fgvc")
    add(tmp_path / "fgvc", "oxford_flowers")
    assert open_collection("fgvc").tasks[0].name == "oxford_flowers"
    monkeypatch.delenv("PROMPTVIT_HOME")
    assert data_home().parts[-2:] == (".cache", "promptvit")


def test_what_is_no_collection_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere; expected vtab-1k, fgvc, or a folder"):
        open_collection(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no task in .*promptvit data prepare vtab-1k --from"):
        open_collection(str(tmp_path))


def test_a_task_that_is_there_twice_is_refused(tmp_path):
    add(tmp_path, "cifar", "Natural/cifar100")
    with pytest.raises(DataError, match=r"two folders for the task cifar: .*cifar100 and .*cifar"):
        open_collection(str(tmp_path))
