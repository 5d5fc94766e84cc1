"""Advice for small tasks, then the truth: `python -m benchmarks.advise --runs runs/advise`.

For each task of mini-vtab on `vit_pico` and `vit_pico_mae`, with 50, 200 and 1,000 images: what `promptvit advise` says
before anything is trained, and what the four ways then reach on the test images. A second advice knows the truth of
the other tasks on the same backbone, as a calibration file would. Bake-offs that are finished in `--runs` are not run
again, and runs of the same configuration in `--adopt` are taken over. Writes `docs/results/advise.md` and `.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.errors import PromptvitError
from promptvit.search.origin import origin
from promptvit.search.protocol import Settings
from promptvit.search.results import Results
from promptvit.search.study import Study
from promptvit.study.advise import METHODS, Advice, Situation, advise_on
from promptvit.study.bakeoff import Truth, bake_off_plan, record_of, truth
from promptvit.study.calibration import Record
from promptvit.study.gather import gather

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
TASKS = ("cifar10", "grocery", "pneumonia", "bccd_cells", "sprites")
BACKBONES = ("vit_pico", "vit_pico_mae")
SEEDS = {50: (0, 1, 2), 200: (0,), 1000: (0,)}
WHOLE = 1000
"""All images of a task."""
SETTINGS: dict[int, Settings] = {WHOLE: {"train.epochs": 10}}
"""Beside the protocol's: what keeps the largest size within a few hours of one core."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A task at a size on a backbone: what was known, said and true."""

    images: int
    situation: Situation
    advice: Advice
    truth: Truth
    results: Results
    record: Record

    @property
    def name(self) -> str:
        """Of its line."""
        return f"{self.images:,} | {self.situation.backbone.name} | {self.situation.task}"


