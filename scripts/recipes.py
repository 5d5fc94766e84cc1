"""The files of `recipes/`: a study for each row of the papers' main tables, from `published.yaml` and the tables below.

`make docs` writes them, `python -m scripts.recipes --check` compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from promptvit.data.catalog import BENCHMARKS, FGVC, VTAB
from promptvit.search.keys import run_key
from promptvit.search.plan import CellPlan, StudyPlan, StudyTask
from promptvit.search.published import GROUPS, Published, published

FOLDER = Path(__file__).parents[1] / "recipes"
TASKS = {task.name: task for task in (*VTAB, *FGVC)}
Values = dict[str, Any]

BACKBONES = {
    "vit_base_patch16_224.orig_in21k": "vit-b",
    "vit_base_patch16_224.augreg_in21k": "sup",
    "vit_base_patch16_224.mae": "mae",
    "moco_v3_vit_base_linear_probe": "moco",
    "moco_v3_vit_base": "moco",
    "swin_base_patch4_window7_224.ms_in22k": "swin-b",
    "convnext_base.fb_in22k": "convnext-b",
    "resnet50.tv_in1k": "resnet-50",
}
CHECKPOINTS = {
    "moco_v3_vit_base_linear_probe": "linear-vit-b-300ep.pth.tar",
    "moco_v3_vit_base": "vit-b-300ep.pth.tar",
}
MEASURED: dict[str, str] = {}
"""What a recipe gave here, by its name."""
SELECTION = {
    "spt": "the paper takes the best epoch on test images; here validation chooses the settings, and the last epoch "
    "counts. `change: {epoch: best-test}` is the paper's way, and every table then says so",
}
PRUNING = (
    "as `promptvit prune` does unless told otherwise, which chooses masks on validation images: final runs are on the "
    "training images alone. The paper's way, but for its last runs on all images, is {search: grid, score: "
    "compat_signed, gate: values, scope: all, layout: interleaved, rewind: fresh, compat_zero: true}"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A file: its place, what its header says beside what follows from the study, and the study."""

    name: str
    title: str
    facts: dict[str, str] = field(default_factory=dict)
    study: Values

    def render(self) -> str:
        """The text of the file."""
        facts = {**self.facts, "measured": MEASURED.get(self.name, "not yet run"), "cost": cost(self.study)}
        if self.study["protocol"] in SELECTION:
            facts["selection"] = SELECTION[self.study["protocol"]]
        lines = [self.title]
        for name, fact in facts.items():
            lines += textwrap.wrap(f"{name}: {fact}", 118, subsequent_indent="  ")
        lines.append(f"command: promptvit bench --config recipes/{self.name}.yaml")
        header = "".join(f"# {line}\n" for line in lines)
        study = json.loads(json.dumps(self.study))  # what stands in two places is written twice, not as an alias
        return header + "\n" + yaml.safe_dump(study, sort_keys=False, width=118, default_flow_style=None)


def main() -> int:
    """Write the files, and remove what else is in their folders; with `--check`, 1 if one is not up to date."""
    parser = argparse.ArgumentParser(description="The recipes, from published.yaml and the tables of this script.")
    parser.add_argument("--check", action="store_true", help="only compare")
    texts, there = rendered(), committed()
    if parser.parse_args().check:
        return int(texts != there)
    for name in there.keys() - texts.keys():
        (FOLDER / name).unlink()
    for name, text in texts.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text)
    return 0


def rendered() -> dict[str, str]:
    """The text of every file, by its path."""
    return {f"{recipe.name}.yaml": recipe.render() for recipe in recipes()}


def committed() -> dict[str, str]:
    """What is in the folder."""
    return {str(path.relative_to(FOLDER)): path.read_text() for path in sorted(FOLDER.glob("*/*.yaml"))}


def recipes() -> Iterator[Recipe]:
    """All of them."""
    for row in published():
        if row.method and row.protocol and is_main(row):
            yield of_row(row)
    yield from demos()
    for name in ("sup", "mae"):
        yield table(f"spt/start-{name}", "What prompts start from", "Table 1", name)
        yield mini(name)
    yield table("spt/length", "SPT-deep and VPT-deep by prompt length", "a figure on prompt length", "mae")
    yield from shares()
    yield from commands()
    yield strategies()


