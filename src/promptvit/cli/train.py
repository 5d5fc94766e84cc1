"""`promptvit train`: one run, from images to a folder with the tuned task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptvit.analysis.config import Variant
from promptvit.backbones.source import BackboneSource
from promptvit.cli.options import add_fields, command_line, expand, make_parser, note, option_value, parse
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.train.config import RunConfig, TrainConfig

if TYPE_CHECKING:
    import jsonargparse

    from promptvit.train.loop import Listener

DEFAULT_METHOD = "vpt-deep"


def run(arguments: list[str]) -> None:
    """Parse, train, print."""
    expanded = expand(arguments)
    method = option_value(expanded, "--method.name")
    wants_help = not {"-h", "--help"}.isdisjoint(expanded)
    parser = make_train_parser(method, expanded, with_method=method is not None or not wants_help)
    values = parse(parser, expanded)
    config = RunConfig.from_dict(values)
    if values["resume"] and not (values["out"] and Path(values["out"], "config.yaml").exists()):
        raise ConfigError(
            f"--resume with --out {values['out']}", expected="--out with the folder of a run that was begun"
        )
    folder = Path(values["out"]) if values["out"] else default_folder(config)

    from promptvit.train.loop import fit  # after parsing: help and wrong usage need no torch

    variant = begun_variant(folder, values["nmi"]) if values["resume"] else values["nmi"]
    with Bars() as bars:
        summary = fit(
            config,
            folder,
            resume=values["resume"],
            listener=following(bars.listener(), variant),
            command=command_line("train", arguments),
        )
    print(json.dumps(summary, ensure_ascii=False) if values["json"] else describe(summary, folder))


def make_train_parser(
    method: str | None, arguments: Sequence[str] = (), *, with_method: bool
) -> jsonargparse.ArgumentParser:
    """The options of `train`; the method's own need its class, and so torch."""
    parser = make_parser(
        "train", "Tune a backbone on your images (--data FOLDER: a subfolder per class, or list files)."
    )
    parser.add_argument("--config", help="a YAML file with any of these options; later options win")
    parser.add_argument("--out", type=str | None, default=None, help="the run's folder; runs/TASK-METHOD by default")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument(
        "--nmi",
        type=Variant | None,
        default=None,
        help="follow how much prompts tell of patches, epoch by epoch, in nmi.jsonl; see promptvit analyze nmi",
    )
    parser.add_argument(
        "--method.name", default=DEFAULT_METHOD, help="or --method; --method NAME --help adds its options here"
    )
    if with_method:
        from promptvit.cli.method_options import add_method

        add_method(parser, method or DEFAULT_METHOD, arguments)
    for prefix, config in (("data", DataConfig), ("backbone", BackboneSource), ("train", TrainConfig)):
        add_fields(parser, prefix, config)
    return parser


def begun_variant(folder: Path, typed: Variant | None) -> Variant | None:
    """The NMI that the run in `folder` has followed so far, or the `typed` one; raises ConfigError if these differ, or
    if a run that is done has followed none."""
    from promptvit.analysis.nmi import read_curve
    from promptvit.train.folder import RunFolder

    rows = read_curve(folder)
    if not rows:
        if typed is not None and RunFolder(folder).summary.exists():
            raise ConfigError(
                f"--nmi {typed} with --resume: the run in {folder} is done",
                fix=f"promptvit analyze nmi {folder} --variant {typed} measures it",
            )
        return typed
    begun = rows[0]["variant"]
    if typed not in (None, begun):
        raise ConfigError(f"--nmi {typed} with --resume", expected=f"{begun}, as the run in {folder} was begun")
    return begun


def following(listener: Listener, variant: Variant | None) -> Listener:
    """`listener` that also records this NMI."""
    if variant is None:
        return listener
    from promptvit.analysis.nmi import record

    return dataclasses.replace(listener, watch=partial(record, variant=variant))


def default_folder(config: RunConfig) -> Path:
    """`runs/TASK-METHOD`, or the next free one."""
    return free_folder(f"{Path(config.data.source).resolve().name}-{config.method['name']}")


def free_folder(name: str) -> Path:
    """`runs/NAME`, with a number behind it if that is taken."""
    stem = Path("runs") / name
    number, folder = 1, stem
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return folder


def describe(summary: dict[str, Any], folder: Path) -> str:
    """A few lines for a person."""
    result, cost = summary["result"], summary["cost"]
    split = "test" if result["test"] else "val"
    metrics = result[split]
    lines = [
        f"{summary['task']['name']}: {100 * metrics['top1']:.1f} % of {metrics['images']} {split} images right "
        f"(balanced {100 * metrics['balanced']:.1f} %)",
        f"{cost['trained_parameters']:,} parameters trained ({cost['trained_percent']:.2f} %), "
        f"delta {cost['delta_bytes'] / 1024:,.0f} KiB, {cost['seconds']:.0f} s",
        f"saved in {folder}",
        f"next: promptvit predict {folder} IMAGE...",
    ]
    if summary["skipped_images"]:
        lines.insert(0, f"skipped {len(summary['skipped_images'])} broken images (listed in summary.json)")
    return "\n".join(lines)


class Bars:
    """A progress bar over the whole run, on stderr, with the last epoch's figures."""

    def __init__(self, label: str = "training") -> None:
        self.label = label
        self.bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def listener(self) -> Listener:
        """What the run calls."""
        from promptvit.train.loop import Listener

        return Listener(read=self.read, begin=self.begin, step=lambda: self.bar.update(), epoch=self.epoch)

    def read(self, split: str, done: int, total: int) -> None:
        """Images being decoded or checked."""
        if done == 1:
            self.show(f"reading {split} images", total, "image")
        self.bar.update()

    def begin(self, total: int, done: int) -> None:
        """Updates to come; a resumed run starts in its middle."""
        if done:
            note(f"resuming after {done} of {total} updates")
        self.show(self.label, total, "step", done)

    def show(self, label: str, total: int, unit: str, done: int = 0) -> None:
        """A new bar in place of the last; none unless stderr is a terminal."""
        from tqdm import tqdm

        if self.bar is not None:
            self.bar.close()
        self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, disable=None, leave=False)

    def epoch(self, row: dict[str, Any]) -> None:
        """The figures of an epoch beside the bar."""
        self.bar.set_postfix_str(f"loss {row['train_loss']:.3f}, val {100 * row['val_top1']:.1f} %")
