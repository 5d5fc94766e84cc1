"""`promptvit analyze pruning`: which prompts and segments of a pruned run are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from promptvit.analysis.figures import draw_masks
from promptvit.cli.analyze import figure_path
from promptvit.cli.options import make_parser, parse
from promptvit.cli.runs import delta_folder
from promptvit.errors import ConfigError

if TYPE_CHECKING:
    import promptvit.model


def run(arguments: list[str]) -> None:
    """Read the masks, draw them if asked to, and print."""
    parser = make_parser("analyze pruning", "Which prompts and segments of a pruned run are kept.", "RUN ")
    parser.add_argument("run", metavar="RUN", help="the folder of a run that `promptvit prune` made")
    parser.add_argument("--figure", type=str | None, default=None, help="draw what is kept: a .png or .svg file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)
    figure = figure_path(values)

    from promptvit.checkpoint import load  # after parsing: help needs no torch

    folder = Path(values["run"])
    first, kept = kept_segments(load(delta_folder(folder)), folder)
    if figure is not None:
        draw_masks(figure, kept, first)
    shown = {"run": str(folder), "first": first, "kept": kept.astype(int).tolist()}
    print(json.dumps(shown) if values["json"] else describe(folder, first, kept))


def kept_segments(model: promptvit.model.TunedModel, folder: Path) -> tuple[int, np.ndarray]:
    """The number of the first block with prompts, from 1, and what is kept from there on, [L, P, S]."""
    from promptvit.methods.e2vpt import E2VPT
    from promptvit.pruning.scores import visual_prompts

    masks = model.method.masks if isinstance(model.method, E2VPT) else None
    if masks is None:
        raise ConfigError(f"{folder} is not pruned", expected="a pruned run", fix=f"promptvit prune {folder}")
    visual = visual_prompts(model)
    sets = 1 if visual.shared else visual.blocks
    return visual.first + 1, np.repeat(masks.kept_segments(sets), visual.blocks // sets, axis=0)


def describe(folder: Path, first: int, kept: np.ndarray) -> str:
    """Two lines: in all, and by block."""
    prompts = kept.any(axis=2)  # [L, P]
    counts = f"{np.sum(prompts)} of {prompts.size} prompts kept, {np.sum(kept)} of {kept.size} segments"
    start = "" if first == 1 else f" (from block {first})"
    by_block = " ".join(str(count) for count in np.sum(prompts, axis=1))
    return f"{folder.resolve().name}: {counts}\n  prompts by block{start}  {by_block}"
