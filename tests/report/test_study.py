import dataclasses
import re
from statistics import fmean

import pytest

from promptvit.errors import ConfigError
from promptvit.report.study import study_report, write_study_report
from promptvit.report.write import write_report
from promptvit.search.statistics import row_means


def plain(page: str) -> str:
    """What a reader sees, without the style and the script."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def section(page: str, name: str) -> str:
    return plain(re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)[0])


def test_the_figures_are_those_of_the_study(make_study, tmp_path):
    results = make_study()
    page = study_report(results, tmp_path)
    best = max((row_means(results, row).of_tasks.value, row) for row in results.rows)
    assert f"{100 * best[0]:.1f} % test accuracy, mean of 4 tasks" in plain(page)
    found = [final.test_top1 for final in results.cells[0].finals]
    assert f"{100 * fmean(found):.2f} ± " in section(page, "tasks")
    assert "mean of groups" in section(page, "means")
    assert "mean of tasks" in section(page, "means")
    assert "the loss is nan &lt;at&gt; epoch 2" in section(page, "progress")
    assert "abc123+" in section(page, "origin")
    assert "recipes:" in section(page, "protocol")
    assert '<p class="badge">compat_peek' in page


def test_what_users_name_is_escaped_and_nothing_is_asked_for(make_study, tmp_path):
    page = study_report(make_study(), tmp_path)
    assert "study &lt;&amp;&gt;" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_picture_for_each_search(make_study, tmp_path):
    results = make_study(tasks=2, methods=2)
    page = section(study_report(results, tmp_path), "searches")
    assert page.count("Numbers") == 4
    assert page.count("Colour: validation accuracy") == 4
    best = max(point.val_top1 for point in results.cells[0].points if point.val_top1)
    assert f"to {100 * best:.1f} %" in page


def test_the_best_over_other_settings_is_shown(make_study, tmp_path):
    results = make_study(tasks=1, methods=1, settings=3)
    page = study_report(results, tmp_path)
    assert "The best over optimizer." in page
    corner = [
        point.val_top1
        for point in results.cells[0].points
        if point.settings["train.learning_rate"] == 0.001 and point.settings["method.length"] == 1
    ]
    assert "length 1, optimizer" in page
    assert f">{100 * max(corner):.1f}</text>" in page
    assert f">{100 * min(corner):.1f}</text>" not in page


def test_one_setting_is_a_line_with_the_chosen_marked(make_study, tmp_path):
    page = study_report(make_study(tasks=1, methods=1, settings=1), tmp_path)
    assert "learning_rate (log)" in page
    assert 'class="ring"' in page


def test_a_cell_without_a_search(make_study, tmp_path):
    page = study_report(make_study(tasks=1, methods=1, settings=0, seeds=1), tmp_path)
    assert 'id="searches"' not in page
    assert 'id="means"' not in page
    assert 'id="differences"' not in page
    assert "on caltech" in plain(page)


def test_without_any_search_there_are_no_columns_for_it(make_study, tmp_path):
    results = make_study()
    alone = tuple(dataclasses.replace(cell, points=(), chosen={}) for cell in results.cells)
    told = section(study_report(dataclasses.replace(results, cells=alone), tmp_path), "progress")
    assert not any(word in told for word in ("search", "none", "chosen", "as they are"))
    assert "chosen" in section(study_report(results, tmp_path), "progress")


@pytest.mark.parametrize("done", [0.0, 0.4, 0.7])
def test_a_study_in_progress(make_study, tmp_path, done):
    page = study_report(make_study(done=done, backbones=2), tmp_path)
    assert "<progress " in page
    assert "waiting" in plain(page) or "running" in plain(page)
    assert "of 4" in section(page, "means")


def test_tasks_without_test_images_show_validation(make_study, tmp_path):
    results = make_study(tasks=1, methods=1)
    finals = tuple(dataclasses.replace(final, test_top1=None) for final in results.cells[0].finals)
    results = dataclasses.replace(results, cells=(dataclasses.replace(results.cells[0], finals=finals),))
    assert "validation 5" in section(study_report(results, tmp_path), "tasks")


def test_many_methods_are_numbered_in_the_picture(make_study, tmp_path):
    few, many = (section(study_report(make_study(tasks=2, methods=count), tmp_path), "size") for count in (3, 25))
    assert "method 20" in many
    assert re.search(r" 24 25 ", many)
    assert not re.search(r" 1 2 3 ", few)


def test_reports_of_runs_are_linked_if_they_are_there(make_study, tmp_path):
    results = make_study(tasks=1, methods=1)
    first = tmp_path / results.cells[0].finals[0].folder
    first.mkdir(parents=True)
    (first / "report.html").write_text("")
    path = write_study_report(tmp_path, results)
    links = re.findall(r'<a href="(runs[^"]+)"', path.read_text())
    assert links == ["runs/caltech/0-0/seed%200/report.html"]


def test_the_same_results_give_the_same_bytes(make_study, tmp_path):
    assert study_report(make_study(), tmp_path) == study_report(make_study(), tmp_path)


def test_a_folder_of_a_study_is_known_by_its_results(make_study, make_run, tmp_path):
    results = make_study(tasks=1, methods=1)
    run = make_run()
    for final in results.cells[0].finals:
        (tmp_path / final.folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / final.folder).symlink_to(run)
    from promptvit.files import write_json

    write_json(tmp_path / "results.json", results.to_dict())
    assert write_report(tmp_path) == [tmp_path / "report.html"]
    written = write_report(tmp_path, runs=True)
    assert len(written) == 3
    assert (tmp_path / "report.html").read_text().count("seed%20") == 2
    with pytest.raises(ConfigError, match="--images of a study without --runs"):
        write_report(tmp_path, images="x")
    with pytest.raises(ConfigError, match="holds no study"):
        write_report(run, runs=True)
