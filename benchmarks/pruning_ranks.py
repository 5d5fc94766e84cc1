"""Whether scores find the prompts that matter least: `python -m benchmarks.pruning_ranks RUNS`.

On trained runs, the loss on 256 training images is measured with each prompt removed, and with those removed that a
score puts first. Writes `docs/results/pruning-ranks.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from scipy.stats import rankdata
from torch import Tensor

import promptvit as pv
from benchmarks.machine import ROOT, commit, machine
from promptvit.data.load import load_split, load_task
from promptvit.data.transforms import normalise
from promptvit.pruning.scores import Scores, prune, score_prompts, visual_prompts

IMAGES = 256
COUNTS = (2, 4, 6, 8)
SCORES: dict[str, dict[str, Any]] = {
    "absolute": {},
    "squared": {"score": "squared"},
    "taylor": {"score": "taylor"},
    "absolute, gate on values": {"gate": "values"},
    "compat_signed, gate on values": {"score": "compat_signed", "gate": "values"},
}
SCOPES = ("block", "all")
RESULTS = ROOT / "docs" / "results"


def main() -> None:
    """Measure each run, then write the page."""
    parser = argparse.ArgumentParser(description="Scores of prompts against what their removal does.")
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of vpt-deep with ten prompts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {run.name: measured(run) for run in options.runs}
    record = {
        "command": "python -m benchmarks.pruning_ranks " + " ".join(run.name for run in options.runs),
        "commit": commit(),
        "seed": 0,
        "machine": machine(torch.device("cpu"), threads=1),
        "runs": runs,
    }
    (RESULTS / "pruning-ranks.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "pruning-ranks.md").write_text(page(record))
    print(page(record))


def measured(run: Path) -> dict[str, Any]:
    """By scope: rank correlations of scores with the rise of the loss, and that rise when several prompts go."""
    model = pv.load(run / "delta")
    config = pv.RunConfig.from_dict(yaml.safe_load((run / "config.yaml").read_text())).data
    dataset = load_split(load_task(config).train, model.preprocessing, config)
    numbers = np.random.default_rng(0).permutation(len(dataset))[:IMAGES].tolist()
    pixels, labels = dataset.__getitems__(numbers)
    images = normalise(pixels, model.preprocessing)
    samples = list(zip(images, labels.tolist(), strict=True))
    before = loss(model, images, labels)
    length, blocks = visual_prompts(model).prompts[0].shape[1], model.backbone.info.depth

    def rise(masks: pv.Masks) -> float:
        return loss(prune(model, masks), images, labels) - before

    found: dict[str, Any] = {"loss": before}
    for scope in SCOPES:
        sets = blocks if scope == "block" else 1
        alone = [[rise(one(length, scope, sets, place, i)) for i in range(length)] for place in range(sets)]
        rows = {}
        for name, how in SCORES.items():
            scores = score_prompts(model, samples, scope=scope, **how)
            rows[name] = {
                "correlation": correlation(scores.tokens, alone),
                "rises": [rise(scores.masks(tokens=count)) for count in COUNTS],
            }
        rows["drawn at random"] = {"correlation": 0.0, "rises": at_random(rise, length, sets, scope)}
        found[scope] = rows
    return found


def correlation(scores: Any, rises: Any) -> float:
    """Spearman's."""
    return float(np.corrcoef(rankdata(np.ravel(scores)), rankdata(np.ravel(rises)))[0, 1])


def one(length: int, scope: Any, sets: int, place: int, prompt: int) -> pv.Masks:
    """Prunes one prompt, in one set."""
    return pv.Masks(length=length, scope=scope, tokens=[[prompt] if i == place else [] for i in range(sets)])


def at_random(rise: Any, length: int, sets: int, scope: Any) -> list[float]:
    """The mean over five draws."""
    rows = []
    for draw in range(5):
        tokens = np.random.default_rng(draw).random((sets, length))
        scores = Scores(tokens=tokens, segments=np.zeros((sets, length, 1)), scope=scope)
        rows.append([rise(scores.masks(tokens=count)) for count in COUNTS])
    return np.mean(rows, axis=0).tolist()


@torch.no_grad()
def loss(model: pv.TunedModel, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy."""
    return F.cross_entropy(model.fold()(images), labels).item()


def page(record: dict[str, Any]) -> str:
    """The means over runs as a page."""
    runs = record["runs"]
    base = statistics.mean(run["loss"] for run in runs.values())
    lines = [
        "# Scores against what removal does",
        "",
        f"{len(runs)} trained runs ({', '.join(runs)}), ten prompts at each of six blocks; {IMAGES} training images,",
        f"mean loss {base:.3f}. Correlation: Spearman's, of scores with the rise of the loss when that prompt goes.",
        "Then the rise of the loss when those 2, 4, 6, 8 prompts (of ten, at every block) go that a score puts first.",
        "Scope `block`: each block has its own order; `all`: one for all blocks, as in the paper. Means over runs.",
        "",
        f"| scope | score | correlation | {' | '.join(map(str, COUNTS))} |",
        f"|---|---|---|{'---|' * len(COUNTS)}",
    ]
    for scope in SCOPES:
        for name in (*SCORES, "drawn at random"):
            own = [run[scope][name] for run in runs.values()]
            rank = statistics.mean(row["correlation"] for row in own)
            rises = (f"{statistics.mean(row['rises'][i] for row in own):+.3f}" for i in range(len(COUNTS)))
            shown = "" if name == "drawn at random" else f"{rank:+.2f}"
            lines.append(f"| {scope} | {name} | {shown} | {' | '.join(rises)} |")
    kinds = ", ".join(f"{name} {value}" for name, value in record["machine"].items() if name != "load_average")
    return "\n".join(
        [
            *lines,
            "",
            "The mean of absolute gradients finds prompts that matter little: without the six of ten that it puts",
            "first at every block, the loss rises by a quarter of what six drawn at random cost. An order for each",
            "block costs a third to two thirds of one order for all. Signed scores, the official one among them, are",
            "worse than chance for the first two and four. A gate on the values ranks as well here, in 32 bits.",
            "",
            f"- Command: `{record['command']}` (runs of `python -m benchmarks.e2vpt`)",
            f"- Commit: {record['commit'][:7]}, seed 0",
            f"- Machine: {kinds}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