def is_main(row: Published) -> bool:
    """Whether it is in a main table, with a file of its own."""
    tables = {"vpt": ("Table 1", "Table 2", "Table 4", "Table 5"), "spt": ("Table 2", "Table 3")}
    return row.table in tables.get(row.paper, (row.table,)) and "one image" not in row.label


def of_row(row: Published) -> Recipe:
    """A method on a backbone, over all tasks of the table."""
    name = f"{row.paper}/{BACKBONES[row.backbone['name']]}-{slug(row.label)}"
    benchmarks = [name for name, group in (("vtab-1k", "natural"), ("fgvc", "fgvc")) if group in row.means]
    tasks = {task: fields for task in TASKS if (fields := own_fields(row, task))}
    parts = {"tasks": tasks, "first": row.first}
    fields = {**row.method, **{name: part for name, part in parts.items() if part}}
    fields |= {"prune": {}} if row.paper == "e2vpt" else {}
    more = {"change": {"retrain": "train"}} if row.paper == "e2vpt" else {}
    notes = [row.note, row.differs, "" if row.verified else "its figures are unverified"]
    facts = {
        "paper": f"{row.source}, {row.table}: {', '.join(f'{g} {row.means[g]:.2f}' for g in GROUPS if g in row.means)}",
        **({"note": "; ".join(filter(None, notes))} if any(notes) else {}),
        **({"pruning": PRUNING} if row.paper == "e2vpt" else {}),
    }
    return Recipe(
        name=name,
        title=f"{row.label} on {' and '.join(benchmarks)}; {row.model}",
        facts=facts,
        study=study(name, benchmarks, row.backbone, {row.label: fields}, str(row.protocol), **more),
    )


def own_fields(row: Published, task: str) -> Values:
    """What the paper chose for the task alone."""
    known = task in row.values or TASKS[task].group in row.means
    return {name: value for name, value in row.fields(task).items() if known and value != row.method.get(name)}


def study(name: str, data: list[str], backbone: Values, rows: Values, protocol: str, **more: Any) -> Values:
    """The content of a file; `more`: `tasks`, `change`."""
    checkpoint = CHECKPOINTS.get(backbone["name"])
    backbone = {**backbone, **({"checkpoint": checkpoint} if checkpoint else {})}
    tasks = {"tasks": more.pop("tasks")} if "tasks" in more else {}
    return {
        "name": name.replace("/", "-"),
        "data": data,
        **tasks,
        "backbones": [backbone],
        "rows": rows,
        "protocol": protocol,
        **more,
    }


def table(name: str, title: str, of: str, backbone: str) -> Recipe:
    """A whole small table of the SPT paper as one study."""
    rows = [
        row
        for row in published()
        if (row.paper, row.table) == ("spt", of) and BACKBONES[row.backbone["name"]] == backbone
    ]
    tasks = sorted(rows[0].values, reverse=True)
    data = [benchmark for benchmark in BENCHMARKS if any(info.name in tasks for info in BENCHMARKS[benchmark])]
    numbers = "; ".join(f"{row.label} {', '.join(str(row.values[task]) for task in tasks)}" for row in rows)
    return Recipe(
        name=name,
        title=f"{title}; {rows[0].model}",
        facts={"paper": f"{rows[0].source}, {of}, {' and '.join(tasks)}: {numbers}", "note": rows[0].note},
        study=study(name, data, rows[0].backbone, {row.label: row.method for row in rows}, "spt", tasks=tasks),
    )


