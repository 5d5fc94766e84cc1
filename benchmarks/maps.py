"""Whether maps of prompted models mark what their answers rest on: `python -m benchmarks.maps --swin FOLDER`.

VPT-deep on `vit_pico` and on a small Swin (cifar10 of mini-VTAB, digits), trained here. Deletion and insertion of each
kind of map over 200 validation images against random maps, as `promptvit analyze attribution --score` has them, and of
a map that marks the middle of every image. FOLDER: from `scripts.pretrain_pico supervised --architecture swin`. Writes
`docs/results/maps.*`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

import promptvit as pv
from benchmarks.machine import ROOT, commit, machine
from promptvit.analysis.attribution import attribution_maps
from promptvit.analysis.config import Attribution
from promptvit.analysis.faithfulness import against_random
from promptvit.analysis.images import batches, choose
from promptvit.backbones.source import BackboneSource
from promptvit.data.load import load_split
from promptvit.model import TunedModel

RESULTS = ROOT / "docs" / "results"
CPU = torch.device("cpu")
KINDS: tuple[Attribution, ...] = get_args(Attribution)
MIDDLE = "the middle"
LEVEL = 0.05
IMAGES = 200
TRAINING = (
    "python -m scripts.pretrain_pico supervised --architecture swin --bfloat16 --threads 1 --data FILE --out FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run whose maps are scored."""

    backbone: str
    task: str
    source: str
    epochs: int


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maps", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--swin", type=Path, required=True, help="the folder of scripts.pretrain_pico")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cifar10 = str((options.data / "mini-vtab" / "cifar10").resolve())
    swin = Case(backbone=str(options.swin.resolve()), task="cifar10", source=cifar10, epochs=10)
    cases = (
        swin,
        dataclasses.replace(swin, task="digits", source="digits", epochs=15),
        Case(backbone="vit_pico", task="cifar10", source=cifar10, epochs=10),
        Case(backbone="vit_pico", task="digits", source="digits", epochs=15),
    )
    runs = []
    for case in cases:
        runs.append(scored(case))
        print("\n".join(table(runs[-1])), flush=True)
    record = {
        "runs": runs,
        "swin": json.loads((options.swin / "card.json").read_text()),
        "seed": 0,
        "command": "python -m benchmarks.maps --swin FOLDER",
        "commit": commit(),
        "machine": machine(CPU, threads=1),
    }
    (RESULTS / "maps.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "maps.md").write_text(page(record))


def scored(case: Case) -> dict[str, Any]:
    """A row for each kind of map of a run that is trained here."""
    data = pv.DataConfig(source=case.source)
    config = pv.RunConfig(
        data=data,
        backbone=BackboneSource(name=case.backbone),
        method={"name": "vpt-deep"},
        train=pv.TrainConfig(epochs=case.epochs, device="cpu"),
    )
    with tempfile.TemporaryDirectory() as folder:
        summary = pv.fit(config, folder)
        model = pv.load(Path(folder) / "delta").eval()
    pixels, labels = choose(load_split(pv.load_task(data).val, model.preprocessing, data), IMAGES, "maps")
    images = torch.cat(list(batches(pixels, model.preprocessing, CPU)))
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).float().mean().item()
    return {
        "backbone": model.backbone.info.family,
        "task": case.task,
        "epochs": case.epochs,
        "images": len(images),
        "right": right,
        "test_top1": summary["result"]["test"]["top1"],
        "scores": {kind: scores_of(model, images, kind) for kind in (*KINDS, MIDDLE)},
    }


def scores_of(model: TunedModel, images: Tensor, kind: str) -> dict[str, dict[str, float]]:
    """`maps`, `random` and `p` of both scores of the maps of a kind, or of the middle."""
    if kind == MIDDLE:
        y, x = (torch.linspace(-1, 1, size) for size in model.backbone.info.grid)
        maps = -(y[:, None].square() + x.square()).expand(len(images), -1, -1)
    else:
        maps = attribution_maps(model, [images], cast(Attribution, kind))
    return {score: dataclasses.asdict(value) for score, value in against_random(model, images, maps).items()}


