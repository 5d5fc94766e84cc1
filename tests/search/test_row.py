"""Rows with a grid of their own, and whose runs start from another run: full, then prompts; linear, then full."""

import dataclasses
import json

import pytest
import yaml
from safetensors.torch import load_file

from promptvit.errors import ConfigError
from promptvit.search.keys import run_key
from promptvit.search.plan import SearchConfig, StudyPlan
from promptvit.search.protocol import Recipe
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.results import Results
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
    assert done.first == {"name": "full", "settings": {"train.epochs": 1}, "head": "keep"}
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


RATE, DECAY, PULL = "train.learning_rate", "train.weight_decay", "train.start_decay"


def cell_of(two_tasks, protocol, row):
    (cell,) = plan_of(two_tasks, protocol, row=row).cells()
    return cell


def test_a_grid_of_a_row_joins_that_of_its_protocol(two_tasks, small_protocol):
    plain, pulled = (
        cell_of(two_tasks, small_protocol, {"name": "full", **grid})
        for grid in ({}, {"grid": {PULL: [1.0, 10], "method.drop_path": 0.1}})
    )
    assert plain.points() == [{RATE: 0.02}, {RATE: 0.05}]
    assert pulled.points() == [
        {RATE: rate, PULL: pull, "method.drop_path": 0.1} for rate in (0.02, 0.05) for pull in (1.0, 10)
    ]
    configs = [pulled.config(point, seed=0, final=False) for point in pulled.points()]
    assert [config.train.start_decay for config in configs] == [1.0, 10.0, 1.0, 10.0]
    assert len({run_key(config) for config in configs}) == 4


@pytest.mark.parametrize(("wanted", "tried"), [((0.02,), [0.02]), ((0.02, 0.5), [0.02, 0.5])])
def test_a_grid_of_a_row_keeps_values_of_its_protocol_or_takes_their_place(two_tasks, small_protocol, wanted, tried):
    cell = cell_of(two_tasks, small_protocol, {"name": "linear", "grid": {RATE: list(wanted)}})
    assert [point[RATE] for point in cell.points()] == tried
    factors = dataclasses.replace(small_protocol, recipes=(Recipe(rate_factors=(1.0, 3.0)),))
    cell = cell_of(two_tasks, factors, {"name": "linear", "grid": {RATE: list(wanted)}})
    assert [point[RATE] for point in cell.points()] == tried


def test_a_grid_of_a_row_comes_before_what_the_protocol_and_the_study_say(two_tasks, small_protocol):
    changed = small_protocol.change(settings={"train.epochs": 1, DECAY: 0.3}, grid={RATE: (0.7,)})
    own = {"name": "linear", "grid": {"train.epochs": [3, 4], RATE: [0.1]}}
    rows = {"own": own, "other": {"name": "linear"}}
    searched, other = plan_of(two_tasks, changed, **rows).cells()
    assert searched.points() == [{RATE: 0.1, "train.epochs": 3}, {RATE: 0.1, "train.epochs": 4}]
    assert [searched.config(point, seed=0, final=False).train.epochs for point in searched.points()] == [3, 4]
    assert other.points() == [{RATE: 0.7}]
    with pytest.raises(ConfigError, match=r"train\.learning_rate: every row lacks it or has a value of its own"):
        plan_of(
            two_tasks, small_protocol.change(grid={RATE: (0.7,)}), row={"name": "linear", "grid": {RATE: [0.1]}}
        ).cells()
    search = SearchConfig(sampler="random", trials=2, ranges={RATE: (0.1, 1.0)})
    sampled = dataclasses.replace(plan_of(two_tasks, small_protocol, **rows), search=search)
    assert [set(cell.ranges) for cell in sampled.cells()] == [set(), {RATE}]


def test_a_grid_of_a_row_takes_what_goes_with_it(two_tasks):
    row = {"name": "vpt-deep", "grid": {"method.length": [100]}}
    points = cell_of(two_tasks, PROTOCOLS["vpt"], row).points()
    assert {(point["method.length"], point["train.batch_size"]) for point in points} == {(100, 64)}


def test_a_grid_of_a_row_stands_in_its_file_and_in_the_results(two_tasks, small_protocol, tmp_path):
    plan = plan_of(two_tasks, small_protocol, row={"name": "linear", "grid": {DECAY: [0.0, 0.1], RATE: [0.05]}})
    with Study(plan, tmp_path / "study") as study:
        (done,) = study.run().cells
    assert done.grid == {DECAY: [0.0, 0.1], RATE: [0.05]}
    assert [point.settings for point in done.points] == [{RATE: 0.05, DECAY: decay} for decay in (0.0, 0.1)]
    assert StudyPlan.read(tmp_path / "study" / "study.yaml") == plan
    kept = json.loads((tmp_path / "study" / "results.json").read_text())
    assert Results.from_dict(kept).cells == (done,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"grid": {"train.start_deccay": [1.0]}},
            r"train\.start_deccay: no such field; did you mean train\.start_decay\?",
        ),
        ({"grid": {"method.drop_paht": [0.1]}}, r"method\.drop_paht: no such field; did you mean method\.drop_path\?"),
        ({"grid": {"method.length": [5]}}, r"method\.length: no such field"),
        ({"grid": {"start_decay": [1.0]}}, "expected one of backbone, data, method, train, a dot, and a field"),
        ({"grid": {"train.seed": [1, 2]}}, "it is decided by the protocol's seeds"),
        ({"grid": {PULL: []}}, r"grid of train\.start_decay: expected at least one value"),
        ({"grid": {PULL: ["much"]}}, r"train\.start_decay='much': expected float"),
        ({"grid": {RATE: [0.1]}, "settings": {RATE: 0.1}}, r"train\.learning_rate is both fixed and searched"),
        ({"grid": {"method.drop_path": [0.1]}, "drop_path": 0.1}, r"method\.drop_path is both fixed and searched"),
        ({"grid": {"method.depth": ["deep"]}, "name": "vpt-deep"}, r"method\.depth is both fixed and searched"),
        (
            {"settings": {"method.lenght": 3}, "name": "vpt-deep"},
            r"method\.lenght: no such field; did you mean method\.length\?",
        ),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_grid_that_means_nothing_is_refused(two_tasks, small_protocol, row, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(two_tasks, small_protocol, row={"name": "full", **row})


def test_a_value_that_no_run_can_have_is_found_before_the_first_run(two_tasks, small_protocol):
    with pytest.raises(ConfigError, match=r"start_decay=-1\.0: expected 0 or more"):
        cell_of(two_tasks, small_protocol, {"name": "full", "grid": {PULL: [1.0, -1.0]}})


def test_a_pruned_row_is_made_from_one_run():
    first = First(fields={"name": "full"})
    row = Row(label="row", fields={"name": "e2vpt"}, first=first)
    with pytest.raises(ConfigError, match="first with prune"):
        dataclasses.replace(row, prune={})