def demos() -> Iterator[Recipe]:
    """The settings of VPT-deep that its authors gave, with the accuracies of the five seeds."""
    for task, length, batch, rate, decay, seeds, mean in (
        ("dmlab", 100, 64, 1.0, 0.001, "46.88 46.25 46.14 47.41 46.44", "46.62 ± 0.47"),
        ("eurosat", 100, 64, 1.0, 0.001, "96.00 96.54 96.67 95.41 96.11", "96.15 ± 0.45"),
        ("sun397", 5, 128, 25.0, 0.0001, "52.57 49.03 52.45 51.08 52.72", "51.57 ± 1.40"),
    ):
        name = f"vpt/known-{task}"
        settings = {"train.learning_rate": rate, "train.weight_decay": decay, "train.batch_size": batch}
        rows = {"VPT-deep": {"name": "vpt-deep", "length": length}}
        yield Recipe(
            name=name,
            title=f"VPT-deep on {task} with the authors' settings; ViT-B/16, supervised on ImageNet-21k",
            facts={"paper": f"the released code's runs, seeds 42, 44, 82, 100, 800: {seeds}; {mean}"},
            study=study(
                name, ["vtab-1k"], published()[0].backbone, rows, "vpt", tasks=[task], change={"settings": settings}
            ),
        )


SPT_ROW = {"name": "spt-deep", "length": 20, "source": "random"}
SPT_BACKBONES = {
    "sup": {"name": "vit_base_patch16_224.augreg_in21k"},
    "mae": {"name": "vit_base_patch16_224.mae", "pool": "avg-pretrained"},
}
POOLING: dict[str, Values] = {"sup": {}, "mae": {"pooling": "all"}}
MINI = {"sup": (0.01, 0.01, 3.0), "mae": (0.05, 0.005, 0.5)}
"""Rate, decay of prompts and of the head, within those of the first author's next project."""


def decays(rate: float, prompts: float, head: float) -> Values:
    """As a change of the protocol."""
    return {
        "settings": {
            "train.learning_rate": rate,
            "train.delta_weight_decay": prompts,
            "train.head_weight_decay": head,
        }
    }


def commands() -> Iterator[Recipe]:
    """The two runs of SPT whose settings its authors gave."""
    for pretraining, task, settings, value in (
        ("mae", "cub", (0.05, 0.01, 0.5), "80.13, in 25 min 48 s on 2 unnamed GPUs"),
        ("sup", "stanford_dogs", (0.001, 0.01, 3.0), "89.8"),
    ):
        name = f"spt/known-{pretraining}-{task}"
        rows = {"SPT-deep": {**SPT_ROW, **POOLING[pretraining]}}
        more = {"tasks": [task], "change": decays(*settings)}
        yield Recipe(
            name=name,
            title=f"SPT-deep on {task} with the authors' settings; {SPT_BACKBONES[pretraining]['name']}",
            facts={"paper": f"Wang et al., ICML 2024: {value}"},
            study=study(name, ["fgvc"], SPT_BACKBONES[pretraining], rows, "spt", **more),
        )


def shares() -> Iterator[Recipe]:
    """SPT and VPT on parts of the training images."""
    rows = {"SPT-deep": {**SPT_ROW, "pooling": "all"}, "VPT-deep": {"name": "vpt-deep", "length": 20, "pooling": "all"}}
    for percent in (10, 20, 40, 60, 80):
        name = f"spt/share-{percent}"
        change = {"settings": {**decays(0.05, 0.01, 0.5)["settings"], "data.train_share": percent / 100}}
        yield Recipe(
            name=name,
            title=f"SPT-deep and VPT-deep with {percent} % of the training images of CUB; ViT-B/16, MAE",
            facts={"paper": "Wang et al., ICML 2024, a figure whose values are unverified"},
            study=study(name, ["fgvc"], SPT_BACKBONES["mae"], rows, "spt", tasks=["cub"], change=change),
        )


FULL_FIRST: Values = {"name": "full", "drop_path": 0.1, "settings": {"train.learning_rate": 0.0001}}
"""The full fine-tuning of Adapter+ (Steitz and Roth, CVPR 2024)."""
STRATEGIES: dict[str, Values] = {
    "linear": {"name": "linear"},
    "MLP-3": {"name": "mlp-3"},
    "partial-1": {"name": "partial-1"},
    "LoRA": {"name": "lora"},
    "VPT-shallow": {"name": "vpt-shallow"},
    "VPT-deep": {"name": "vpt-deep"},
    "random prompts": {"name": "vpt-fixed"},
    "full": {"name": "full"},
    "L2-SP": {
        "name": "full",
        "settings": {"train.weight_decay": 0.0, "train.head_weight_decay": 0.01},
        "grid": {"train.start_decay": [1.0, 10.0, 100.0]},
    },
    "mixed": {"name": "mixed"},
    "full beside random prompts": {"name": "mixed", "fixed": True},
    "full, then VPT-deep": {"name": "vpt-deep", "first": FULL_FIRST},
    "full, then VPT-deep and a new head": {"name": "vpt-deep", "first": {**FULL_FIRST, "head": "anew"}},
    "linear, then full": {"name": "full", "first": {"name": "linear"}},
}
"""Ways to tune a backbone for a task, each with a grid of its own in the protocol `fair`."""


