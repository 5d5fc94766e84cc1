"""The machinery: who does what does not matter to what comes out."""

import dataclasses
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from tests.search.conftest import Toy

from promptvit.errors import ConfigError, DataError, OutputError
from promptvit.search.plan import SearchConfig, StudyPlan
from promptvit.search.record import Record, Trials
from promptvit.search.results import Results
from promptvit.search.row import Row
from promptvit.search.study import Study, adoptable
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
        raise ZeroDivisionError("of ours")
        yield


def faulty(log, job):
    return Faulty(real=job, log=log)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["in-order", "local:1"])
def test_a_fault_of_ours_stops_the_study(small_plan, tmp_path, workers):
    with pytest.raises((ZeroDivisionError, RuntimeError), match="of ours"):
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


def random_plan(small_plan, **more) -> StudyPlan:
    """One cell, whose rates are drawn."""
    return StudyPlan.from_dict(
        {
            **small_plan.to_dict(),
            "rows": {"Linear": {"name": "linear"}},
            "tasks": ["low"],
            "search": {"sampler": "random", "trials": 4, "ranges": {"train.learning_rate": [1e-3, 1e-1]}},
            **more,
        }
    )


def test_a_trial_that_others_have_lost_is_run_again(small_plan, tmp_path, monkeypatch):
    """Another process is at work on a trial of a cell that we have begun, and dies."""
    monkeypatch.setattr("promptvit.search.study.POLL_SECONDS", 0.01)
    with Study(small_plan, tmp_path / "study", work=toy(tmp_path / "log")) as study:
        cell = study.cells[0]
        cell._fill()
        theirs = cell.search.claim(cell.keyed)
        monkeypatch.setattr(Trials, "refresh", lambda self: self.release(theirs) if self is cell.search else None)
        results = study.run()
    assert {point.state for point in results.cells[0].points} == {"complete"}
    assert all(len(each.finals) == 2 for each in results.cells)
    assert set(executed(tmp_path / "log").values()) == {1}


def test_a_trial_has_a_heartbeat_before_it_is_running(tmp_path, monkeypatch):
    """Optuna never finds one without to be lost."""
    with Record(f"sqlite:///{tmp_path / 'study.db'}") as record:
        trials = record.trials("mine")
        trials.add({"a": {"train.epochs": 1}})
        states = []
        monkeypatch.setattr(record, "keep_alive", lambda trial_id: states.append(trials.all()[0].state))
        assert trials.claim({"a"}) is not None
    assert states == ["WAITING"]


def test_a_drawn_trial_that_was_stopped_goes_on_with_its_settings(small_plan, tmp_path):
    plan = random_plan(small_plan)
    whole = run(plan, tmp_path / "whole", work=toy(tmp_path / "log"))

    def stop(state):
        if state.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "study", work=toy(tmp_path / "log2"), follow=stop)
    assert figures(run(plan, tmp_path / "study", work=toy(tmp_path / "log2"))) == figures(whole)
    counts = executed(tmp_path / "log2")
    assert len(counts) == 4 + 2
    assert sum(counts.values()) <= 4 + 2 + 1


