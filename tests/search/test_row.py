"""Rows whose runs start from another run: full, then prompts; linear, then full."""

import dataclasses

import pytest
import yaml
from safetensors.torch import load_file

from promptvit.errors import ConfigError
from promptvit.search.keys import run_key
from promptvit.search.plan import StudyPlan
from promptvit.search.row import First, Row
from promptvit.search.study import Study


def plan_of(two_tasks, small_protocol, **rows):
    return StudyPlan.from_dict(
        {
            "name": "chains",
            "data": str(two_tasks),
            "tasks": ["low"],
            "rows": rows,
            "protocol": dataclasses.replace(small_protocol, seeds=(3,)).to_dict(),
            "device": "cpu",
        }
    )


CHAIN = {"name": "vpt-deep", "length": 1, "first": {"name": "full", "settings": {"train.epochs": 1}}}


@pytest.mark.parametrize("workers", ["in-order", "local:2"])
def test_runs_start_from_the_run_before_on_the_same_images(two_tasks, small_protocol, tmp_path, workers):
    plan = plan_of(two_tasks, small_protocol, chain=CHAIN)
    (cell,) = plan.cells()
    with Study(plan, tmp_path / "study") as study:
        (done,) = study.run(workers).cells
    assert len(done.points) == 2
    assert len(done.finals) == 1
    assert not done.failures
    firsts = {
        final: run_key(cell.first(seed=small_protocol.search_seed if not final else 3, final=final))
        for final in (False, True)
    }
    folders = [path.name for path in (tmp_path / "study" / "first").iterdir() if path.is_dir()]
    assert sorted(folders) == sorted(firsts.values())  # the search shares one
    config = yaml.safe_load((tmp_path / "study" / done.finals[0].folder / "config.yaml").read_text())
    before = tmp_path / "study" / "first" / firsts[True]
    assert config["backbone"]["tuned"] == config["train"]["head_from"] == str(before)
    assert yaml.safe_load((before / "config.yaml").read_text())["data"]["train_on"] == "train+val"
    tensors = load_file(tmp_path / "study" / done.finals[0].folder / "delta" / "delta.safetensors")
    assert not any(name.startswith("backbone.") for name in tensors)


def test_linear_then_full_keeps_the_head_alone(two_tasks, small_protocol):
    row = {"name": "full", "first": {"name": "linear"}}
    (cell,) = plan_of(two_tasks, small_protocol, row=row).cells()
    config = cell.config(cell.points()[0], seed=0, final=False)
    assert config.backbone.tuned is None
    assert config.train.head_from
    anew = {"name": "vpt-deep", "first": {"name": "full", "head": "anew"}}
    (cell,) = plan_of(two_tasks, small_protocol, row=anew).cells()
    config = cell.config(cell.points()[0], seed=0, final=False)
    assert config.backbone.tuned
    assert config.train.head_from is None


def test_what_comes_first_is_part_of_what_a_run_is(two_tasks, small_protocol, tmp_path, monkeypatch):
    def key(first):
        row = {"name": "vpt-deep", **({"first": first} if first else {})}
        (cell,) = plan_of(two_tasks, small_protocol, row=row).cells()
        return run_key(cell.config(cell.points()[0], seed=0, final=False))

    settings = [None, {"name": "full"}, {"name": "full", "settings": {"train.epochs": 1}}, {"name": "bias"}]
    keys = [key(first) for first in settings]
    assert len(set(keys)) == 4
    monkeypatch.chdir(tmp_path)
    assert [key(first) for first in settings] == keys


def test_a_plan_with_chains_comes_back_from_its_file(two_tasks, small_protocol):
    plan = plan_of(two_tasks, small_protocol, chain=CHAIN, plain={"name": "linear"})
    assert StudyPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"name": "lora"}, "first lora: it has parameters beside the backbone's"),
        ({"name": "vpt-deep"}, "first vpt-deep: it has parameters beside"),
        ({"name": "linear", "head": "anew"}, "nothing of it would be left"),
        ({"name": "full", "head": "old"}, "head='old': expected keep or anew"),
        ({"name": "full", "settings": {"train.seed": 1}}, "it is decided by"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_chain_that_means_nothing_is_refused(two_tasks, small_protocol, first, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(two_tasks, small_protocol, row={"name": "full", "first": first})


def test_a_pruned_row_is_made_from_one_run():
    first = First(fields={"name": "full"})
    row = Row(label="row", fields={"name": "e2vpt"}, first=first)
    with pytest.raises(ConfigError, match="first with prune"):
        dataclasses.replace(row, prune={})
