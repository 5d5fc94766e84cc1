"""`promptvit analyze attention`: how much attention goes to prompts, by block."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from promptvit.analysis.figures import Curve, draw_curves
from promptvit.cli.analyze import figure_path, labelled, make_analysis_parser, opened
from promptvit.cli.options import expand, parse
from promptvit.train.config import TrainConfig

if TYPE_CHECKING:
    import jsonargparse

Result = dict[str, Any]


def run(arguments: list[str]) -> None:
    """Measure, print, and draw if asked to."""
    parser, expanded = make_attention_parser(), expand(arguments)
    values = parse(parser, expanded)
    figure = figure_path(values)

    from promptvit.analysis.attention import prompt_attention  # after parsing: help needs no torch
    from promptvit.analysis.images import batches, choose
    from promptvit.checkpoint import load
    from promptvit.data.load import load_split, load_task
    from promptvit.train.device import make_accelerator

    folders = labelled(values["runs"])
    deltas, data = opened(folders, parser, expanded)
    device = make_accelerator(TrainConfig(device=values["device"])).device
    results = {}
    for label, delta in deltas.items():
        model = load(delta).to(device)
        val_set = load_split(load_task(data[label]).val, model.preprocessing, data[label])
        pixels, _ = choose(val_set, values["images"], "analyze attention")
        found = prompt_attention(model, batches(pixels, model.preprocessing, device))
        blocks = [None if block is None else {"mass": block.mass, "even": block.even} for block in found]
        results[label] = {"run": str(folders[label]), "images": len(pixels), "blocks": blocks}
    print(json.dumps({"runs": list(results.values())}) if values["json"] else describe(results))
    if figure is not None:
        draw_curves(figure, {label: curve(each) for label, each in results.items()}, "attention to prompts", "block")


def make_attention_parser() -> jsonargparse.ArgumentParser:
    """The options of `analyze attention`."""
    parser = make_analysis_parser(
        "attention",
        "How much of the attention of the rows that become features (CLS, or the mean of the patches) goes to prompts, "
        "by block, and how much it would be if all keys got the same. On the validation images of each run, or of "
        "--data.",
        "draw the attention to prompts against the block",
    )
    parser.add_argument("--images", type=int, default=64, help="validation images, at most")
    return parser


def curve(result: Result) -> Curve:
    """The mass of those blocks that have prompts, by their number."""
    return [(number, block["mass"]) for number, block in enumerate(result["blocks"], start=1) if block is not None]


def describe(results: dict[str, Result]) -> str:
    """A few lines for each run."""
    lines = []
    for label, result in results.items():
        lines.append(f"{label}: attention to prompts, by block ({result['images']} images)")
        lines += [f"  {name:<5} {row(result, name)}" for name in ("mass", "even")]
    return "\n".join(lines)


def row(result: Result, name: str) -> str:
    """A number for each block; a dash at one without prompts."""
    return " ".join("    -" if block is None else f"{block[name]:.3f}" for block in result["blocks"])
