"""`promptvit analyze preservation`: what tuned models keep of their pretrained backbone, depth by depth."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptvit.analysis.config import PRESERVATION
from promptvit.analysis.figures import COLOURS, Chart, Curve, Grid, Line, draw_charts
from promptvit.cli.analyze import UNUSED, figure_path, labelled, make_analysis_parser, opened
from promptvit.cli.columns import columns
from promptvit.cli.options import expand, note, option_value, parse
from promptvit.cli.runs import run_config
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.files import digest, json_bytes
from promptvit.train.config import TrainConfig

if TYPE_CHECKING:
    import jsonargparse

    from promptvit.analysis.layers import Row
    from promptvit.analysis.preservation import Preservation

IN_A_ROW = 3
"""Panels of a figure."""
Asked = dict[str, Any]
"""All that a result depends on, as plain values."""


def run(arguments: list[str]) -> None:
    """Measure what is not known yet, draw if asked to, and print."""
    parser, expanded = make_preservation_parser(), expand(arguments)
    values = parse(parser, expanded)
    figure = figure_path(values)

    from promptvit.analysis.preservation import Kept, preservation, reading  # after parsing: help needs no torch
    from promptvit.checkpoint import load, load_named_backbone
    from promptvit.train.device import make_accelerator

    folders = labelled(values["runs"])
    deltas, data = opened(folders, parser, expanded)
    asked = {label: question(deltas[label], data[label], values["other"], values["images"]) for label in folders}
    if figure is not None:
        check_one_backbone(asked)
    if option_value(expanded, "--data.source") is None:
        warn_of_trained_images(folders)
    device = make_accelerator(TrainConfig(device=values["device"])).device
    results: dict[str, Preservation] = {}
    refused: dict[str, ConfigError] = {}
    for label, folder in folders.items():
        path = kept_at(folder, values["out"], asked[label])
        kept = Kept.read(path)
        if kept is not None and kept.asked == asked[label]:
            note(f"{label}: measured before, in {path}")
            results[label] = kept.found
            continue
        pretrained = load_named_backbone(deltas[label]).to(device)
        model = load(deltas[label], backbone=pretrained).to(device)
        other = None if values["other"] is None else dataclasses.replace(data[label], source=values["other"])
        try:
            results[label] = preservation(model, pretrained, data[label], other=other, images=values["images"])
        except ConfigError as error:  # a ConvNet among other runs, say
            refused[label] = error
            continue
        Kept(asked=asked[label], found=results[label]).write(path)
    for label, error in refused.items():
        if not results:
            raise error
        note(f"{label} is left out: {error}")
    if figure is not None:
        parts = panels(results)
        draw_charts(figure, [parts[at : at + IN_A_ROW] for at in range(0, len(parts), IN_A_ROW)])
    if values["json"]:
        shown = [
            {"run": str(folders[label]), "other_data": values["other"], "reading": reading(each), **each.to_dict()}
            for label, each in results.items()
        ]
        print(json.dumps({"runs": shown}))
    else:
        print("\n\n".join(f"{label}: {reading(each)}\n{table(each)}" for label, each in results.items()))


def make_preservation_parser() -> jsonargparse.ArgumentParser:
    """The options of `analyze preservation`."""
    parser = make_analysis_parser(
        "preservation",
        "What tuned models keep of their pretrained backbone, depth by depth: accuracy of linear and kNN probes before "
        "and after, CKA of features before and after on the task's images and on others (forgetting), and how far "
        "weights have moved. Results are kept, and read again by the same command.",
        "draw probes, CKA and weights",
    )
    parser.add_argument("--other", type=str | None, default=None, metavar="DATA", help="images of another task")
    parser.add_argument("--images", type=int, default=500, help="images of each split, at most")
    parser.add_argument("--out", type=str | None, default=None, metavar="FOLDER", help="keep results here, not in RUN")
    return parser


def question(delta: Path, data: DataConfig, other: str | None, images: int) -> Asked:
    """What is asked of the delta in a folder."""
    from promptvit.analysis.preservation import FORMAT
    from promptvit.delta_files import read_description

    description = read_description(delta)
    used = {name: value for name, value in data.__dict__.items() if name not in (*UNUSED, "cache_gib")}
    return {
        "format": FORMAT,
        "delta": description.get("sha256"),
        "backbone": description.get("backbone", {}).get("fingerprint"),
        "data": used,
        "other": other,
        "images": images,
    }


def check_one_backbone(asked: dict[str, Asked]) -> None:
    """Raise ConfigError for runs whose depths cannot be laid over each other."""
    (first, one), *others = asked.items()
    for label, other in others:
        if other["backbone"] != one["backbone"]:
            raise ConfigError(
                f"{first} and {label} were tuned on different backbones",
                expected="runs of the same pretrained weights",
                where="analyze preservation",
                fix="One command for each backbone",
            )


def warn_of_trained_images(folders: dict[str, Path]) -> None:
    """A line for the person, for runs whose validation images are no longer new."""
    trained = [label for label, folder in folders.items() if run_config(folder).data.train_on != "train"]
    if trained:
        note(f"validation images were trained on, so probes after tuning say too much: {', '.join(trained)}")


def kept_at(folder: Path, out: str | None, asked: Asked) -> Path:
    """The file of the answer: in the run's folder, or in `out` under a name of its own."""
    if out is None:
        return folder / PRESERVATION
    return Path(out) / f"preservation-{digest(json_bytes(asked))[:12]}.json"