def main() -> None:
    """Advise, measure, write."""
    parser = argparse.ArgumentParser(description="Advice for small tasks, and the truth.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "advise")
    parser.add_argument("--adopt", type=Path, action="append", default=[], help="finished runs are taken from here")
    parser.add_argument("--table", action="store_true", help="train nothing: what is there")
    options = parser.parse_args()
    cases, missing = [], []
    for images, backbone, task in product(SEEDS, BACKBONES, TASKS):
        try:
            cases.append(case(options, task, backbone, images))
            print(f"{cases[-1].name}: {cases[-1].advice.choice}, best {cases[-1].truth.best}", flush=True)
        except PromptvitError as error:
            missing.append(f"{images:,} images, {backbone}, {task}: {' '.join(str(error).split())[:160]}")
    informed = [with_others(each, cases) for each in cases]
    (RESULTS / "advise.json").write_text(json.dumps(as_json(cases, informed, missing), indent=1) + "\n")
    page = RESULTS / "advise.md"
    _, mark, reading = page.read_text().partition("## Reading\n") if page.exists() else ("", "", "")
    page.write_text("\n".join(lines(cases, informed, missing)) + "\n" + (f"\n{mark}{reading}" if mark else ""))


def case(options: argparse.Namespace, task: str, backbone: str, images: int) -> Case:
    """The advice, then the bake-off."""
    source = str(options.data.resolve() / "mini-vtab" / task)
    data = DataConfig(source=source, images=None if images == WHOLE else images)
    situation = gather(data, BackboneSource(name=backbone))
    advice = advise_on(situation)
    results = bake_off(options, data, backbone, f"{task}-{backbone}-{images}-images-advice", images)
    found = truth(advice, results)
    return Case(
        images=images,
        situation=situation,
        advice=advice,
        truth=found,
        results=results,
        record=record_of(situation, found.accuracies, found.seeds, results),
    )


def bake_off(options: argparse.Namespace, data: DataConfig, backbone: str, name: str, images: int) -> Results:
    """The four ways, run now unless they were before."""
    plan = bake_off_plan(
        name,
        data,
        BackboneSource(name=backbone),
        seeds=SEEDS[images],
        settings=SETTINGS.get(images),
        device="cpu",
    )
    with Study(plan, options.runs / name, adopt=options.adopt) as study:
        return study.take_over() if options.table else study.run("in-order")


def with_others(own: Case, cases: Sequence[Case]) -> Case:
    """The same with a calibration file that holds all other tasks on this backbone."""
    known = [other.record for other in cases if other.situation.task != own.situation.task]
    advice = advise_on(own.situation, own=known)
    found = truth(advice, own.results)
    return dataclasses.replace(own, advice=advice, truth=found)


def lines(cases: Sequence[Case], informed: Sequence[Case], missing: Sequence[str]) -> Iterator[str]:
    """The page."""
    yield "# Advice for small tasks, and the truth"
    yield ""
    yield (
        "What `promptvit advise` says of each task of mini-vtab before anything is trained, and the test accuracy in "
        "percent that the four ways then reach, as `--verify` measures it (protocol `quick`; 3 seeds with 50 images, 1 "
        "with 200 and with 1,000, there with 10 epochs in place of 20). Images are training and validation images "
        "together, four to one. p: the probability that prompts beat full fine-tuning. Right: less than a point "
        "behind the best. With others: the advice with a calibration file that holds the other four tasks on the "
        "same backbone."
    )
    yield ""
    ways = tuple(METHODS)
    head = ("images", "backbone", "task", "advice", "p", "confidence", *ways, "best", "regret", "right")
    head = (*head, "with others: advice", "p", "regret")
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for plain, known in zip(cases, informed, strict=True):
        accuracies = [plain.truth.accuracies.get(way) for way in ways]
        entries = [
            *(plain.name, plain.advice.choice, f"{plain.advice.probability:.2f}", plain.advice.confidence),
            *("" if each is None else f"{each:.1f}" for each in accuracies),
            *(plain.truth.best, _points(plain.truth.regret), _said(plain.truth.right)),
            *(known.advice.choice, f"{known.advice.probability:.2f}", _points(known.truth.regret)),
        ]
        yield f"| {' | '.join(entries)} |"
    yield ""
    yield "| advice | cases | decided | right | mean regret | side right | always prompts | always full | always LoRA |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for label, chosen in (("without calibration", cases), ("with the other tasks", informed)):
        yield summary(label, chosen)
    yield ""
    yield (
        "Side right: a probability above a half where prompts were no worse than full fine-tuning, and the other way "
        "round, abstentions too. Always: the mean regret of going one way everywhere (LoRA: where it was run)."
    )
    yield ""
    if missing:
        yield "Not in the table:"
        yield ""
        yield from (f"- {each}" for each in missing)
        yield ""
    made = origin()
    yield "- Command: `python -m benchmarks.advise`"
    yield f"- Commit: {made['commit']}"
    yield f"- Machine: {', '.join(f'{name} {value}' for name, value in made['machine'].items())}"
    yield "- All figures: [advise.json](advise.json)"


def summary(label: str, cases: Sequence[Case]) -> str:
    """A line over all cases."""
    decided = [each.truth for each in cases if each.truth.regret is not None]
    regrets = [each.regret for each in decided if each.regret is not None]
    sides = [each.truth.side_right for each in cases if each.truth.side_right is not None]
    always = []
    for way in ("prompts", "full", "lora"):
        behind = [
            max(each.truth.accuracies.values()) - each.truth.accuracies[way]
            for each in cases
            if way in each.truth.accuracies
        ]
        always.append(f"{np.mean(behind):.1f}" if behind else "")
    return (
        f"| {label} | {len(cases)} | {len(decided)} | {sum(each.right is True for each in decided)} "
        f"| {np.mean(regrets):.1f} | {sum(sides)} of {len(sides)} | {' | '.join(always)} |"
    )


def as_json(cases: Sequence[Case], informed: Sequence[Case], missing: Sequence[str]) -> dict[str, Any]:
    """Everything, as plain values."""
    found = [
        {
            "images": plain.images,
            "task": plain.situation.task,
            "backbone": plain.situation.backbone.name,
            "similarity": plain.situation.similarity_reason,
            "probe": None if plain.situation.probe is None else vars(plain.situation.probe),
            "advice": {**plain.advice.to_dict(), "evidence": [], "bake_off": ""},  # it names this machine's folder
            "truth": plain.truth.to_dict(),
            "with_others": {"choice": known.advice.choice, "probability": known.advice.probability},
        }
        for plain, known in zip(cases, informed, strict=True)
    ]
    return {"cases": found, "missing": list(missing), "command": "python -m benchmarks.advise", **origin()}


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _said(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


if __name__ == "__main__":
    main()
