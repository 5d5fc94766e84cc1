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


def test_a_row_that_no_backbone_can_have_is_refused(two_tasks):
    plan = {"name": "x", "data": str(two_tasks), "rows": {"too long": {"name": "adapter", "reduction": 4096}}}
    with pytest.raises(ConfigError, match="no bottleneck"):
        dry_run(StudyPlan.from_dict(plan))
