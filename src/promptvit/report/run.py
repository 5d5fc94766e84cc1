"""The report of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from promptvit.analysis.curves import overfitting, reading
from promptvit.data.config import DataConfig
from promptvit.files import write_text
from promptvit.report import origin
from promptvit.report.bars import Bar, bar_chart
from promptvit.report.charts import Line, figure, legend, line_chart, value_axis, whole_axis
from promptvit.report.classes import SPLITS, class_sections
from promptvit.report.maps import KeptMaps, maps
from promptvit.report.markup import Child, Markup, isolated, join, tag
from promptvit.report.numbers import MISSING, Number, duration, percent, plain, short, size, wilson
from promptvit.report.page import REPORT, Section, page
from promptvit.report.preserved import preserved, read_kept
from promptvit.report.prunings import pruning
from promptvit.report.record import Row, RunRecord, read_run
from promptvit.report.tables import Cell, facts, fold, number, table


def write_run_report(folder: Path, images: str | None = None) -> Path:
    """Writes `report.html` into the folder of a run that is done; returns its path.

    `images`: where the run's images are now, in place of `data.source`. Raises ConfigError if there is no such run,
    DataError for a damaged file, and OutputError.
    """
    path = folder / REPORT
    write_text(path, run_report(read_run(folder), images))
    return path


def run_report(run: RunRecord, images: str | None = None) -> str:
    """The page: the same for the same files."""
    summary = run.summary
    sections = [
        Section(name="curves", title="Curves", content=curves(run)),
        *class_sections(run, _data(run, images)),
        *analyses(run),
        Section(name="cost", title="Cost", content=costs(run)),
        *(
            [Section(name="pruning", title="Pruning", content=pruning(summary["pruning"]))]
            if "pruning" in summary
            else []
        ),
        Section(name="protocol", title="Protocol", content=protocol(summary)),
        Section(name="origin", title="How it was made", content=made(summary)),
    ]
    title = f"{summary['task']['name']}, {summary['method']['name']}"
    return page(title, f"Run {run.folder.resolve().name}", lead(run), sections)


def analyses(run: RunRecord) -> list[Section]:
    """What `promptvit analyze` has left in the folder."""
    maps_there, kept = KeptMaps.read(run.folder), read_kept(run.folder)
    sections = [] if maps_there is None else [Section(name="maps", title="Maps", content=maps(maps_there, run.folder))]
    if kept is not None:
        is_tuned = run.summary["config"].get("backbone", {}).get("tuned") is not None
        sections.append(
            Section(name="preserved", title="Pretrained features", content=preserved(kept, is_tuned=is_tuned))
        )
    return sections


def _data(run: RunRecord, images: str | None) -> DataConfig:
    known = {field.name for field in dataclasses.fields(DataConfig)}
    own = {name: value for name, value in run.summary["config"]["data"].items() if name in known}
    return DataConfig(**own) if images is None else DataConfig(**{**own, "source": images})


def lead(run: RunRecord) -> Markup:
    """The accuracy in large, and what it is of."""
    metrics, summary = run.metrics, run.summary
    low, high = wilson(metrics["top1"], metrics["images"])
    headline = tag(
        "div",
        {"class": "lead"},
        tag("p", {"class": "big"}, percent(metrics["top1"])),
        tag(
            "p",
            {},
            f"of {origin.counted(metrics['images'], SPLITS[run.split] + ' image')} right",
            tag("br", {}),
            f"95 % interval {percent(low)} to {percent(high)} (Wilson)",
        ),
    )
    others = {"Balanced": percent(metrics["balanced"])}
    if len(run.classes) > 5:
        others["Among the first five"] = percent(metrics["top5"])
    if metrics["auroc"] is not None:
        others["Area under ROC"] = f"{metrics['auroc']:.4f}"
    if run.split == "test":
        others["Validation"] = percent(summary["result"]["val"]["top1"])
    cost = summary["cost"]
    known: dict[str, Child] = {
        "Task": [isolated(summary["task"]["name"]), f", {len(run.classes)} classes"],
        "Method": summary["method"]["name"],
        "Backbone": isolated(summary["backbone"]["name"]),
        **others,
        "Trained": f"{cost['trained_parameters']:,} parameters ({cost['trained_percent']:.2f} %)",
        "Delta": size(cost["delta_bytes"]),
        "Training": f"{duration(cost['seconds'])} on {summary['machine']['device']}",
    }
    return join([headline, facts(known)])


def curves(run: RunRecord) -> Child:
    """Loss, accuracy, learning rate and NMI by epoch."""
    if not run.rows:
        return tag(
            "p", {}, "The chosen prompts were not trained again: the curves are those of the run that was pruned."
        )
    tops = ["train_top1", "val_top1", "test_top1"]
    pictures = [
        _curve("Loss", run.rows, ["train_loss", "val_loss"], "{:.4g}".format, zero=True),
        _curve("Accuracy", run.rows, tops, lambda share: f"{100 * share:.4g} %"),
        _curve("Learning rate", run.rows, ["learning_rate"], "{:.3g}".format, zero=True),
    ]
    if run.nmi:
        pictures.append(
            _curve(
                f"NMI of prompts and patches ({run.nmi[0]['variant']})", run.nmi, ["mean"], "{:.4g}".format, zero=True
            )
        )
    names = ["epoch", *(name for name in run.rows[0] if name != "epoch")]
    rows = [[number(plain(row[name]), row[name]) for name in names] for row in run.rows]
    head = [name.replace("_", " ") for name in names]
    return join(
        [
            tag("p", {}, reading(overfitting(run.rows, held_out=run.summary["protocol"]["train_on"] == "train"))),
            tag("div", {"class": "three" if len(pictures) == 3 else "pair"}, pictures),
            fold("Numbers", table("By epoch", head, rows)),
        ]
    )


Show = Callable[[Number], str]
WORDS = {"train": "training", "val": "validation", "test": "test"}


def _curve(title: str, rows: Sequence[Row], names: Sequence[str], show: Show, *, zero: bool = False) -> Markup:
    lines = [
        Line(name=WORDS.get(name.split("_")[0], title.lower()), points=[(row["epoch"], row[name]) for row in rows])
        for name in names
        if name in rows[0]
    ]
    heights = [value for line in lines for _, value in line.points]
    y = value_axis(title.lower() if len(title) < 20 else "NMI", heights, show, zero=zero)
    chart = line_chart(title, lines, whole_axis("epoch", [row["epoch"] for row in rows]), y)
    numbers = "" if names != ["mean"] else _nmi_table(rows)
    return figure(title, chart, legend=legend([line.name for line in lines]), numbers=numbers)


def _nmi_table(rows: Sequence[Row]) -> Markup:
    blocks = range(len(rows[0]["blocks"]))
    head = ["epoch", "mean", *(f"block {block + 1}" for block in blocks)]
    found = [[row["epoch"], row["mean"], *row["blocks"]] for row in rows]
    return table("NMI by epoch", head, [[_number(value) for value in row] for row in found])


def _number(value: Number | None) -> Cell:
    return number(MISSING if value is None else f"{value:.4g}", value)


def costs(run: RunRecord) -> Child:
    """What was trained, what is stored, and how long it took, beside the whole model."""
    cost, whole = run.summary["cost"], run.summary["backbone"]["parameters"]
    charts = [
        _bars("Parameters", {"backbone": whole, "trained": cost["trained_parameters"]}, short),
        _bars("Stored", {"backbone, fp32": 4 * whole, "delta": cost["delta_bytes"]}, size),
    ]
    if run.rows:
        seconds = [row["seconds"] for row in run.rows]
        spans = {"training": sum(seconds), "slowest epoch": max(seconds), "fastest epoch": min(seconds)}
        charts.append(_bars("Time, with validation", spans, duration))
    memory = cost.get("peak_memory_bytes")
    note = [] if memory is None else [tag("p", {"class": "note"}, f"Memory at most: {size(memory)}.")]
    return join([tag("div", {"class": "three"}, charts), note])


def _bars(title: str, values: dict[str, Number], show: Show) -> Markup:
    bars = [Bar(name=name, value=float(value), text=show(value)) for name, value in values.items()]
    rows = [[name, number(f"{value:,.6g}" if value % 1 else f"{value:,.0f}", value)] for name, value in values.items()]
    said = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    return figure(title, bar_chart(title, said, bars), numbers=table(title, ["of", title.lower()], rows))


def protocol(summary: dict[str, Any]) -> Child:
    """In words, and whole."""
    words = tag("ul", {"class": "plain"}, [tag("li", {}, sentence) for sentence in origin.in_words(summary)])
    return [
        words,
        origin.values("The protocol, whole", summary["protocol"]),
        origin.values("The configuration", summary["config"]),
    ]


def made(summary: dict[str, Any]) -> Child:
    """Command, versions, machine, and images that were left out."""
    skipped = summary["skipped_images"]
    lines = [tag("li", {}, isolated(line)) for line in skipped]
    left_out = fold(
        f"{origin.counted(len(skipped), 'image')} left out as unreadable",
        tag("ul", {"class": "plain"}, lines),
    )
    return [
        origin.command(summary["command"]),
        origin.environment({**summary["versions"], **summary["machine"]}),
        left_out if skipped else tag("p", {"class": "quiet"}, "No image was left out."),
    ]
