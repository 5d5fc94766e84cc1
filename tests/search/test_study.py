"""The machinery: who does what does not matter to what comes out."""

import dataclasses
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from tests.search.conftest import Toy

from promptvit.errors import ConfigError, DataError, OutputError
from promptvit.search.jobs import Failure
from promptvit.search.plan import Row, SearchConfig, StudyPlan
from promptvit.search.results import Results
from promptvit.search.study import Study
from promptvit.search.workers import make_pool

PLANNED = 2 * (2 + 4) + 2 * 2 * 2


def toy(log: Path, **fields):
    return partial(_toy, str(log), fields)


def _toy(log, fields, job):
    return Toy(real=job, log=log, **fields)


def executed(log: Path) -> Counter:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def run(plan, folder, workers="in-order", **options) -> Results:
    with Study(plan, folder, **options) as study:
        return study.run(workers)


def figures(results: Results) -> dict:
    """What must not depend on who did the work."""
    return {
        (cell.task, cell.method): (
            cell.chosen,
            [(point.settings, point.val_top1, point.state) for point in cell.points],
            [(final.seed, final.val_top1, final.test_top1, final.delta_bytes) for final in cell.finals],
        )
        for cell in results.cells
    }


def test_every_point_and_every_seed_is_run_once_and_the_best_is_chosen(small_plan, tmp_path):
    results = run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"))
    counts = executed(tmp_path / "log")
    assert len(counts) == PLANNED
    assert set(counts.values()) == {1}
    for cell in results.cells:
        assert cell.chosen["train.learning_rate"] == 0.05
        assert [final.seed for final in cell.finals] == [3, 5]
        assert [final.val_top1 for final in cell.finals] == [0.997, 0.995]
        assert {point.state for point in cell.points} == {"complete"}
    assert Results.from_dict(json.loads((tmp_path / "study" / "results.json").read_text())) == Results.from_dict(
        json.loads(json.dumps(results.to_dict()))
    )


