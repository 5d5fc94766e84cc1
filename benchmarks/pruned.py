"""What pruning saves: prompts of ViT-S/16 at 224, pruned by 60 %: `python -m benchmarks.pruned`.

Training steps and inference calls of P=50, of P=50 pruned to 20, of P=20, and of P=50 with zeros in place of what is
pruned (the official way), one after the other in every round. Writes `docs/results/pruned.md` and `.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch

import promptvit as pv
from benchmarks import measure, steps
from benchmarks.machine import ROOT, commit, machine
from promptvit.counting import flops
from promptvit.model import TunedModel
from promptvit.pruning.scores import prune

WHOLE, LEFT = 50, 20
Depth = Literal["deep", "shallow"]
RESULTS = ROOT / "docs" / "results"


def main() -> None:
    """Measure both depths and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruned", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="cpu: this process's own time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    on = steps.bench(options.batch, device, seed=0)
    clock = time.process_time if options.clock == "cpu" else measure.wall_clock(device)
    results = {depth: measured(on, depth, options.rounds, clock) for depth in ("deep", "shallow")}
    record = {
        "command": f"python -m benchmarks.pruned --rounds {options.rounds} --batch {options.batch} --threads "
        f"{options.threads} --clock {options.clock}",
        "commit": commit(),
        "seed": 0,
        "machine": machine(device, threads=options.threads),
        "results": results,
    }
    (RESULTS / "pruned.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "pruned.md").write_text(page(record))
    print(page(record))


def models(on: steps.Bench, depth: Depth) -> dict[str, TunedModel]:
    """The same prompts: all, the first 20 of them by pruning and by zeros; and 20 that never were more."""
    whole = steps.ours(on, WHOLE, depth)
    masks = pv.Masks(length=WHOLE, tokens=[range(LEFT, WHOLE)])
    return {
        f"P={WHOLE}": whole,
        f"P={WHOLE}, 60 % zeros": prune(whole, dataclasses.replace(masks, compat_zero=True)),
        f"P={WHOLE}, 60 % pruned": prune(whole, masks),
        f"P={LEFT}": steps.ours(on, LEFT, depth),
    }


def measured(on: steps.Bench, depth: Depth, rounds: int, clock: measure.Clock) -> dict[str, Any]:
    """A row for each model: times in units of P=20, FLOPs, bytes; and whether a saved one computes the same."""
    of = models(on, depth)
    training = measure.interleaved({name: steps.training(on, model) for name, model in of.items()}, rounds, clock)
    folded = {name: model.fold() for name, model in of.items()}
    batch = len(on.images)
    calls = {name: steps.inference(on, model, batch) for name, model in folded.items()}
    inference = measure.interleaved(calls, rounds, clock)
    rows = {}
    for name, model in of.items():
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            again = pv.load(folder, backbone=on.backbone)
            rows[name] = {
                "training": dataclasses.asdict(measure.ratio(training, name, f"P={LEFT}")),
                "inference": dataclasses.asdict(measure.ratio(inference, name, f"P={LEFT}")),
                "seconds": {"training": training[name], "inference": inference[name]},
                "flops": flops(model),
                "prompt_values": sum(p.numel() for p in model.delta.parameters()),
                "bytes": (Path(folder) / "delta.safetensors").stat().st_size,
                "difference": steps.difference(on, model.eval(), again),
            }
    return rows


def page(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# What pruning saves",
        "",
        f"ViT-S/16 at 224, random weights, {WHOLE} prompts at each block (deep) or before the first (shallow), of",
        f"which 60 % are pruned. Times in units of P={LEFT}: median of rounds (quartiles), all four one after another",
        "in every round. Zeros: pruned prompts stay as rows of zeros, as the official code has them; what is zero is",
        "stored nowhere either, and in inference all zeros of a block are one key. Loaded: the largest difference of",
        "logits between the model and its delta, saved and loaded.",
        "",
    ]
    for depth, rows in record["results"].items():
        lines += [
            f"## {depth}",
            "",
            "| | training step | inference | GFLOPs per image | prompt values | delta | loaded |",
        ]
        lines.append("|---|---|---|---|---|---|---|")
        for name, row in rows.items():
            times = (
                f"{row[kind]['median']:.3f} ({row[kind]['low']:.3f} to {row[kind]['high']:.3f})"
                for kind in ("training", "inference")
            )
            lines.append(
                f"| {name} | {' | '.join(times)} | {row['flops'] / 1e9:.3f} | {row['prompt_values']:,} | "
                f"{row['bytes'] / 1024:,.0f} KiB | {row['difference']:.1g} |"
            )
        lines.append("")
    lines += [
        "Deep prompts act as keys and values alone, so 50 of them are nearly free, and pruning saves what little there",
        "is: a step takes what one with 20 takes, and inference does not differ beyond the noise. Shallow prompts",
        "travel through all blocks: there the time falls to that of 20. Zeros save none of it.",
        "",
    ]
    kinds = ", ".join(f"{name} {value}" for name, value in record["machine"].items() if name != "load_average")
    lines += [
        f"- Command: `{record['command']}`",
        f"- Commit: {record['commit'][:7]}, seed 0",
        f"- Machine: {kinds}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