def panels(results: dict[str, Preservation]) -> list[Chart | Grid]:
    """Probes and CKA of all runs, the whole CKA of each, and how weights have moved, if they have."""
    colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(results)}
    charts: list[Chart | Grid] = [
        Chart(title=title, x="depth", y="accuracy", lines=probe_lines(results, colours, probe))
        for probe, title in (("linear", "Linear probe"), ("knn", "kNN probe"))
    ]
    charts.append(Chart(title="CKA with pretrained, same depth", x="depth", y="CKA", lines=cka_lines(results, colours)))
    for label, each in results.items():
        values = np.array(each.own.cka[each.read], dtype=np.float64)
        charts.append(Grid(title=f"CKA, {label}", x="depth, tuned", y="depth, pretrained", values=values))
    moved = [
        Line(name=label, points=line_of([100 * share for share in each.weights], start=1), colour=colours[label])
        for label, each in results.items()
    ]
    if any(any(each.weights) for each in results.values()):
        charts.append(Chart(title="Weights of blocks moved", x="block", y="% of their norm", lines=moved, zero=True))
    return charts


def probe_lines(results: dict[str, Preservation], colours: dict[str, str], probe: Any) -> list[Line]:
    """A line for each run, and one for what they start from, or one each if they start from different features."""
    before = {label: each.probes["before"][each.read][probe] for label, each in results.items()}
    first, *others = before.values()
    if all(other == first for other in others):
        lines = [Line(name="pretrained", points=line_of(first), colour="0.3", style=":")]
    else:
        lines = [
            Line(name=f"{label}, pretrained", points=line_of(values), colour=colours[label], style=":")
            for label, values in before.items()
        ]
    after = {label: each.probes["after"][each.read][probe] for label, each in results.items()}
    return lines + [Line(name=label, points=line_of(after[label]), colour=colours[label]) for label in after]


def cka_lines(results: dict[str, Preservation], colours: dict[str, str]) -> list[Line]:
    """On the task's images, and dashed on the others."""
    lines = []
    for label, each in results.items():
        own, colour = line_of(each.own.same_depth(each.read)), colours[label]
        lines.append(Line(name=label, points=own, colour=colour))
        if each.other is not None:
            other = line_of(each.other.same_depth(each.read))
            lines.append(Line(name=f"{label}, other images", points=other, colour=colour, style="--"))
    return lines


def line_of(values: Sequence[float | None], start: int = 0) -> Curve:
    """Values at whole numbers; nan in place of those that are missing."""
    return [(place, math.nan if value is None else value) for place, value in enumerate(values, start=start)]


def table(found: Preservation) -> str:
    """A line for each depth, of the row that the head reads."""
    row: Row = found.read
    before, after = found.probes["before"][row], found.probes["after"][row]
    parts: dict[str, Sequence[float | None]] = {
        "linear before": before["linear"],
        "linear after": after["linear"],
        "kNN before": before["knn"],
        "kNN after": after["knn"],
        "CKA": found.own.same_depth(row),
        "cosine distance": found.own.cosine[row],
    }
    if found.other is not None:
        parts |= {"CKA, other": found.other.same_depth(row), "cosine distance, other": found.other.cosine[row]}
    parts["block moved by"] = [None, *found.weights]
    rows = zip(range(len(found.weights) + 1), *parts.values(), strict=True)
    lines = [[str(depth), *("-" if value is None else f"{value:.3f}" for value in values)] for depth, *values in rows]
    return columns([["depth", *parts], *lines])
