"""`promptvit data stats DATA`: statistics of a task's features in a small file, and how far they lie from others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from promptvit.backbones.source import BackboneSource
from promptvit.cli.data import Bar
from promptvit.cli.options import add_fields, expand, make_parser, parse
from promptvit.data.config import BrokenPolicy, DataConfig
from promptvit.errors import ConfigError
from promptvit.train.config import Device, TrainConfig

if TYPE_CHECKING:
    import jsonargparse
    import torch

    from promptvit.analysis.extractor import Extractor
    from promptvit.analysis.feature_stats import FeatureStats
    from promptvit.analysis.jackknife import Measured
    from promptvit.analysis.shift import Shift

ENDING, BUNDLED = ".safetensors", "bundled"


def run(arguments: list[str]) -> None:
    """Parse, read features, write, compare, print."""
    expanded = expand(arguments)
    values = parse(make_stats_parser(), expanded)
    out = None if values["out"] is None else Path(values["out"])
    check_options(values, expanded, out)

    from promptvit.analysis.extractor import task_stats  # after parsing: help needs no torch
    from promptvit.analysis.shift import shift
    from promptvit.train.device import make_accelerator

    reference = read_reference(values)  # before images are read, which may take minutes
    extractor = make_extractor(values, make_accelerator(TrainConfig(device=values["device"])).device)
    if reference is not None:
        extractor.space.check(reference.space)
    data = DataConfig(source=values["source"], broken=values["broken"])
    with Bar() as bar:
        stats = task_stats(extractor, data, values["split"], values["images"], bar)
    if out is not None:
        stats.save(out)
    found = None if reference is None else shift(stats, reference)
    print(json.dumps(as_json(stats, out, found), ensure_ascii=False) if values["json"] else describe(stats, out, found))


def make_stats_parser() -> jsonargparse.ArgumentParser:
    """The options of `data stats`."""
    parser = make_parser(
        "data stats",
        "Features of a task's images by a pretrained backbone: mean, covariance and some rows, in a file that stands "
        "for the images. And how far they lie from others: Fréchet distance, KID, excess, with intervals.",
        "DATA ",
    )
    parser.add_argument("source", metavar="DATA", help="what --data of train takes")
    parser.add_argument("--out", type=str | None, default=None, metavar=f"FILE{ENDING}", help="write the statistics")
    parser.add_argument(
        "--against",
        type=str | None,
        default=None,
        metavar="FILE",
        help=f"compare with the statistics in a file; {BUNDLED}: with those of a bundled backbone's pretraining images",
    )
    parser.add_argument("--split", type=Literal["train", "val", "test"], default="train", help="which images")
    parser.add_argument("--images", type=int | None, default=None, help="at most so many, drawn at random; null is all")
    parser.add_argument("--broken", type=BrokenPolicy, default="error", help="images that cannot be decoded")
    parser.add_argument(
        "--inception",
        type=str | None,
        default=None,
        metavar="FILE",
        help="Inception-v3 with these weights in place of a backbone, as papers have it (extra analysis)",
    )
    parser.add_argument("--device", type=Device, default="auto", help="where to compute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_fields(parser, "backbone", BackboneSource)
    return parser


def check_options(values: dict, expanded: Sequence[str], out: Path | None) -> None:
    """Raise ConfigError for options that mean nothing together."""
    problems = []
    if out is None and values["against"] is None:
        problems.append("nothing to make: expected --out FILE.safetensors or --against FILE")
    if out is not None and out.suffix != ENDING:
        problems.append(f"--out {out}: expected a name that ends with {ENDING}")
    typed = [word.partition("=")[0] for word in expanded if word.startswith("--backbone.")]
    if values["inception"] is not None and typed:
        problems.append(f"{typed[0]} with --inception: expected one of them")
    if values["inception"] is not None and values["against"] == BUNDLED:
        problems.append(f"--against {BUNDLED} with --inception: expected a file, there are none for Inception")
    ConfigError.collect(problems, "data stats")


def read_reference(values: dict) -> FeatureStats | None:
    """What the task is to be compared with."""
    from promptvit.analysis.feature_stats import FeatureStats, pretraining_stats

    if values["against"] is None:
        return None
    if values["against"] == BUNDLED:
        return pretraining_stats(values["backbone"]["name"])
    return FeatureStats.read(values["against"])


def make_extractor(values: dict, device: torch.device) -> Extractor:
    """Inception or the backbone, as typed."""
    from promptvit.analysis.extractor import Extractor
    from promptvit.analysis.inception import inception
    from promptvit.backbones.load import load_source

    if values["inception"] is not None:
        return inception(values["inception"], device)
    return Extractor.of(load_source(BackboneSource.from_dict(values["backbone"])).to(device))


def as_json(stats: FeatureStats, out: Path | None, found: Shift | None) -> dict:
    """What was made, in plain values."""
    return {
        "name": stats.name,
        "extractor": stats.space.extractor,
        "fingerprint": stats.space.fingerprint,
        "images": stats.count,
        "distinct": stats.distinct,
        "features": stats.width,
        "rows": len(stats.rows),
        "out": None if out is None else str(out),
        "shift": None if found is None else found.to_dict(),
    }


def describe(stats: FeatureStats, out: Path | None, found: Shift | None) -> str:
    """A few lines for a person."""
    copies = stats.count - stats.distinct
    lines = [
        f"{stats.name}: {stats.count:,} images{f', {copies:,} of them copies' if copies else ''}; "
        f"{stats.width:,} features of {stats.space.extractor}"
    ]
    if out is not None:
        lines.append(f"saved in {out} ({out.stat().st_size / 1024:,.0f} KiB)")
    if found is not None:
        lines += [
            f"against {found.reference}, {found.n:,} images a side, intervals of {100 * found.kernel.level:g} %:",
            f"  {'KID':<12}{row(found.kernel)}",
            f"  {'excess':<12}{row(found.excess)}",
            f"  {'FD':<12}{row(found.frechet)}  at N = {found.n:,} alone",
            f"  {'self-ratio':<12}{row(found.self_ratio)}  at N = {found.n:,} alone",
        ]
        if found.at_infinity is not None:
            lines.append(f"  {'FD, N = inf':<12}{row(found.at_infinity)}")
        lines += [f"note: {each}" for each in found.notes]
    return "\n".join(lines)


def row(measured: Measured) -> str:
    """The value and its interval."""
    return f"{measured.value:>10.4g}  [{measured.low:.4g}, {measured.high:.4g}]"