def test_of_equal_points_the_smaller_rate_is_chosen_then_the_first_of_the_grid(small_plan, tmp_path):
    plan = StudyPlan.from_dict(
        {**small_plan.to_dict(), "change": {"grid": {"train.learning_rate": [0.06, 0.04], "method.length": [2, 1]}}}
    )
    results = run(plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert score_of_rate(0.06) == score_of_rate(0.04)
    assert {cell.chosen["train.learning_rate"] for cell in results.cells} == {0.04}
    assert {cell.chosen.get("method.length") for cell in results.cells} == {None, 1}


def score_of_rate(rate: float) -> float:
    return round(1 - abs(rate - 0.05), 6)


def test_a_study_goes_on_where_it_was_stopped(small_plan, tmp_path):
    def stop(state):
        if state.done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"), follow=stop)
    partly = Results.from_dict(json.loads((tmp_path / "study" / "results.json").read_text()))
    assert sum(point.state == "complete" for cell in partly.cells for point in cell.points) in (3, 4)
    resumed = run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert figures(resumed) == figures(run(small_plan, tmp_path / "whole", work=toy(tmp_path / "log2")))
    counts = executed(tmp_path / "log")
    assert len(counts) == PLANNED
    assert sum(counts.values()) <= PLANNED + 1  # the running trial


def test_a_finished_study_is_only_read(small_plan, tmp_path):
    first = run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"))
    again = run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert figures(first) == figures(again)
    assert sum(executed(tmp_path / "log").values()) == PLANNED


def test_rows_and_tasks_can_be_added_later_but_the_protocol_stays(small_plan, tmp_path):
    one = StudyPlan.from_dict({**small_plan.to_dict(), "tasks": ["low"], "rows": {"Linear": {"name": "linear"}}})
    run(one, tmp_path / "study", work=toy(tmp_path / "log"))
    run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert set(executed(tmp_path / "log").values()) == {1}
    other = StudyPlan.from_dict({**small_plan.to_dict(), "change": {"seeds": [1]}})
    with pytest.raises(ConfigError, match="another protocol"):
        run(other, tmp_path / "study")


@pytest.mark.slow
def test_processes_give_what_one_process_gives_and_a_killed_one_loses_one_trial(small_plan, tmp_path):
    expected = run(small_plan, tmp_path / "whole", work=toy(tmp_path / "log"))
    kill = tmp_path / "killed"
    results = run(small_plan, tmp_path / "study", "local:2", work=toy(tmp_path / "log2", kill=str(kill)))
    assert kill.exists()
    assert figures(results) == figures(expected)
    counts = executed(tmp_path / "log2")
    assert len(counts) == PLANNED
    assert sorted(counts.values())[-2:] == [1, 2]


class Lethal(Toy):
    """Kills every worker."""

    def steps(self, stock):
        if self.real.config.train.learning_rate == 0.02:
            import os

            os._exit(9)
        return super().steps(stock)


@pytest.mark.slow
def test_a_run_that_kills_its_workers_fails_and_the_study_goes_on(small_plan, tmp_path):
    plan = StudyPlan.from_dict({**small_plan.to_dict(), "tasks": ["low"], "rows": {"Linear": {"name": "linear"}}})
    results = run(plan, tmp_path / "study", "local:1", work=partial(lethal, str(tmp_path / "log")))
    states = {point.settings["train.learning_rate"]: point for point in results.cells[0].points}
    assert states[0.02].state == "failed"
    assert "3 workers died of it" in states[0.02].reason
    assert states[0.05].state == "complete"
    assert len(results.cells[0].finals) == 2


def lethal(log, job):
    return Lethal(real=job, log=log)


class Broken(Toy):
    """Fails as a run can."""

    def steps(self, stock):
        raise DataError("no image there")
        yield


def test_a_cell_whose_runs_all_fail_says_why_and_the_others_go_on(small_plan, tmp_path):
    def work(job):
        kind = Broken if job.config.method["name"].startswith("vpt") else Toy
        return kind(real=job, log=str(tmp_path / "log"))

    results = run(small_plan, tmp_path / "study", work=work)
    by_method = {cell.method: cell for cell in results.cells if cell.task == "low"}
    assert by_method["VPT-deep"].chosen is None
    assert {point.reason for point in by_method["VPT-deep"].points} == {"no image there"}
    assert len(by_method["Linear"].finals) == 2


class Faulty(Toy):
    """Has a fault of ours in it."""

    def steps(self, stock):
        raise ZeroDivisionError
        yield


def faulty(log, job):
    return Faulty(real=job, log=log)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["in-order", "local:1"])
def test_a_fault_of_ours_stops_the_study(small_plan, tmp_path, workers):
    with pytest.raises((ZeroDivisionError, RuntimeError), match=r"|ZeroDivisionError"):
        run(small_plan, tmp_path / "study", workers, work=partial(faulty, str(tmp_path / "log")))
    again = run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert all(len(cell.finals) == 2 for cell in again.cells)


def test_random_points_depend_on_the_seed_and_their_number_alone(small_plan, tmp_path):
    search = SearchConfig(sampler="random", trials=5, ranges={"train.learning_rate": (1e-3, 1e-1)})
    plan = StudyPlan.from_dict({**small_plan.to_dict(), "search": {**vars(search)}})
    first = run(plan, tmp_path / "a", work=toy(tmp_path / "log"))
    points = [point.settings for point in first.cells[0].points]
    assert len({point["train.learning_rate"] for point in points}) == 5
    assert all(1e-3 <= point["train.learning_rate"] <= 1e-1 for point in points)
    assert figures(first) == figures(run(plan, tmp_path / "b", work=toy(tmp_path / "log")))


