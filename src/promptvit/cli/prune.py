"""`promptvit prune`: a smaller run from a run, without the prompts that do not help."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptvit.cli.options import add_fields, command_line, expand, make_parser, parse
from promptvit.cli.train import Bars
from promptvit.errors import ConfigError
from promptvit.pruning.config import PruneConfig
from promptvit.train.config import Device

if TYPE_CHECKING:
    from promptvit.train.loop import Listener

LISTS = ("--tokens", "--segments", "--percents")
HEAD = ("prompts", "segments", "parameters", "MFLOPs", "delta", "val before", "after mask", "after rewind")


def run(arguments: list[str]) -> None:
    """Parse, prune, print."""
    parser = make_parser(
        "prune",
        "Score the prompts of a finished run, remove the least important, train a few of the candidates again, and "
        "keep the one that does best on the validation images.",
        "RUN ",
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--out", type=str | None, default=None, help="the new folder; RUN-pruned by default")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --out")
    parser.add_argument("--device", type=Device | None, default=None, help="where to compute; null: as the run")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    add_fields(parser, "", PruneConfig)
    values = parse(parser, bracketed(expand(arguments)))
    config = PruneConfig(**{field.name: values[field.name] for field in dataclasses.fields(PruneConfig)})
    source = Path(values["run"])
    beside = source if source.name.strip(".") else source.resolve()  # "." and ".." name no folder
    folder = Path(values["out"] or beside.with_name(f"{source.resolve().name}-pruned"))
    if values["resume"] and not (folder / "prune.json").exists():
        raise ConfigError(f"--resume with --out {folder}", expected="--out with the folder of a search that was begun")

    from promptvit.pruning.search import PruneListener, prune_run  # after parsing: help needs no torch

    with Bars() as bars:
        summary = prune_run(
            source,
            folder,
            config,
            resume=values["resume"],
            device=values["device"],
            listener=PruneListener(
                phase=lambda what, steps: bars.show(what, steps, "step"),
                step=lambda: bars.bar.update(),
                training=lambda number, count: training(bars, number, count),
            ),
            command=command_line("prune", arguments),
        )
    print(json.dumps(summary, ensure_ascii=False) if values["json"] else describe(summary, folder))


def bracketed(arguments: Sequence[str]) -> list[str]:
    """The arguments with brackets around numbers where lists are wanted: `--tokens 2,5`."""
    found = list(arguments)
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in LISTS and equals:
            found[place] = f"{name}={_list(value)}"
        elif name in LISTS and place + 1 < len(arguments):
            found[place + 1] = _list(arguments[place + 1])
    return found


def _list(value: str) -> str:
    return f"[{value}]" if re.fullmatch(r"[-\d.,]+", value) else value


def training(bars: Bars, number: int, count: int) -> Listener:
    """Who shows the training of one of `count` candidates."""
    bars.label = f"training {number} of {count}"
    return bars.listener()


def describe(summary: dict[str, Any], folder: Path) -> str:
    """The table of what was tried, and what came of it."""
    pruning = summary["pruning"]
    unpruned, chosen = pruning["unpruned"], pruning["chosen"]
    trained = {(row["tokens"], row["segments"]): row for row in pruning["trained"]}
    rows = [unpruned, *(trained.get((row["tokens"], row["segments"]), row) for row in pruning["candidates"])]
    marks = ["*" if (row["tokens"], row["segments"]) == (chosen["tokens"], chosen["segments"]) else " " for row in rows]
    lines = [
        aligned(("", *HEAD)),
        *(aligned((mark, *cells(row, unpruned))) for mark, row in zip(marks, rows, strict=True)),
        "",
        "prompts, segments: kept, mean per block; parameters: trained, head included; MFLOPs: per image, folded;",
        "after mask: as it is, untrained; after rewind: trained again; all accuracies on validation images, in %",
    ]
    split = "test" if summary["result"]["test"] else "val"
    before, after = (result[split]["top1"] for result in (unpruned["result"], summary["result"]))
    share = chosen["prompt_parameters"] / unpruned["prompt_parameters"]
    failed = {row["failed"] for row in pruning["trained"] if "failed" in row}
    return "\n".join(
        [
            *lines,
            "",
            *(f"failed: {reason}" for reason in sorted(failed)),
            f"chosen (*): {100 * share:.0f} % of the prompt values; {pruning['trainings']} candidates trained again; "
            f"{split} accuracy {100 * before:.1f} % before, {100 * after:.1f} % now",
            f"saved in {folder}",
        ]
    )


def cells(row: dict[str, Any], unpruned: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    again = row.get("trained")
    return (
        f"{row['kept_tokens']:.4g}",
        f"{row['kept_segments']:.4g}",
        f"{row['trained_parameters']:,}",
        f"{row['flops'] / 1e6:,.1f}",
        f"{row['delta_bytes'] / 1024:,.0f} KiB",
        f"{100 * unpruned['masked']['top1']:.1f}",
        "" if row is unpruned else f"{100 * row['masked']['top1']:.1f}",
        f"{100 * again['top1']:.1f}" if again else "failed" if "failed" in row else "",
    )


def aligned(parts: tuple[str, ...]) -> str:
    """The parts below each other, as wide as their titles or more."""
    widths = (1, *(max(len(title), 8) for title in HEAD))
    return "  ".join(part.rjust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
