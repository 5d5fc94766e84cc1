"""Pages, LaTeX, CSV and JSON of a study: what stands in them, and that nothing is left out in silence."""

import csv
import dataclasses
import io
import json
import random
import re
import shutil
import subprocess

import pytest

from promptvit.search.accuracy import published_means
from promptvit.search.export import FORMATS, csv_lines, everything
from promptvit.search.markup import Heading, Table, Text, escape, latex, markdown
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.published import GROUP_OF, published
from promptvit.search.results import Cell, Final, Point, Results
from promptvit.search.tables import latex_tables, markdown_page

VIT = "vit_base_patch16_224.orig_in21k"
TABLE_1 = {row.label: row for row in published() if (row.paper, row.table) == ("vpt", "Table 1")}


def final(seed, accuracy):
    return Final(
        seed=seed,
        val_top1=accuracy,
        test_top1=accuracy,
        trained_parameters=1_000 + seed,
        trained_percent=0.125,
        delta_bytes=4_096,
        seconds=10.0 + seed,
        folder=f"runs/{seed}",
    )


def cell(task, method, accuracies, *, backbone=VIT, group=None, planned=3, state="complete", **fields):
    points = (
        Point(settings={"train.learning_rate": 1 / 3}, state="complete", val_top1=0.5, seconds=3.0),
        Point(settings={"train.learning_rate": 1.0}, state=state, reason="loss is NaN" if state == "failed" else ""),
    )
    return Cell(
        task=task,
        group=GROUP_OF.get(task, "") if group is None else group,
        backbone=backbone,
        method=method,
        fields={"name": "linear", **fields},
        chosen={"train.learning_rate": 1 / 3} if accuracies else None,
        points=points,
        finals=tuple(final(seed, accuracy) for seed, accuracy in enumerate(accuracies)),
        planned_finals=planned,
    )


def test_rows_are_told_with_what_is_their_own():
    pulled = dataclasses.replace(
        cell("sprites", "L2-SP", [0.5], name="full"),
        settings={"train.weight_decay": 0.0, "method.drop_path": 0.1},
        grid={"train.start_decay": [1.0, 10.0]},
    )
    later = dataclasses.replace(
        cell("sprites", "full, then deep", [0.5], name="vpt-deep"),
        first={"name": "full", "settings": {"train.epochs": 1}, "head": "keep"},
    )
    page = markdown_page(study([pulled, later]))
    assert "- L2-SP: full, weight_decay 0, method.drop_path 0.1, start_decay 1 or 10" in page
    assert "- full, then deep: vpt-deep, first (full, settings (train.epochs 1), head keep)" in page


def study(cells, protocol="quick", **more):
    given = {"name": "a_study", "protocol": PROTOCOLS[protocol].to_dict(), "cells": tuple(cells), **more}
    return Results(**given)


def small(**more):
    """Two methods on two tasks, one cell without a run, one with a seed less."""
    return study(
        [
            cell("sprites", "linear", [0.5, 0.6, 0.7], backbone="vit_pico"),
            cell("sprites", "full_50%", [0.25, 0.35], backbone="vit_pico", name="full", drop_path=0.1, state="failed"),
            cell("cifar10", "linear", [0.55, 0.55, 0.55], backbone="vit_pico"),
            cell("cifar10", "full_50%", [], backbone="vit_pico", name="full", drop_path=0.1),
        ],
        command="promptvit bench mini --methods linear,full",
        origins=(
            {"commit": "abc", "machine": {"processor": "A & B"}},
            {"commit": "def", "machine": {"processor": "A & B"}},
        ),
        **more,
    )


def vtab(labels=("Full", "VPT-deep", "Adapter"), spread=0.0):
    """All 24 tasks with the published figures."""
    draw = random.Random(0)
    return study(
        [
            cell(
                task,
                label,
                [TABLE_1[label].values.get(task, 70.0) / 100 + draw.gauss(0, spread) for _ in range(3)],
                name=TABLE_1[label].method["name"],
            )
            for task in GROUP_OF
            for label in labels
        ],
        protocol="vpt",
    )


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


