"""The report of a study, done or in progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from promptvit.files import write_text
from promptvit.report import origin
from promptvit.report.learning import learning
from promptvit.report.markup import Child, Markup, isolated, join, tag
from promptvit.report.numbers import MISSING, duration, percent, plain
from promptvit.report.page import REPORT, Section, page
from promptvit.report.preserved import preserved_by_rows
from promptvit.report.scales import scales
from promptvit.report.searches import searches
from promptvit.report.study_charts import accuracy_and_size, costs, differences
from promptvit.report.study_tables import DONE, mean_table, progress, runs, task_table
from promptvit.report.tables import facts
from promptvit.search import statistics
from promptvit.search.results import Results
from promptvit.search.statistics import Row

FLAGS = {"compat_peek": "compat_peek: the epoch is chosen on the test images"}


def write_study_report(folder: Path, results: Results) -> Path:
    """Writes `report.html` into a study's folder; returns its path. Raises OutputError."""
    path = folder / REPORT
    write_text(path, study_report(results, folder))
    return path


def study_report(results: Results, folder: Path) -> str:
    """The page: the same for the same results and the same folders of runs, from which it has their epochs and what was
    analysed, and to whose reports it links."""
    name = row_names(results)
    sections = [
        Section(name="scale", title="Accuracy and images", content=scales(results)),
        Section(name="means", title="Means", content=mean_table(results, name)),
        Section(name="tasks", title="Tasks", content=task_table(results, name)),
        Section(name="size", title="Accuracy and size", content=accuracy_and_size(results, name)),
        Section(name="differences", title="Differences", content=differences(results, name)),
        Section(name="learning", title="Learning", content=learning(results, name, folder)),
        Section(name="preserved", title="Pretrained features", content=preserved_by_rows(results, name, folder)),
        Section(name="searches", title="Searches", content=searches(results, name)),
        Section(name="cost", title="Cost", content=costs(results, name)),
        Section(name="progress", title="Progress", content=progress(results, name)),
        Section(name="runs", title="Runs", content=runs(results, name, folder)),
        Section(name="protocol", title="Protocol", content=protocol(results)),
        Section(name="origin", title="How it was made", content=made(results)),
    ]
    shown = [section for section in sections if section.content]
    return page(results.name, "Study", lead(results, name), shown)


def row_names(results: Results) -> dict[Row, str]:
    """What a row is called: its method, with the backbone if there are several."""
    is_alone = len({backbone for backbone, _ in results.rows}) == 1
    if is_alone:
        return {row: row[1] for row in results.rows}
    return {
        (backbone, method): f"\N{FIRST STRONG ISOLATE}{method}\N{POP DIRECTIONAL ISOLATE}, {backbone}"
        for backbone, method in results.rows
    }


def lead(results: Results, name: Mapping[Row, str]) -> Markup:
    """Flags, the best mean, and how far the study is."""
    badges = [tag("p", {"class": "badge"}, FLAGS.get(flag, flag)) for flag in results.flags]
    planned = sum(len(cell.points) + cell.planned_finals for cell in results.cells)
    failed = sum(point.state == "failed" for cell in results.cells for point in cell.points)
    finished = sum(point.state in DONE for cell in results.cells for point in cell.points)
    finished += sum(len(cell.finals) for cell in results.cells)
    known: dict[str, Child] = {
        "Runs": f"{finished:,} of {planned:,} done" + (f", {failed} failed" if failed else ""),
        "Tasks": str(len(results.tasks)),
        "Rows": str(len(results.rows)),
        "Backbones": isolated(", ".join(dict.fromkeys(backbone for backbone, _ in results.rows))),
        "Protocol": str(results.protocol.get("name", MISSING)),
        "Time": duration(sum(each.seconds for cell in results.cells for each in (*cell.points, *cell.finals))),
    }
    bar = tag("progress", {"max": max(planned, 1), "value": finished, "aria-label": "Runs done"})
    return join([badges, headline(results, name), facts(known), bar if finished < planned else ""])


def headline(results: Results, name: Mapping[Row, str]) -> Markup:
    """The row with the best mean of tasks among those that have all."""
    means = {row: statistics.row_means(results, row).of_tasks for row in results.rows}
    whole = {row: mean.value for row, mean in means.items() if mean.value is not None}
    if not whole:
        return tag("p", {}, "No row has test figures of all tasks yet.")
    best = max(whole, key=lambda row: whole[row])
    count = means[best].count
    what = f"mean of {count} tasks" if count > 1 else f"on {results.tasks[0]}"
    rows = f", the best of {len(results.rows)} rows" if len(results.rows) > 1 else ""
    said = tag("p", {}, "test accuracy, ", what, tag("br", {}), isolated(name[best]), rows)
    return tag("div", {"class": "lead"}, tag("p", {"class": "big"}, percent(whole[best])), said)


def protocol(results: Results) -> Child:
    """Where it comes from, its plain values and seeds, and the whole."""
    plain_ones = {key: value for key, value in results.protocol.items() if not isinstance(value, dict | list | tuple)}
    source = str(plain_ones.pop("source", ""))
    known = {**plain_ones, "seeds": list(results.protocol.get("seeds", ()))}
    listed = facts({key.replace("_", " "): plain(value) for key, value in known.items()})
    return [tag("p", {}, source), listed, origin.values("The protocol, whole", results.protocol)]


def made(results: Results) -> Child:
    """The command, and what its runs were made with."""
    return [origin.command(results.command), [origin.environment(each) for each in results.origins]]
