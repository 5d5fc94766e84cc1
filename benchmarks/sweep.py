"""What a study costs beside its runs, and what heads on shared features save: `python -m benchmarks.sweep`.

Two figures. Overhead: trials that do nothing, by two warm worker processes, per trial. Grid: the 40 points of VPT's
grid for `linear` on the 1,000 images of a task (800 to train on, 200 to choose by) as one `promptvit sweep`, against 40
runs of `promptvit train`, and against the same run with images through the backbone in every epoch. Writes
`docs/results/sweep.md` and `.json`; exits 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from promptvit.search.jobs import Job, Outcome, TrainingJob
from promptvit.search.origin import origin
from promptvit.search.plan import StudyPlan
from promptvit.search.protocols import PROTOCOLS
from promptvit.search.row import Row
from promptvit.search.study import Study, StudyState
from promptvit.train.stock import Stock

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
OVERHEAD_BUDGET, SPEED_BUDGET = 0.3, 20.0
EVERY_EPOCH = (
    "import sys\n"
    "from promptvit.methods.linear import Linear\n"
    "Linear.only_head = property(lambda self: False)\n"
    "from promptvit.cli.main import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
ONCE = "import sys\nfrom promptvit.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"


@dataclass(frozen=True, kw_only=True)
class Nothing(Job):
    """No work."""

    folder: str

    def steps(self, stock: Stock) -> Iterator[Outcome]:
        """Its end at once."""
        yield Outcome(score=0.0, folder=self.folder)


def nothing(job: TrainingJob) -> Job:
    """In place of a run."""
    return Nothing(folder=job.folder)


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description="Overhead of studies, and the gain of shared features.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PROMPTVIT_DATA", ROOT / "../shared/data")))
    parser.add_argument("--task", default="cifar10")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--separate", type=int, default=40, help="runs of the grid to do one by one")
    parser.add_argument("--every-epoch", type=int, default=1, help="of these with images in every epoch, at least 1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = without_test(options.data.resolve() / "mini-vtab" / options.task, Path(folder))
        figures = {"overhead": overhead(task, Path(folder), options.trials), "grid": grid(task, Path(folder), options)}
    record = {**figures, "command": "python -m benchmarks.sweep", **origin()}
    (RESULTS / "sweep.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "sweep.md").write_text(page(record))
    print(page(record))
    missed = (
        figures["overhead"]["seconds_per_trial"] > OVERHEAD_BUDGET
        or figures["grid"]["ratio_images_every_epoch"] < SPEED_BUDGET
    )
    return int(missed)


def without_test(task: Path, folder: Path) -> Path:
    """The same task without test images, which a search does not look at."""
    root = folder / task.name
    root.mkdir()
    for name in ("train800.txt", "val200.txt", "classes.txt", "images"):
        (root / name).symlink_to(task / name)
    return root


def plan_of(name: str, task: Path, **change: Any) -> StudyPlan:
    """A search for `linear`."""
    protocol = PROTOCOLS["vpt"].change(seeds=(0,), **change)
    row = Row(label="linear", fields={"name": "linear"})
    return StudyPlan(name=name, data=(str(task),), rows=(row,), protocol=protocol, device="cpu")


def overhead(task: Path, folder: Path, trials: int) -> dict[str, Any]:
    """Seconds for each trial that does nothing, from when both workers have done one."""
    rates = tuple(0.01 * step for step in range(1, trials + 1))
    plan = plan_of("overhead", task, grid={"train.learning_rate": rates, "train.weight_decay": (0.0,)})
    seen: list[tuple[int, float]] = []

    def follow(state: StudyState) -> None:
        seen.append((state.done, time.perf_counter()))

    with Study(plan, folder / "overhead", work=nothing, follow=follow) as study:
        study.run("local:2")
    warm = next(place for place, (done, _) in enumerate(seen) if done >= 10)
    (first, began), (last, ended) = seen[warm], seen[-1]
    return {"trials": last - first, "workers": 2, "seconds_per_trial": (ended - began) / (last - first)}


def grid(task: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The grid as one study, and its runs one by one; all begin with the start of a process."""
    command = ["sweep", "--data", str(task), "--method", "linear", "--protocol", "vpt", "--retrain", "train"]
    began = time.perf_counter()
    call(ONCE, *command, "--device", "cpu", "--out", str(folder / "grid"))
    together = time.perf_counter() - began
    results = json.loads((folder / "grid" / "results.json").read_text())["cells"][0]
    plan = plan_of("alone", task, retrain="train")
    (cell,) = plan.cells()
    points = cell.points()
    assert [point["settings"] for point in results["points"]] == points
    seconds, differences, alone = [], [], []
    for number, point in enumerate(points[: options.separate]):
        began = time.perf_counter()
        alone.append(train(ONCE, cell.config(point, seed=0, final=False).to_dict(), folder / f"alone-{number}"))
        seconds.append(time.perf_counter() - began)
        differences.append(abs(alone[-1] - results["points"][number]["val_top1"]))
    images = []
    for number, point in enumerate(points[: options.every_epoch]):
        began = time.perf_counter()
        accuracy = train(EVERY_EPOCH, cell.config(point, seed=0, final=False).to_dict(), folder / f"images-{number}")
        images.append(time.perf_counter() - began)
        differences.append(abs(accuracy - results["points"][number]["val_top1"]))
    one = sum(seconds) / len(seconds)
    best = max(range(len(alone)), key=lambda place: alone[place])
    return {
        "points": len(points),
        "study_seconds": together,
        "separate_runs": len(seconds),
        "separate_seconds": sum(seconds),
        "ratio": one * len(points) / together,
        "ratio_images_every_epoch": sum(images) / len(images) * len(points) / together,
        "images_every_epoch_runs": len(images),
        "largest_difference": max(differences),
        "best_accuracy": {"study": max(point["val_top1"] for point in results["points"]), "separate": alone[best]},
        "chosen": results["chosen"],
    }