class TestMarkdown:
    def test_cells_have_mean_deviation_and_seeds(self):
        page = markdown_page(small())
        assert "| linear | 60.0 ± 10.0 | 55.0 ± 0.0 | 57.50 |" in page
        assert "| full_50% | 30.0 ± 7.1 (2 of 3) | not run | 1 of 2 missing |" in page
        assert "Test accuracy in %, vit_pico, tasks and means: mean ± standard deviation over 3 seeds" in page
        assert "| method | sprites | cifar10 | mean of 2 tasks |" in page

    def test_what_was_not_run_or_failed(self):
        page = markdown_page(small())
        assert "- full_50%: sprites 2 of 3 seeds, cifar10 not run" in page
        assert "- failed: full_50% on sprites, loss is NaN" in page
        whole = study([cell("sprites", "linear", [0.5, 0.6, 0.7])])
        assert "Not run" not in markdown_page(whole)
        assert "3 of 3 are done." in markdown_page(whole)

    def test_settings_and_points(self):
        page = markdown_page(small())
        assert "| sprites | linear | learning_rate 0.333 | 2 of 2 |" in page
        assert "| sprites | full_50% | learning_rate 0.333 | 1 of 2 (1 failed) |" in page
        assert "| cifar10 | full_50% | not chosen yet | 2 of 2 |" in page
        assert "- full_50%: full, drop_path 0.1" in page
        assert "- linear: linear" not in page
        nested = study([cell("sprites", "row", [0.5], name="e2vpt", prompts={"name": "vpt", "length": 10})])
        assert "- row: e2vpt, prompts (vpt, length 10)" in markdown_page(nested)

    def test_intervals_stay_within_what_can_be(self):
        page = markdown_page(small())
        assert "| linear | 35.2 to 84.8 | 55.0 to 55.0 |" in page
        assert "| full_50% | 0.0 to 93.5 |  |" in page
        assert "Intervals" not in markdown_page(study([cell("sprites", "linear", [0.5])]))
        assert lines(markdown_page(vtab(spread=0.01)), "Test accuracy in %, fgvc: Student's 95 % interval")

    def test_nothing_is_said_of_a_search_that_was_none(self):
        alone = [dataclasses.replace(each, points=()) for each in small().cells]
        page = markdown_page(study(alone))
        assert not any(word in page for word in ("points |", "no choice", "Chosen", "best on validation", "Published"))

    def test_a_group_of_one_task_is_no_column_beside_it(self):
        groups = {"cifar": "natural", "dtd": "natural", "kitti": "structured"}
        cells = [cell(task, "linear", [0.5], planned=1) for task in groups]
        assert "| method | cifar | dtd | kitti | natural (2) | mean of 2 groups | mean of 3 tasks |" in markdown_page(
            study(cells)
        )
        assert "| method | cifar | kitti | mean of 2 tasks |" in markdown_page(study([cells[0], cells[2]]))

    def test_no_difference_has_no_sign(self):
        cells = [cell("sprites", "a", [0.5], planned=1), cell("sprites", "b", [0.50001], planned=1)]
        cells += [cell("cifar10", "a", [0.6], planned=1), cell("cifar10", "b", [0.60001], planned=1)]
        assert "| +0.00 (+0.00 to +0.00) |" in markdown_page(study(cells))
        assert "tasks and means: one seed" in markdown_page(study(cells))

    def test_costs(self):
        assert "| linear | 1,000 to 1,002 | 0.12 | 4 | 11 | 2 | 0.02 |" in markdown_page(small())

    def test_how_it_was_made(self):
        page = markdown_page(small())
        assert "- command: promptvit bench mini --methods linear,full" in page
        assert "- commit: abc, def" in page
        assert "- processor: A & B" in page
        assert "Protocol quick (ours: the default recipe" in page

    def test_flags_stand_in_every_table(self):
        page = markdown_page(small(flags=("compat_peek",)))
        captions = [
            before for before, after in zip(page.splitlines(), page.splitlines()[2:], strict=False) if after[:1] == "|"
        ]
        captions = [line for line in captions if line and line[0] not in "|-"]
        assert len(captions) == 5
        assert all("compat_peek" in caption for caption in captions)
        assert latex_tables(small(flags=("compat_peek",))).count(r"(compat\_peek: ") == 3

    def test_changes_of_the_protocol(self):
        protocol = PROTOCOLS["quick"].change(settings={"train.epochs": 10}, seeds=(0, 1))
        page = markdown_page(Results(name="s", protocol=protocol.to_dict(), cells=small().cells))
        assert "Changed from it: train.epochs 10; seeds 0, 1." in page

    def test_it_is_deterministic(self):
        assert markdown_page(vtab(spread=0.01)) == markdown_page(vtab(spread=0.01))

    def test_results_may_be_empty_or_begun(self):
        begun = study([cell("sprites", "linear", []), cell("sprites", "full", [], name="full")])
        for write in FORMATS.values():
            assert write(begun)
            assert write(study([]))