def test_tpe_finds_the_top_of_a_simple_hill(small_plan, tmp_path):
    plan = StudyPlan.from_dict(
        {
            **small_plan.to_dict(),
            "rows": {"Linear": {"name": "linear"}},
            "tasks": ["low"],
            "search": {"sampler": "tpe", "trials": 40, "ranges": {"train.learning_rate": [1e-4, 1.0]}},
        }
    )
    results = run(plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert results.cells[0].chosen["train.learning_rate"] == pytest.approx(0.05, rel=0.3)


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_a_pruner_stops_what_is_behind_and_the_best_is_never_stopped(small_plan, tmp_path, pruner):
    rates = [0.05, 0.049, 0.048, 0.047, 0.046, 0.045, 0.03, 0.02, 0.01, 0.001]
    plan = StudyPlan.from_dict(
        {
            **small_plan.to_dict(),
            "rows": {"Linear": {"name": "linear"}},
            "tasks": ["low"],
            "change": {"grid": {"train.learning_rate": rates}},
            "search": {"pruner": pruner},
        }
    )
    results = run(plan, tmp_path / "study", work=toy(tmp_path / "log", epochs=9))
    states = Counter(point.state for point in results.cells[0].points)
    assert states["pruned"] >= 2
    assert results.cells[0].chosen["train.learning_rate"] == 0.05


def test_the_time_left_is_told_from_the_first_trial_on(small_plan, tmp_path):
    states = []
    run(small_plan, tmp_path / "study", work=toy(tmp_path / "log", seconds=0.02), follow=states.append)
    assert states[0].seconds_left is None
    assert states[-1].seconds_left == 0
    assert [state.done for state in states] == sorted(state.done for state in states)
    assert states[-1].done == states[-1].total == PLANNED


def test_two_processes_on_one_sqlite_record_are_refused(small_plan, tmp_path):
    with Study(small_plan, tmp_path / "study"), pytest.raises(OutputError, match="another process is at work"):
        Study(small_plan, tmp_path / "study")


def test_unknown_workers_are_refused():
    with pytest.raises(ConfigError, match="local:N"):
        make_pool("local:0")


def test_real_runs_in_a_study_are_what_they_are_alone(small_plan, tmp_path):
    """Backbone, images and features that runs share change no figure."""
    from promptvit.train.loop import fit

    results = run(small_plan, tmp_path / "study")
    for cell in results.cells:
        final = cell.finals[1]
        folder = tmp_path / "study" / final.folder
        summary = json.loads((folder / "summary.json").read_text())
        from promptvit.train.folder import RunFolder

        alone = fit(RunFolder(folder).read_config(), tmp_path / cell.task / cell.method)
        assert alone["result"] == summary["result"]
        assert summary["study"]["protocol"]["name"] == "small"
        assert summary["protocol"]["train_on"] == "train+val"
        assert final.test_top1 == summary["result"]["test"]["top1"]
    searched = sorted((tmp_path / "study" / "runs" / "low" / "Linear" / "search").iterdir())
    assert {path.name for path in searched[0].iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "predictions.json",
        "summary.json",
    }
    assert json.loads((searched[0] / "summary.json").read_text())["result"]["test"] is None


def test_runs_that_are_done_elsewhere_are_taken_over(small_plan, tmp_path):
    first = run(small_plan, tmp_path / "study")
    again = run(small_plan, tmp_path / "other", work=toy(tmp_path / "log"), adopt=[tmp_path / "study"])
    assert figures(first) == figures(again)
    assert not (tmp_path / "log").exists()


def test_a_pruned_row_reports_the_pruned_run(small_plan, tmp_path):
    row = Row(
        label="pruned",
        fields={"name": "vpt-deep", "length": 3},
        prune={"budget": 1, "tokens": [1], "segments": [0], "epochs": 1},
    )
    protocol = small_plan.protocol.change(seeds=(3,))
    plan = StudyPlan(name="p", data=small_plan.data, tasks=("low",), rows=(row,), protocol=protocol, device="cpu")
    with pytest.raises(ConfigError, match="retrain: train"):
        plan.cells()
    plan = dataclasses.replace(plan, protocol=protocol.change(retrain="train"))
    results = run(plan, tmp_path / "study")
    assert results.cells[0].failures == ()
    (final,) = results.cells[0].finals
    assert final.folder.endswith("-pruned")
    summary = json.loads((tmp_path / "study" / final.folder / "summary.json").read_text())
    assert "pruning" in summary


def test_a_failure_is_a_message_not_an_exception():
    assert Failure(reason="x").reason == "x"
