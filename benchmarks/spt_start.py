"""What it costs to start prompts from tokens: `python -m benchmarks.spt_start`.

ViT-S/16 at 224 with random weights, 12 blocks, 50 prompts each. Time: all four sources over 500 images against the
plain forward pass over the same images, in turns in one process, medians of ratios. Memory: in a fresh process, the
largest resident size at any batch and at the end of the start, less the size before it, for 100 and 1,000 images.
Images are made when they are read. Writes `docs/results/spt-start.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import torch

import promptvit as pv
from benchmarks.machine import ROOT, changed, commit, machine
from promptvit.methods.samples import Samples
from promptvit.methods.spt import Source

SOURCES: tuple[Source, ...] = get_args(Source)
LENGTH, SIZE = 50, 224
RESULTS = ROOT / "docs" / "results"


class Made(Samples):
    """`count` noise images, each made from its number when it is read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.most = 0.0

    def __len__(self) -> int:
        return self.count

    @property
    def labels(self) -> torch.Tensor:
        """All of one class."""
        return torch.zeros(self.count, dtype=torch.int64)

    def images(self, numbers: Sequence[int]) -> torch.Tensor:
        """See `Samples`; notes how large the process is."""
        self.most = max(self.most, resident())
        generators = [torch.Generator().manual_seed(int(number)) for number in numbers]
        return torch.stack([torch.randn(3, SIZE, SIZE, generator=generator) for generator in generators])


def main() -> None:
    """Measure and write; or, as a process of its own, start once and tell its memory."""
    parser = argparse.ArgumentParser(description="What it costs to start prompts from tokens.")
    parser.add_argument("--images", type=int, default=500, help="for the times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", nargs=2, metavar=("SOURCE", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        source, images = options.memory_of
        print(json.dumps(own_memory(cast(Source, source), int(images))))
        return
    memory = {
        source: {images: memory_of(source, images, options.threads) for images in (100, 1000)} for source in SOURCES
    }
    found = {
        "time": times(options.images, options.rounds),
        "memory": memory,
        "images": options.images,
        "rounds": options.rounds,
        "commit": commit() + (" (changed)" if changed() else ""),
        "machine": machine(torch.device("cpu"), options.threads),
    }
    (RESULTS / "spt-start.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "spt-start.md").write_text(markdown(found))


def backbone() -> pv.Backbone:
    """ViT-S/16 with random weights."""
    torch.manual_seed(0)
    return pv.load_backbone("vit_small_patch16_224", pretrained=False)


@torch.no_grad()
def forward(on: pv.Backbone, samples: Samples) -> None:
    """The plain forward pass over all images."""
    for images, _ in samples.batches():
        on(images)


def times(images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the forward pass and of each source, and the median of their ratios."""
    on, samples = backbone(), Made(images)
    forward(on, Made(32))
    names: tuple[Source | Literal["forward"], ...] = ("forward", *SOURCES)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            started = time.perf_counter()
            if name == "forward":
                forward(on, samples)
            else:
                pv.tune(on, pv.SPT(length=LENGTH, source=name), 2, samples=samples)
            seconds[name].append(time.perf_counter() - started)
    ratios = {name: [s / f for s, f in zip(own, seconds["forward"], strict=True)] for name, own in seconds.items()}
    return {
        name: {"seconds": statistics.median(own), "to_forward": statistics.median(ratios[name])}
        for name, own in seconds.items()
    }


def memory_of(source: Source, images: int, threads: int) -> dict[str, float]:
    """`own_memory` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.spt_start", "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--memory-of", source, str(images)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def own_memory(source: Source, images: int) -> dict[str, float]:
    """MiB with the model and a first batch behind it, and what the start adds at most."""
    import sklearn.cluster  # noqa: F401  # is not what is measured

    on, samples = backbone(), Made(images)
    forward(on, Made(32))
    before = resident()
    pv.tune(on, pv.SPT(length=LENGTH, source=source), 2, samples=samples)
    added = max(samples.most, resident()) - before
    return {"before": before, "added": added}


def resident() -> float:
    """The resident size of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def markdown(found: dict) -> str:
    """The page."""
    lines = [
        "# What it costs to start prompts from tokens",
        "",
        f"ViT-S/16 at {SIZE}, 12 blocks, {LENGTH} prompts each, random weights. Time: {found['images']} images, median",
        f"of {found['rounds']} rounds, against the plain forward pass over the same images in the same round. Memory:",
        "in a fresh process, the largest resident size at any batch of the start and behind it, less the size before.",
        "",
        "| source | seconds | times the forward pass | MiB at 100 images | at 1,000 |",
        "|---|---|---|---|---|",
    ]
    for name, time_ in found["time"].items():
        of = found["memory"].get(name, {})
        added = " | ".join(f"{each['added']:.0f}" for each in of.values()) if of else "|"
        lines.append(f"| {name} | {time_['seconds']:.1f} | {time_['to_forward']:.2f} | {added} |")
    kind = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    return "\n".join(
        [
            *lines,
            "",
            "- Command: `python -m benchmarks.spt_start`",
            f"- Commit: {found['commit']}",
            f"- Machine: {kind}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