class TestPublished:
    def test_rows_beside_ours_where_they_are_like_for_like(self):
        page = markdown_page(vtab())
        ours, deep = lines(page, "| VPT-deep |")[0], lines(page, "| published: VPT-deep")[0]
        assert ours == "| VPT-deep | 78.49 | 82.42 | 55.00 | 89.10 | 71.97 | 69.43 |"
        assert deep.startswith("| published: VPT-deep (Jia et al., ECCV 2022, Table 1) |")
        assert deep.endswith("| 78.48 | 82.43 | 54.98 | 89.11 | 71.96 | 69.43 |")
        assert "mean of 3 groups | mean of 19 tasks" in page
        assert len(lines(page, "| published: VPT-deep")) == 5  # means, and four groups

    def test_the_reason_where_they_are_not(self):
        page = markdown_page(vtab())
        assert not lines(page, "| published: Adapter")
        assert "not like for like: compat_zero_init false (published: true)" in page

    def test_other_backbones_and_other_tasks_in_one_line(self):
        elsewhere = study(
            [cell("cifar", method, [0.5], backbone="vit_pico", name=method) for method in ("linear", "full")]
        )
        assert "- linear, full: on other backbones alone" in markdown_page(elsewhere)
        assert "Published" not in markdown_page(small())

    def test_printed_means_only_of_whole_groups(self):
        deep = TABLE_1["VPT-deep"]
        part = study([cell(task, "VPT-deep", [0.5]) for task in ("cifar", "svhn", "kitti")])
        found = published_means(deep, part)
        assert found.groups["natural"].value == pytest.approx((78.8 + 78.1) / 2)
        assert found.of_tasks.value == pytest.approx((78.8 + 78.1 + 72.8) / 3)
        assert published_means(deep, vtab()).groups["natural"].value == 78.48


class TestComparisons:
    def test_a_pair(self):
        (line,) = [line for line in lines(markdown_page(vtab()), "| Full | VPT-deep |") if "," in line]
        assert re.match(r"\| Full \| VPT-deep \| 24 \| 4, 0, 20 \| -3\.17 \(.* to .*\) \| 0\.00\d+ \|", line)

    def test_one_method_has_none(self):
        assert "Comparisons" not in markdown_page(vtab(labels=("Full",)))

    def test_of_many_pairs_those_with_the_best(self):
        methods = [f"m{index}" for index in range(7)]
        cells = [cell(task, m, [0.1 * i]) for task in ("cifar", "svhn", "dtd") for i, m in enumerate(methods)]
        page = markdown_page(study(cells))
        assert "Of 21 pairs those with the best row, m6, are shown." in page
        easy = cell("cifar", "easy", [0.99])
        assert "the best row, m6, are shown." in markdown_page(study([*cells, easy]))
        assert len(lines(page, "| m")) >= 6
        assert not lines(page, "| m0 | m1 |")
        assert len(everything(study(cells))["comparisons"]) == 21


HOSTILE = r"50% & $x_1$ #{a} ~^\ <b> [1] ± → ∞ é | `c`"


class TestLatex:
    def test_every_character_is_escaped(self):
        text = escape(HOSTILE)
        assert text == (
            r"50\% \& \$x\_1\$ \#\{a\} \textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}b\textgreater{} "
            r"{[}1] $\pm$ $\to$ ? é \textbar{} `c`"
        )

    def test_tables_are_whole(self):
        text = latex_tables(small())
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
        for body, columns in zip(
            re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL),
            re.findall(r"\\begin\{tabular\}\{(\w+)\}", text),
            strict=True,
        ):
            rows = [line for line in body.splitlines() if line != r"\midrule"]
            assert all(line.endswith(r" \\") for line in rows)
            assert all(len(re.split(r"(?<!\\)&", line)) == len(columns) for line in rows)
        assert r"full\_50\%" in text

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
    @pytest.mark.slow
    def test_it_compiles(self, tmp_path):
        strange = latex(
            [
                Heading(text=HOSTILE),
                Text(text=HOSTILE, items=(HOSTILE,)),
                Table(caption=HOSTILE, header=("[a]", "b"), rows=((HOSTILE, "[2]"), ("[3]", ""))),
            ]
        )
        document = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n%s\n\\end{document}\n"
        (tmp_path / "page.tex").write_text(document % (strange + latex_tables(vtab(spread=0.01))))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]


def test_markdown_cells_keep_their_table():
    page = markdown([Table(caption="", header=("a", "b"), rows=(("x | y", "two\nlines"),))])
    assert page == "| a | b |\n| --- | --- |\n| x \\| y | two lines |\n"


class TestExport:
    def test_csv_has_a_line_for_every_run(self):
        read = list(csv.DictReader(io.StringIO(csv_lines(small()))))
        assert [line["kind"] for line in read].count("point") == 8
        finals = [line for line in read if line["kind"] == "final"]
        assert [float(line["test_top1"]) for line in finals if line["task"] == "sprites"] == [0.5, 0.6, 0.7, 0.25, 0.35]
        assert {line["train.learning_rate"] for line in finals} == {str(1 / 3)}
        assert json.loads(read[0]["fields"]) == {"name": "linear"}

    def test_json_goes_back(self):
        values = json.loads(FORMATS["json"](small()))
        assert Results.from_dict(values["results"]) == Results.from_dict(json.loads(json.dumps(small().to_dict())))
        linear = values["rows"][0]["means"]
        assert linear["of_tasks"]["value"] == pytest.approx(0.575)
        assert values["cells"][0]["interval"]["low"] == pytest.approx(0.352, abs=1e-3)

    def test_json_has_published_rows_and_reasons(self):
        row = everything(vtab())["rows"][2]
        assert row["method"] == "Adapter"
        assert row["published"][0]["reasons"] == ("compat_zero_init false (published: true)",)
