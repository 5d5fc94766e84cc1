"""`promptvit analyze attribution`: which parts of an image the answer rests on, of one run or of two side by side."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptvit.analysis.config import Attribution
from promptvit.analysis.figures import Tile, draw_tiles, rendered
from promptvit.cli.analyze import figure_path, labelled, make_analysis_parser, opened
from promptvit.cli.options import expand, note, parse
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError, OutputError
from promptvit.train.config import TrainConfig

if TYPE_CHECKING:
    import jsonargparse
    import torch

    from promptvit.model import TunedModel
    from promptvit.report.maps import KeptMaps

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A model, the images [n, 3, H, W] as it sees them, their labels [n] and the classes [n] that it predicts."""

    model: TunedModel
    images: torch.Tensor
    labels: np.ndarray
    predicted: np.ndarray


def run(arguments: list[str]) -> None:
    """Look, score, draw, print, and keep what is shown for the report."""
    parser, expanded = make_attribution_parser(), expand(arguments)
    values = parse(parser, expanded)
    figure, kind = figure_path(values), values["kind"]
    folders = labelled(values["runs"])
    check(values, folders)

    from promptvit.analysis.attribution import require_captum  # after parsing: help needs no torch
    from promptvit.train.device import make_accelerator

    if kind == "integrated-gradients":
        require_captum()
    deltas, data = opened(folders, parser, expanded)
    device = make_accelerator(TrainConfig(device=values["device"])).device
    seen = {label: look(delta, data[label], values["images"], device) for label, delta in deltas.items()}
    where = compared(seen)
    if figure is not None and not where:
        raise ConfigError("the runs agree on every image: there is nothing to draw", fix="Look at more --images")
    shown = some(where, values["show"])
    explained = {label: explain(each, kind, shown, score=values["score"]) for label, each in seen.items()}
    result = {
        "kind": kind,
        "images": len(next(iter(seen.values())).labels),
        "runs": [
            {"run": str(folders[label]), "accuracy": float(right(each).mean()), **explained[label][1]}
            for label, each in seen.items()
        ],
        **(differences(list(seen.values()), where) if len(seen) == 2 else {}),
    }
    rows = rows_of(seen, {label: maps for label, (maps, _) in explained.items()}, shown)
    if figure is not None:
        draw_tiles(figure, rows)
    print(json.dumps(result) if values["json"] else describe(result, list(seen)))
    for (label, folder), found in zip(folders.items(), result["runs"], strict=True):
        if shown and (folder / "summary.json").is_file():
            keep(kept(label, rows, deltas[label], {**result, **found}, data[label].source), folder)


def make_attribution_parser() -> jsonargparse.ArgumentParser:
    """The options of `analyze attribution`."""
    parser = make_analysis_parser(
        "attribution",
        "Maps of what the answer of a tuned model rests on, and whether it does (--score). Of one run, or of two side "
        "by side on the images where their answers differ. On the validation images of each run, or of --data. "
        "The runs' reports have what was looked at last.",
        "draw images and maps",
    )
    parser.add_argument(
        "--kind",
        type=Attribution,
        default="grad-cam",
        help="how maps are made; integrated-gradients needs the extra analysis",
    )
    parser.add_argument("--images", type=int, default=200, help="validation images that are looked at, at most")
    parser.add_argument("--show", type=int, default=8, help="images in the figure and in the report, at most")
    parser.add_argument(
        "--score", action="store_true", help="deletion and insertion of all these images, against random maps"
    )
    return parser


def check(values: dict[str, Any], folders: dict[str, Path]) -> None:
    """Raise ConfigError for what cannot be asked."""
    typed, show = values["runs"], values["show"]
    runs = {folder.resolve() for folder in folders.values()}
    problems = {
        f"{len(folders)} runs: expected one, or two to compare": len(folders) > 2,
        "the same run twice": len(set(typed)) < len(typed) or len(runs) < len(folders),
        f"show={show}: expected at least 1": show < 1,
    }
    ConfigError.collect([problem for problem, holds in problems.items() if holds], "analyze attribution")


def look(delta: Path, data: DataConfig, wanted: int, device: torch.device) -> Seen:
    """At most `wanted` validation images as the model in `delta` sees them."""
    import torch

    from promptvit.analysis.images import batches, choose
    from promptvit.checkpoint import load
    from promptvit.data.load import load_split, load_task

    model = load(delta).to(device)
    pixels, labels = choose(load_split(load_task(data).val, model.preprocessing, data), wanted, "analyze attribution")
    images, folded = list(batches(pixels, model.preprocessing, device)), model.fold()
    with torch.no_grad():
        predicted = torch.cat([folded(part).argmax(dim=1) for part in images]).cpu().numpy()
    return Seen(model=model, images=torch.cat(images), labels=labels.numpy(), predicted=predicted)