def train(program: str, config: dict[str, Any], folder: Path) -> float:
    """Validation accuracy of a run in a process of its own."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    call(program, "train", "--config", str(path), "--out", str(folder))
    return json.loads((folder / "summary.json").read_text())["result"]["val"]["top1"]


def call(program: str, *arguments: str) -> None:
    """A command line in a new process."""
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)


def page(record: dict[str, Any]) -> str:
    """The figures as a page."""
    idle, points = record["overhead"], record["grid"]
    literal = points["ratio_images_every_epoch"]
    machine = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    return "\n".join(
        [
            "# What a study costs beside its runs",
            "",
            "| what | measured | budget |",
            "|---|---|---|",
            f"| a trial that does nothing, {idle['workers']} warm worker processes, {idle['trials']} trials | "
            f"{1000 * idle['seconds_per_trial']:.0f} ms | {1000 * OVERHEAD_BUDGET:.0f} ms |",
            f"| {points['points']} points of `linear` on 1,000 images, one `promptvit sweep` with its final run | "
            f"{points['study_seconds']:.1f} s | |",
            "| the same points as runs one by one, images in every epoch "
            f"({points['images_every_epoch_runs']} measured), times the sweep "
            f"| {literal:.0f} x | {SPEED_BUDGET:.0f} x |",
            "| the same points as runs of `promptvit train`, which computes features once for each "
            f"({points['separate_runs']} measured), times the sweep | {points['ratio']:.0f} x | |",
            f"| largest difference of a validation accuracy | {points['largest_difference']:.1g} | 1e-6 |",
            "",
            f"Best validation accuracy: {points['best_accuracy']['study']:.4f} in the sweep, "
            f"{points['best_accuracy']['separate']:.4f} in the runs one by one that were measured. Times are of "
            "this one machine, whatever else it did: the ratios are what counts.",
            "",
            f"- Command: `{record['command']}`",
            f"- Commit: {record['commit']}",
            f"- Machine: {machine}",
            "- All figures: [sweep.json](sweep.json)",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
