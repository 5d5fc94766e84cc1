"""`promptvit analyze embedding`: features before and after tuning as points in the plane."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from promptvit.analysis.config import Embedding
from promptvit.analysis.figures import Panel, draw_embedding
from promptvit.cli.analyze import figure_path, labelled, make_analysis_parser, opened
from promptvit.cli.options import expand, parse
from promptvit.errors import ConfigError
from promptvit.train.config import TrainConfig

if TYPE_CHECKING:
    import jsonargparse

Result = dict[str, Any]


def run(arguments: list[str]) -> None:
    """Place the features of each run, draw them, and print."""
    parser, expanded = make_embedding_parser(), expand(arguments)
    values = parse(parser, expanded)
    figure, kind, seed = figure_path(values), values["kind"], values["seed"]
    if figure is None and not values["json"]:
        raise ConfigError("nothing to make", expected="--figure FILE or --json", where="analyze embedding")

    from promptvit.analysis.embedding import require_umap, task_features  # after parsing: help needs no torch
    from promptvit.checkpoint import load, load_named_backbone
    from promptvit.train.device import make_accelerator

    if kind != "tsne":
        require_umap()
    folders = labelled(values["runs"])
    deltas, data = opened(folders, parser, expanded)
    device = make_accelerator(TrainConfig(device=values["device"])).device
    results = {}
    for label, delta in deltas.items():
        pretrained = load_named_backbone(delta).to(device)
        model = load(delta, backbone=pretrained).to(device)
        found = task_features(model, pretrained, data[label], values["images"])
        results[label] = {
            "run": str(folders[label]),
            "classes": list(found.classes),
            "labels": found.labels.tolist(),
            "before": place(found.before, found.labels, kind, seed),
            "after": place(found.after, found.labels, kind, seed),
        }
    if figure is not None:
        draw_embedding(figure, rows_of(results), disk=kind == "poincare")
    shown = {"kind": kind, "seed": seed, "runs": list(results.values())}
    print(json.dumps(shown) if values["json"] else describe(results))


def make_embedding_parser() -> jsonargparse.ArgumentParser:
    """The options of `analyze embedding`."""
    parser = make_analysis_parser(
        "embedding",
        "Features as points in the plane: of the pretrained backbone alone (before) and of tuned models (after). And "
        "how well classes separate: the silhouette score of the features under cosine distance. On the validation "
        "images of each run, or of --data.",
        "draw the points",
    )
    parser.add_argument(
        "--kind",
        type=Embedding,
        default="tsne",
        help="t-SNE, UMAP, or UMAP in the Poincaré disk; the last two need the extra analysis",
    )
    parser.add_argument("--images", type=int, default=500, help="validation images, at most")
    parser.add_argument("--seed", type=int, default=0, help="of UMAP; t-SNE starts from principal components")
    return parser


def place(features: np.ndarray, labels: np.ndarray, kind: Embedding, seed: int) -> Result:
    """How well classes separate, and a point for each image."""
    from promptvit.analysis.embedding import embed, separation

    return {"silhouette": separation(features, labels), "points": embed(features, kind, seed).tolist()}


def rows_of(results: dict[str, Result]) -> list[tuple[Sequence[str], list[Panel]]]:
    """Rows of panels for `draw_embedding`: a single one if all runs start from the same points, else one for each."""
    first, *others = results.values()
    if all(other[part] == first[part] for other in others for part in ("classes", "labels", "before")):
        after = [panel(f"{label}: after" if others else "after", each, "after") for label, each in results.items()]
        return [(first["classes"], [panel("before", first, "before"), *after])]
    return [
        (each["classes"], [panel(f"{label}: {moment}", each, moment) for moment in ("before", "after")])
        for label, each in results.items()
    ]


def panel(title: str, result: Result, moment: str) -> Panel:
    """The points of a run, before or after."""
    placed = result[moment]
    points, labels = np.array(placed["points"]), np.array(result["labels"])
    return Panel(title=title, note=f"silhouette {score(placed)}", points=points, labels=labels)


def describe(results: dict[str, Result]) -> str:
    """A line for each run."""
    return "\n".join(
        f"{label}: silhouette {score(each['before'])} before, {score(each['after'])} after "
        f"({len(each['labels'])} images, {len(each['classes'])} classes)"
        for label, each in results.items()
    )


def score(placed: Result) -> str:
    """The silhouette score; a dash where there is none."""
    return "-" if placed["silhouette"] is None else f"{placed['silhouette']:.3f}"