def test_a_drawn_point_is_run_once(small_plan, tmp_path):
    plan = random_plan(small_plan, search={"sampler": "random", "trials": 12})
    results = run(plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert len(results.cells[0].points) == 12
    assert sum(executed(tmp_path / "log").values()) == 2 + 2


def test_more_trials_and_other_rows_later_are_no_mixture(small_plan, tmp_path):
    """Settings of another row of that name, or of another range, are not taken for the row's own."""
    run(random_plan(small_plan), tmp_path / "study", work=toy(tmp_path / "log"))
    for search in ({"trials": 6, "ranges": {"train.learning_rate": [1e-3, 1e-1]}}, {"trials": 4}):
        plan = random_plan(
            small_plan,
            rows={"Linear": {"name": "vpt-deep", "length": 2}},
            search={"sampler": "random", **search},
        )
        results = run(plan, tmp_path / "study", work=toy(tmp_path / "log"))
        assert figures(results) == figures(run(plan, tmp_path / f"{len(search)}", work=toy(tmp_path / "log2")))


def test_a_range_of_integers_gives_integers_and_what_goes_with_a_fixed_length_stays(small_plan, tmp_path):
    grids = [
        {"method.length": [1, 5], "train.batch_size": [128], "train.learning_rate": [0.1]},
        {"method.length": [100], "train.batch_size": [64], "train.learning_rate": [0.1]},
    ]
    protocol = {**small_plan.to_dict()["protocol"], "recipes": [{"grids": grids}]}
    fixed = random_plan(
        small_plan,
        rows={"VPT": {"name": "vpt-deep", "length": 5}},
        protocol=protocol,
        search={"sampler": "random", "trials": 6},
    )
    results = run(fixed, tmp_path / "fixed", work=toy(tmp_path / "log"))
    assert {point.settings["train.batch_size"] for point in results.cells[0].points} == {128}
    drawn = random_plan(
        small_plan,
        rows={"VPT": {"name": "vpt-deep"}, "Linear": {"name": "linear"}},
        search={"sampler": "random", "trials": 6, "ranges": {"method.length": [1, 30]}},
    )
    vpt, linear = run(drawn, tmp_path / "drawn", work=toy(tmp_path / "log")).cells
    assert all(isinstance(point.settings["method.length"], int) for point in vpt.points)
    assert all("method.length" not in point.settings for point in linear.points)


def test_a_run_goes_on_where_the_data_lie_now_and_on_another_device(small_plan, tmp_path, two_tasks):
    """The record of a killed process may lack what its run folder has."""
    import shutil

    one = StudyPlan.from_dict({**small_plan.to_dict(), "tasks": ["low"], "rows": {"Linear": {"name": "linear"}}})
    expected = figures(run(one, tmp_path / "study"))
    for file in (tmp_path / "study").glob("study.db*"):
        file.unlink()
    shutil.copytree(two_tasks, tmp_path / "moved")
    moved = StudyPlan.from_dict({**one.to_dict(), "data": [str(tmp_path / "moved")], "device": "auto"})
    assert figures(run(moved, tmp_path / "study")) == expected


def test_a_full_disk_stops_the_study_and_no_trial_is_given_up(small_plan, tmp_path):
    class Full(Toy):
        def steps(self, stock):
            raise OutputError.at(tmp_path, OSError(28, "No space left on device")) from OSError(28)
            yield

    with pytest.raises(OutputError):
        run(small_plan, tmp_path / "study", work=lambda job: Full(real=job, log=""))
    results = run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert {point.state for cell in results.cells for point in cell.points} == {"complete"}


def test_a_pruned_run_is_not_taken_for_the_run_that_it_comes_from(small_plan, tmp_path):
    one = StudyPlan.from_dict({**small_plan.to_dict(), "tasks": ["low"], "rows": {"Linear": {"name": "linear"}}})
    results = run(one, tmp_path / "study")
    folder = tmp_path / "study" / results.cells[0].finals[0].folder
    assert len(adoptable([folder])) == 1
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "pruning": {}}))
    assert adoptable([folder]) == {}


def test_a_study_that_cannot_begin_leaves_nothing_behind(small_plan, tmp_path):
    with pytest.raises(ConfigError, match="unknown task"):
        Study(StudyPlan.from_dict({**small_plan.to_dict(), "tasks": ["typo"]}), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_workers_have_ended_before_their_trials_are_given_up(small_plan, tmp_path, monkeypatch):
    from promptvit.search.workers import InOrder

    order = []
    monkeypatch.setattr(InOrder, "close", lambda self: order.append("close"))
    monkeypatch.setattr(Trials, "release", lambda self, trial: order.append("release"))

    def stop(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_plan, tmp_path / "study", work=toy(tmp_path / "log"), follow=stop)
    assert order == ["close", "release"]


def test_a_stopped_run_leaves_no_weights(small_plan, tmp_path):
    plan = random_plan(small_plan, search={"pruner": "asha"}, change={"settings": {"train.epochs": 2}})
    with Study(plan, tmp_path / "study") as study:
        monkeyed = Trials.should_stop
        try:
            Trials.should_stop = lambda self, trial, epoch, score: True
            results = study.run()
        finally:
            Trials.should_stop = monkeyed
    assert {point.state for point in results.cells[0].points} == {"pruned"}
    assert not list((tmp_path / "study" / "runs").rglob("state"))


def test_cells_that_nobody_has_begun_cost_nothing(small_plan, tmp_path, monkeypatch):
    with Study(small_plan, tmp_path / "study") as study:
        monkeypatch.setattr("promptvit.search.plan.CellPlan.config", None)
        assert study.state(1).total == PLANNED
        assert [cell.points for cell in study.results().cells] == [()] * 4


def test_a_backbone_that_is_read_otherwise_has_that_in_its_name(small_plan, tmp_path):
    backbones = [{"name": "vit_pico"}, {"name": "vit_pico", "pool": "avg"}]
    plan = StudyPlan.from_dict({**small_plan.to_dict(), "backbones": backbones})
    results = run(plan, tmp_path / "study", work=toy(tmp_path / "log"))
    assert {cell.backbone for cell in results.cells} == {"vit_pico", "vit_pico:avg"}
    assert len(executed(tmp_path / "log")) == 2 * PLANNED


def test_one_and_one_point_nought_are_one_run(small_plan):
    from promptvit.search.keys import run_key

    cell = small_plan.cells()[0]
    keys = {run_key(cell.config({"train.learning_rate": rate}, seed=0, final=False)) for rate in (1, 1.0)}
    assert len(keys) == 1