def compared(seen: dict[str, Seen]) -> list[int]:
    """The places of the images to show: all of a single run, or those on which two runs differ.

    Raises ConfigError for runs of different images or classes.
    """
    first, *others = seen.values()
    if not others:
        return list(range(len(first.labels)))
    (second,) = others
    if first.model.classes != second.model.classes or not np.array_equal(first.labels, second.labels):
        raise ConfigError(
            f"{' and '.join(seen)} are of different images or classes",
            expected="two runs of one task",
            where="analyze attribution",
            fix="Name the images of both with --data",
        )
    return np.flatnonzero(first.predicted != second.predicted).tolist()


def some(places: list[int], wanted: int) -> list[int]:
    """At most `wanted` of them, from all over: images may be sorted by class."""
    count = min(wanted, len(places))
    return [places[i * len(places) // count] for i in range(count)]


def explain(seen: Seen, kind: Attribution, shown: list[int], *, score: bool) -> tuple[list[np.ndarray], Result]:
    """Maps of the images that are `shown`, and, if asked for, the scores of the maps of all images."""
    from promptvit.analysis.attribution import attribution_maps
    from promptvit.analysis.faithfulness import against_random

    if not score:
        return [*attribution_maps(seen.model, [seen.images[shown]], kind).numpy()] if shown else [], {}
    maps = attribution_maps(seen.model, [seen.images], kind)
    scores = against_random(seen.model, seen.images, maps)
    return [*maps.numpy()[shown]], {name: dataclasses.asdict(each) for name, each in scores.items()}


def right(seen: Seen) -> np.ndarray:
    """Where the prediction is the label [n]."""
    return seen.predicted == seen.labels


def differences(seen: list[Seen], where: list[int]) -> Result:
    """On how many images two runs differ, and how many of them each has right."""
    return {"differ": len(where), "right": [int(right(each)[where].sum()) for each in seen]}


def rows_of(seen: dict[str, Seen], maps: dict[str, list[np.ndarray]], shown: list[int]) -> dict[str, list[Tile]]:
    """The images with their labels, and a row of maps for each run with what it predicts."""
    first = next(iter(seen.values()))
    names = first.model.classes
    rows = {"": [Tile(title=names[first.labels[i]], pixels=colours(first, i)) for i in shown]}
    for label, each in seen.items():
        rows[label] = [
            Tile(title=names[each.predicted[i]], pixels=colours(each, i), map=map_of)
            for i, map_of in zip(shown, maps[label], strict=True)
        ]
    return rows


def keep(maps: KeptMaps, folder: Path) -> None:
    """In the folder of a run, if it can be written."""
    try:
        maps.write(folder)
        note(f"kept for the report: promptvit report {folder}")
    except OutputError as error:
        note(f"not kept for a report: {error}")


def kept(label: str, rows: dict[str, list[Tile]], delta: Path, found: Result, source: str) -> KeptMaps:
    """The maps of the run that is called `label`, and of one beside it, for the report of its folder."""
    from PIL import Image

    from promptvit.delta_files import read_description
    from promptvit.report.maps import KeptMaps, MapsOf
    from promptvit.report.pictures import small

    def pictures(name: str) -> list[str]:
        return [small(Image.fromarray(rendered(tile))).address for tile in rows[name]]

    names = sorted(rows.keys() - {""}, key=lambda name: name != label)
    return KeptMaps(
        delta=str(read_description(delta).get("sha256")),
        source=Path(source).name or source,
        kind=found["kind"],
        images=found["images"],
        accuracy=found["accuracy"],
        scores={name: found[name] for name in ("deletion", "insertion") if name in found},
        labels=[tile.title for tile in rows[""]],
        pictures=pictures(""),
        runs=[
            MapsOf(run=name, predicted=[tile.title for tile in rows[name]], pictures=pictures(name)) for name in names
        ],
    )


def colours(seen: Seen, number: int) -> np.ndarray:
    """The image [h, w, 3] in [0, 1], as the model sees it."""
    pixels, form = seen.images[number].permute(1, 2, 0).cpu().numpy(), seen.model.preprocessing
    return np.clip(pixels * np.array(form.std) + np.array(form.mean), 0, 1)


def describe(result: Result, labels: list[str]) -> str:
    """A few lines."""
    lines = []
    for label, each in zip(labels, result["runs"], strict=True):
        lines.append(f"{label}: {each['accuracy']:.1%} of {result['images']} images right")
        for name, better in (("deletion", "lower"), ("insertion", "higher")):
            if name in each:
                score = each[name]
                lines.append(
                    f"  {name:<9}  {score['maps']:.3f}, random maps {score['random']:.3f} "
                    f"({better} is better; p = {score['p']:.2g})"
                )
    if "differ" in result:
        of_first, of_second = result["right"]
        lines.append(
            f"they differ on {result['differ']}: {labels[0]} is right on {of_first}, {labels[1]} on {of_second}"
        )
    return "\n".join(lines)