def page(record: dict[str, Any]) -> str:
    """The record as a page."""
    swin, epochs = record["swin"], record["swin"]["recipe"]["epochs"]
    known = ", ".join(f"{name} {value}" for name, value in record["machine"].items() if name != "load_average")
    return "\n".join(
        [
            *HEAD,
            *(line for run in record["runs"] for line in [*table(run), ""]),
            f"Not better than random maps (p of {LEVEL} and more):",
            "",
            *(verdict(record["runs"]) or ["- none"]),
            "",
            "Not better than the middle of every image:",
            "",
            *(beside_the_middle(record["runs"]) or ["- none"]),
            "",
            "## The Swin",
            "",
            f"Trained with the labels of CIFAR-100 for {epochs} epochs ({60 * swin['hours']:.0f} minutes, "
            f"{swin['machine']['threads']} thread, beside other work), it has",
            f"{swin['top1']:.1f} % of the test images right. Its weights are not in the package:",
            "",
            "```sh",
            f"{TRAINING} --epochs {epochs}",
            record["command"],
            "```",
            "",
            f"- Commit: {record['commit']}, seed {record['seed']}",
            f"- Machine: {known}",
            "- All figures: [maps.json](maps.json)",
            "",
            *EARLIER,
            "",
        ]
    )


HEAD = """# Do maps mark what an answer rests on?

Deletion (the lower the better) and insertion (the higher the better) of the maps of trained VPT-deep models, beside
those of random maps of the same grid; p is Wilcoxon's signed-rank test over the images, one-sided: of such a difference
if maps were no better. "The middle" marks the middle of every image and knows nothing of it. What these words mean:
[guide](../guides/attribution.md).

""".splitlines()


EARLIER = """## An earlier Swin

The same Swin trained for 6 epochs (27.7 %; VPT-deep on it has 47.5 and 69.0 % of the 200 images right), by the script
at commit 7c46ab3: Grad-CAM and integrated gradients were far better than random maps there too (p below 4e-5), but
rollout was not: on cifar10 p 0.13 for deletion and 0.07 for insertion, on digits 0.48 and 0.002. On 1,000 test images
of cifar10, scored after that was seen, it was by little (0.04 and 4e-10).
""".splitlines()


def title(run: dict[str, Any]) -> str:
    """What is scored."""
    return f"{run['backbone']}, {run['task']}, {run['images']} validation images"


def table(run: dict[str, Any]) -> list[str]:
    """A row for each kind of map."""
    lines = [
        f"## {title(run)}",
        "",
        f"{100 * run['right']:.1f} % of them right; {100 * run['test_top1']:.1f} % of all test images.",
        "",
        "| map | deletion | random | p | insertion | random | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, scores in run["scores"].items():
        cells = [f"{each['maps']:.3f} | {each['random']:.3f} | {each['p']:.2g}" for each in scores.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def verdict(runs: list[dict[str, Any]]) -> list[str]:
    """What is not better than random."""
    return [
        f"- {title(run)}: {name}, {score}" + (", which is worse" if each["p"] > 1 - LEVEL else "")
        for run in runs
        for name, scores in run["scores"].items()
        for score, each in scores.items()
        if name != MIDDLE and each["p"] >= LEVEL
    ]


def beside_the_middle(runs: list[dict[str, Any]]) -> list[str]:
    """What a map that knows nothing of the image does as well."""
    better = {"deletion": min, "insertion": max}
    return [
        f"- {title(run)}: {name}, {score}"
        for run in runs
        for name, scores in run["scores"].items()
        for score, each in scores.items()
        if name != MIDDLE and better[score](each["maps"], (other := run["scores"][MIDDLE][score]["maps"])) == other
    ]


if __name__ == "__main__":
    main()
