"""Every study file can be built and takes a step."""

from pathlib import Path

import pytest

from promptvit.errors import ConfigError
from promptvit.search.dry import dry_run
from promptvit.search.plan import StudyPlan
from promptvit.train.stock import Stock

ROOT = Path(__file__).parents[2]
STUDIES = [*sorted((ROOT / "recipes").glob("*/*.yaml")), *sorted((ROOT / "benchmarks" / "studies").glob("*.yaml"))]
STOCK = Stock()


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_study_file_is_built_and_takes_a_step(path):
    plan = StudyPlan.read(path)
    lines = dry_run(plan, STOCK)
    assert len(lines) >= len(plan.rows) * len(plan.backbones)
    assert all("parameters trained" in line for line in lines)


def test_what_comes_first_is_built_too(two_tasks):
    row = {"name": "linear", "first": {"name": "full", "dropout": 0.1}}
    plan = {"name": "x", "data": str(two_tasks), "rows": {"row": row}, "backbones": [{"name": "convnext_atto"}]}
    with pytest.raises(ConfigError, match="dropout acts in a transformer's blocks"):
        dry_run(StudyPlan.from_dict(plan))


def test_a_run_that_two_rows_start_from_is_counted_once(two_tasks):
    full = {"name": "full", "settings": {"train.epochs": 2}}
    rows = {"kept": {"name": "linear", "first": full}, "anew": {"name": "linear", "first": {**full, "head": "anew"}}}
    plan = {"name": "x", "data": str(two_tasks), "rows": rows, "backbones": [{"name": "convnext_atto"}]}
    kept, anew = (
        [int(line.split(" runs")[0].split()[-1]) for line in dry_run(StudyPlan.from_dict(plan)) if line.startswith(row)]
        for row in rows
    )
    assert [first - second for first, second in zip(kept, anew, strict=True)] == [3, 3]  # one for each seed


def test_a_row_that_no_backbone_can_have_is_refused(two_tasks):
    plan = {"name": "x", "data": str(two_tasks), "rows": {"too long": {"name": "adapter", "reduction": 4096}}}
    with pytest.raises(ConfigError, match="no bottleneck"):
        dry_run(StudyPlan.from_dict(plan))