def strategies() -> Recipe:
    """All of them on equal terms; the paper's own way is in a file for each of its rows."""
    name = "vpt-or-ft/strategies"
    rows = [row for row in published() if (row.paper, row.table) == ("vpt-or-ft", "VTAB-1k") and is_main(row)]
    means = (f"{row.label} {', '.join(f'{group} {mean:.2f}' for group, mean in row.means.items())}" for row in rows)
    return Recipe(
        name=name,
        title=f"Every strategy with a grid of its own, on vtab-1k; {rows[0].model}",
        facts={
            "paper": f"{rows[0].source}, {rows[0].table}, each strategy its own way: {'; '.join(means)}",
            "note": "L2-SP draws backbone weights to their start in place of zero; what a decay does depends on its "
            "product with the sum of a run's learning rates, which is 0.02 to 0.8 here",
        },
        study=study(name, ["vtab-1k"], rows[0].backbone, STRATEGIES, "fair"),
    )


def mini(pretraining: str) -> Recipe:
    """What a small machine can run: a bundled backbone on small tasks."""
    backbone = {**SPT_BACKBONES[pretraining], "name": {"sup": "vit_pico", "mae": "vit_pico_mae"}[pretraining]}
    deep = {**SPT_ROW, **POOLING[pretraining]}
    rows = {
        "SPT-shallow": {**deep, "name": "spt-shallow", "length": 100},
        "SPT-deep": deep,
        "SPT-deep, prompts frozen": {**deep, "fixed": True},
        "VPT-deep": {"name": "vpt-deep", "length": 20, **POOLING[pretraining]},
    }
    name = f"spt/mini-{pretraining}"
    return Recipe(
        name=name,
        title=f"SPT and VPT on small tasks, bundled {backbone['name']}",
        facts={
            "paper": "none: other backbones and other tasks",
            "data": "scikit-learn's digits, or any folder of tasks: 800 images are ten to thirty minutes for a run "
            "on a CPU core, estimated",
        },
        study=study(name, ["digits"], backbone, rows, "spt", change=decays(*MINI[pretraining])),
    )


def cells(values: Values) -> list[CellPlan]:
    """Every task and row of a study on VTAB-1k or FGVC, without its images; none for a folder."""
    plan = StudyPlan.from_dict(values)
    names = plan.tasks or [info.name for name, infos in BENCHMARKS.items() if name in plan.data for info in infos]
    return [
        CellPlan(
            study=plan,
            task=StudyTask(name=name, group=TASKS[name].group, source=name),
            backbone=backbone,
            row=row,
            protocol=plan.protocol_of(TASKS[name].group),
        )
        for name in names
        for backbone in plan.backbones
        for row in plan.rows
    ]


def cost(values: Values) -> str:
    """Runs, and images seen in training."""
    every = cells(values)
    if not every:
        return "the points of the protocol and its seeds, for each task"
    runs = images = 0
    shared: set[str] = set()
    for cell in every:
        points, finals, info = cell.points(), len(cell.protocol.seeds), TASKS[cell.task.name]
        both = info.train + info.val if cell.protocol.retrain == "train+val" else info.train
        kinds = [(cell.config(points[0], seed=0, final=True), len(points))]
        first = cell.first(seed=0, final=True)
        if first is not None and run_key(first) not in shared:
            shared.add(run_key(first))
            kinds.append((first, 1))
        for config, searched in kinds:
            runs += searched + finals
            images += config.train.epochs * config.data.train_share * (searched * info.train + finals * both)
    return f"{runs:,} runs; training sees {images / 1e6:,.1f} million images"


def slug(label: str) -> str:
    """A label in a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
