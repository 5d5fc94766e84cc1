"""Every recipe is what the script writes, and a study whose tasks, methods, protocol and settings are known."""

import json
from pathlib import Path

import pytest
import yaml
from scripts import recipes

from promptvit.search.keys import run_key
from promptvit.search.plan import StudyPlan
from promptvit.search.published import GROUP_OF, GROUPS, published

TEXTS = recipes.committed()
STUDIES = {name: yaml.safe_load(text) for name, text in TEXTS.items()}


def test_the_files_are_those_of_the_script():
    assert recipes.rendered() == TEXTS, "run `make docs`"


def test_every_row_of_the_main_tables_has_a_file():
    counts = {
        folder: sum(name.startswith(f"{folder}/") for name in STUDIES) for folder in ("vpt", "e2vpt", "vpt-or-ft")
    }
    assert counts == {"vpt": 9 + 7 + 7 + 7 + 6 + 6 + 3, "e2vpt": 4, "vpt-or-ft": 9 + 1 + 1}
    assert {
        f"spt/{backbone}-spt-{depth}.yaml" for backbone in ("sup", "mae", "moco") for depth in ("deep", "shallow")
    } <= set(STUDIES)
    assert len({study["name"] for study in STUDIES.values()}) == len(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_recipe_is_a_study_whose_runs_can_be_made(name):
    plan = StudyPlan.from_dict(STUDIES[name])
    assert StudyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert set(plan.tasks or ()) <= set(GROUP_OF)
    assert all(set(row.tasks) <= set(GROUP_OF) for row in plan.rows)
    cells = recipes.cells(STUDIES[name])
    assert bool(cells) != (plan.data == ("digits",))
    for cell in {(cell.row.label, cell.task.group): cell for cell in cells}.values():
        points = cell.points()
        assert points
        for settings in (points[0], points[-1]):
            cell.config(settings, seed=cell.protocol.seeds[0], final=True)


@pytest.mark.parametrize("name", STUDIES)
def test_the_header_has_the_numbers_the_cost_and_the_command(name):
    header = [line for line in TEXTS[name].splitlines() if line.startswith("#")]
    assert f"# command: promptvit bench --config recipes/{name}" in header
    for fact in ("paper", "measured", "cost"):
        assert any(line.startswith(f"# {fact}: ") for line in header)


def test_numbers_of_a_row():
    header = " ".join(TEXTS["vpt/vit-b-vpt-deep.yaml"].split())
    assert "natural 78.48, specialized 82.43, structured 54.98, fgvc # 89.11" in header
    assert "Table 1" in header


def test_lengths_are_the_papers_and_take_their_batch_size():
    cells = {cell.task.name: cell for cell in recipes.cells(STUDIES["vpt/vit-b-vpt-deep.yaml"])}
    row = next(row for row in published() if (row.paper, row.label) == ("vpt", "VPT-deep"))
    for task, cell in cells.items():
        length = row.lengths["length"][task]
        assert cell.fields == {"name": "vpt-deep", "length": length}
        points = cell.points()
        assert len(points) == (36 if cell.task.group == "fgvc" else 40)
        assert {point["train.batch_size"] for point in points} == {64 if length >= 100 else 128}
        assert cell.config(points[0], seed=0, final=False).method["dropout"] == 0.1


def test_e2vpts_parts_keep_what_the_protocol_gives_them():
    cell = next(cell for cell in recipes.cells(STUDIES["e2vpt/vit-b-e2vpt.yaml"]) if cell.task.name == "patch_camelyon")
    method = cell.config(cell.points()[0], seed=0, final=True).method
    assert method["prompts"] == {"name": "vpt-deep", "length": 10, "dropout": 0.1}
    assert method["kv"] == {"length": 10}
    assert cell.row.prune == {}


def test_known_settings_leave_one_point():
    for name, rate in (("vpt/known-sun397.yaml", 25.0), ("spt/known-mae-cub.yaml", 0.05)):
        (cell,) = recipes.cells(STUDIES[name])
        (point,) = cell.points()
        assert cell.config(point, seed=0, final=True).train.learning_rate == rate


def test_strategies_have_grids_of_their_own_and_as_much_training():
    cells = {cell.row.label: cell for cell in recipes.cells(STUDIES["vpt-or-ft/strategies.yaml"])}
    assert set(cells) == set(recipes.STRATEGIES)
    configs = {
        label: [cell.config(each, seed=0, final=True) for each in cell.points()] for label, cell in cells.items()
    }
    assert {len(every) for every in configs.values()} == {8, 16, 24}
    assert {(each.train.epochs, each.train.batch_size) for every in configs.values() for each in every} == {(100, 64)}
    assert {each.train.start_decay for each in configs["L2-SP"]} == {1.0, 10.0, 100.0}
    assert len({run_key(each) for each in configs["L2-SP"]} - {run_key(each) for each in configs["full"]}) == 24
    first = [each for cell in cells.values() if (each := cell.first(seed=0, final=True)) is not None]
    assert [each.method["name"] for each in first] == ["full", "full", "linear"]
    assert run_key(first[0]) == run_key(first[1])


def test_full_then_prompts_is_there_as_the_paper_has_it():
    cell = recipes.cells(STUDIES["vpt-or-ft/vit-b-full-then-vpt-deep.yaml"])[0]
    first = cell.first(seed=42, final=True)
    assert first is not None
    assert (first.train.optimizer, first.train.batch_size, first.train.warmup_epochs) == ("adamw", 128, 5.0)
    prompts = cell.config(cell.points()[0], seed=42, final=True)
    assert (prompts.train.optimizer, prompts.train.batch_size, prompts.method["dropout"]) == ("sgd", 64, 0.1)
    assert prompts.backbone.tuned == prompts.train.head_from == str(Path(run_key(first)).absolute())


def test_groups_of_the_header_are_those_of_the_data():
    for row in published():
        if row.method and row.protocol and recipes.is_main(row):
            data = recipes.of_row(row).study["data"]
            assert ("fgvc" in data) == ("fgvc" in row.means)
            assert ("vtab-1k" in data) == bool(set(GROUPS[:3]) & set(row.means))
