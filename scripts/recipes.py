"""The files of `recipes/spt/`, from the tables below: `make docs`, or `python -m scripts.recipes --check`.

Recipe, settings and results are those of Self-Prompt Tuning (Wang et al., ICML 2024, arXiv 2402.02382).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "recipes" / "spt"
Options = dict[str, Any]

RESULTS = """
                  CUB    NABirds  Flowers  Dogs   Cars   FGVC   Natural  Specialized  Structured
sup   full        87.3   82.7     98.8     89.4   84.5   88.54  -        -            -
sup   vpt-deep    88.5   84.2     99.0     90.2   83.6   89.11  -        -            -
sup   shallow     90.2   85.1     99.5     89.3   86.4   90.10  -        -            -
sup   deep        90.6   87.6     99.8     89.8   89.2   91.40  -        -            -
mae   full        80.55  77.87    91.71    80.38  83.51  82.80  59.31    79.68        53.82
mae   vpt-deep    68.33  65.22    80.05    78.83  67.67  72.02  36.02    60.61        26.57
mae   shallow     71.15  61.87    89.47    80.01  67.23  73.95  62.53    80.90        53.46
mae   deep        80.13  76.28    93.07    82.23  84.61  83.26  67.19    83.15        59.23
moco  full        81.75  78.14    94.52    81.19  85.67  84.25  71.95    84.72        51.98
moco  vpt-deep    82.67  75.99    94.41    83.33  79.18  83.12  70.27    83.04        42.38
moco  shallow     83.50  75.79    95.03    84.17  81.93  84.08  74.47    83.93        55.16
moco  deep        84.47  77.63    96.10    85.84  85.98  86.00  76.20    84.95        58.36
"""
"""Test accuracy in %, ViT-B/16 (Table 3: sup; Table 2: the others); of VTAB-1k, the mean over the tasks of a group."""

STARTS = """
                  MAE-CUB  MAE-Caltech  sup-CUB  sup-Caltech
frozen   uniform  25.3     73.5         81.6     81.9
frozen   kmeans   39.2     84.1         85.1     87.8
frozen   mean     37.7     81.5         83.5     86.3
frozen   max      37.0     81.6         84.0     87.1
frozen   random   37.8     82.2         84.2     86.9
trained  uniform  68.3     80.2         88.5     90.8
trained  kmeans   79.9     89.1         91.2     92.7
trained  mean     79.8     88.6         90.4     92.5
trained  max      79.6     88.7         90.6     92.1
trained  random   80.1     88.9         90.6     92.6
"""
"""What prompts start from: Table 1a (frozen) and 1b (trained), SPT-deep."""

MEASURED: dict[str, str] = {}
"""What a recipe gave here, by its name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The peak learning rate, and the decay of prompts and of the head's weight."""

    learning_rate: float
    weight_decay: float
    head_weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pretrained ViT-B/16, how SPT reads it (`pooling`), and `settings` within what its nearest `proxy` has."""

    title: str
    backbone: Options
    pooling: str = "own"
    options: str = ""
    settings: Settings
    proxy: str


SUPERVISED = Pretraining(
    title="supervised (ImageNet-21k)",
    backbone={"name": "vit_base_patch16_224.augreg_in21k"},
    settings=Settings(learning_rate=1e-2, weight_decay=1e-2, head_weight_decay=3.0),
    proxy="learning rate 5e-3 to 2e-2, decay 5e-4 to 1e-1, of the head 3 to 10",
)
MAE = Pretraining(
    title="MAE",
    backbone={"name": "vit_base_patch16_224.mae", "pool": "avg-pretrained"},
    pooling="all",
    settings=Settings(learning_rate=5e-2, weight_decay=5e-3, head_weight_decay=0.5),
    proxy="learning rate 5e-2 (Flowers 1e-1), decay 2e-3 to 5e-3, of the head 0.1 to 1",
)
MOCO = Pretraining(
    title="MoCo-v3",
    backbone={"name": "moco_v3_vit_base"},
    options=" --backbone.checkpoint vit-b-300ep.pth.tar",
    settings=Settings(learning_rate=5e-2, weight_decay=5e-3, head_weight_decay=0.1),
    proxy="learning rate 5e-2, decay 1e-3 to 5e-3, of the head 0.05 to 0.1",
)
PRETRAININGS = {"sup": SUPERVISED, "mae": MAE, "moco": MOCO}
PUBLISHED = {
    "mae-cub-deep": Settings(learning_rate=5e-2, weight_decay=1e-2, head_weight_decay=0.5),
    "sup-dogs-deep": Settings(learning_rate=1e-3, weight_decay=1e-2, head_weight_decay=3.0),
}
"""The authors gave two commands."""
LENGTHS = {"deep": 20, "shallow": 100}
CLASSES = {"CUB": 200, "NABirds": 555, "Flowers": 102, "Dogs": 120, "Cars": 196}
IMAGES = {"CUB": 5_994, "NABirds": 23_929, "Flowers": 1_020, "Dogs": 12_000, "Cars": 8_144}
"""For training, those held out for validation among them (Flowers has its own)."""
SELECTION = (
    "selection: the paper takes its best epoch on the test images. Here validation chooses, first of all "
    "--train.learning_rate. Then the command runs once more, with --data.train_on train+val, and the test accuracy of "
    "its last epoch is the result"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A file: its name, what its header says, and the configuration."""

    name: str
    title: str
    facts: dict[str, str]
    options: tuple[str, ...] = ("",)
    loop: str = "{}"
    config: Options

    def render(self) -> str:
        """The text of the file."""
        facts = {**self.facts, "measured": MEASURED.get(self.name, "not yet run")}
        lines = [self.title]
        for text in (*(f"{name}: {fact}" for name, fact in facts.items()), SELECTION):
            lines += textwrap.wrap(text, 118, subsequent_indent="  ")
        command = f"promptvit train --config recipes/spt/{self.name}.yaml"
        lines += [
            "command: " + self.loop.format(command + options, "vpt" if "vpt" in options else "spt")
            for options in self.options
        ]
        header = "".join(f"# {line}\n" for line in lines)
        return header + "\n" + yaml.safe_dump(self.config, sort_keys=False)


def main() -> int:
    """Write the files, and remove what else is in their folder; with `--check`, 1 if one is not up to date."""
    parser = argparse.ArgumentParser(description="The recipes, from the tables of this script.")
    parser.add_argument("--check", action="store_true", help="only compare")
    texts, there = rendered(), committed()
    if parser.parse_args().check:
        return int(texts != there)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in there.keys() - texts.keys():
        (FOLDER / name).unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text)
    return 0


def rendered() -> dict[str, str]:
    """The text of every file, by its name."""
    return {f"{recipe.name}.yaml": recipe.render() for recipe in recipes()}


def committed() -> dict[str, str]:
    """What is in the folder."""
    return {path.name: path.read_text() for path in FOLDER.glob("*.yaml")}


def recipes() -> Iterator[Recipe]:
    """All of them."""
    for name, pretraining in PRETRAININGS.items():
        for task in CLASSES:
            yield fgvc_deep(name, pretraining, task)
        yield fgvc_shallow(name, pretraining)
        for depth in LENGTHS:
            yield vtab(name, pretraining, depth)
    for row in STARTS.strip().splitlines()[1:]:
        yield start(*row.split())
    yield study(
        "study-length",
        "prompt length",
        "a figure, read to ±0.5, for 20, 40, 60, 80, 100 prompts: SPT 80.1, 80.7, 80.7, 81.1, 82.2; "
        "VPT 68.3, 59.5, 67.0, 70.2, 54.6",
        loop="for P in 20 40 60 80 100; do {} --method.length $P --out runs/length-{}-$P; done",
    )
    yield study(
        "study-share",
        "share of the training images",
        "a figure, whose values are unverified",
        loop="for S in 0.1 0.2 0.4 0.6 0.8 1.0; do {} --method.length 20 --data.train_share $S "
        "--out runs/share-{}-$S; done",
    )
    for name, bundled in (("sup", "vit_pico"), ("mae", "vit_pico_mae")):
        yield from mini(name, replace(PRETRAININGS[name], backbone={**PRETRAININGS[name].backbone, "name": bundled}))


def fgvc_deep(name: str, pretraining: Pretraining, task: str) -> Recipe:
    """One number of Table 2 or 3."""
    recipe = f"{name}-{task.lower()}-deep"
    settings = PUBLISHED.get(recipe, pretraining.settings)
    if recipe == "mae-flowers-deep":
        settings = replace(settings, learning_rate=1e-1)
    duration = "; in the paper 25 min 48 s on 2 unnamed GPUs" if recipe == "mae-cub-deep" else ""
    result, full, vpt = (results(name, row)[task] for row in ("deep", "full", "vpt-deep"))
    others = "; both quoted from other weights and another recipe" if name == "sup" else ""
    return Recipe(
        name=recipe,
        title=f"SPT-deep on {task}, {pretraining.title} ViT-B/16",
        facts={
            "paper": f"{result} % of the test images, {source(name)} (full fine-tuning {full}, VPT-deep {vpt}{others})",
            "settings": "published by the authors" if recipe in PUBLISHED else unverified(pretraining),
            "cost": cost(IMAGES[task], f"{trained('deep', CLASSES[task]):,}") + duration,
            "data": layout(task),
        },
        options=(pretraining.options,),
        config=config(pretraining, spt("deep"), fgvc(task), settings),
    )


def fgvc_shallow(name: str, pretraining: Pretraining) -> Recipe:
    """The five of a row, from one file."""
    row = results(name, "shallow")
    parameters = sorted(trained("shallow", classes) for classes in CLASSES.values())
    return Recipe(
        name=f"{name}-fgvc-shallow",
        title=f"SPT-shallow on FGVC, {pretraining.title} ViT-B/16",
        facts={
            "paper": f"% of the test images, {source(name)}: {', '.join(f'{task} {row[task]}' for task in CLASSES)}; "
            f"mean {row['FGVC']}",
            "settings": unverified(pretraining),
            "cost": cost(IMAGES["CUB"], f"{parameters[0]:,} (Flowers) to {parameters[-1]:,} (NABirds)"),
            "data": f"{layout('CUB')}; the other tasks likewise: --data data/nabirds and so on",
        },
        options=(pretraining.options,),
        config=config(pretraining, spt("shallow"), fgvc("CUB"), pretraining.settings),
    )


def vtab(name: str, pretraining: Pretraining, depth: str) -> Recipe:
    """The 19 tasks of VTAB-1k, from one file."""
    row = results(name, depth)
    groups = ", ".join(f"{group} {row[group]}" for group in ("Natural", "Specialized", "Structured"))
    return Recipe(
        name=f"{name}-vtab-{depth}",
        title=f"SPT-{depth} on VTAB-1k, {pretraining.title} ViT-B/16",
        facts={
            "paper": "none" if name == "sup" else f"% of the test images, {source(name)}, means of groups: {groups}",
            "settings": unverified(pretraining),
            "cost": "per task " + cost(1_000, f"{trained(depth, 0):,} (and the head)"),
            "data": "data/vtab/TASK with train800.txt, val200.txt, test.txt and the images that they list; --data "
            "data/vtab/TASK for the other tasks",
        },
        options=(pretraining.options,),
        config=config(pretraining, spt(depth), {"source": "data/vtab/cifar", "geometry": "crop"}, pretraining.settings),
    )


def start(mode: str, tokens: str, *numbers: str) -> Recipe:
    """One number of Table 1; options give the other three of its row."""
    frozen = {"fixed": True} if mode == "frozen" else {}
    pooled = {"across": "sample"} if tokens in ("mean", "max") else {}
    method = VPT_DEEP if tokens == "uniform" else {**spt("deep"), "source": tokens, **pooled}
    note = "; --method.compat_pooling true takes the official code's windows" if pooled else ""
    note += "; VPT's row is from other work, with another recipe" if tokens == "uniform" and not frozen else ""
    rate, head_decay = SUPERVISED.settings.learning_rate, SUPERVISED.settings.head_weight_decay
    supervised = (
        f" --backbone {SUPERVISED.backbone['name']} --backbone.pool null --method.pooling own"
        f" --train.learning_rate {rate} --train.head_weight_decay {head_decay}"
    )
    caltech = " --data data/vtab/caltech101 --data.augment none"
    return Recipe(
        name=f"init-{mode}-{tokens}",
        title=f"Prompts from {ORIGINS[tokens]}, {mode}; CUB, MAE ViT-B/16",
        facts={
            "paper": "% of the test images, Table 1{}: MAE on CUB {}, MAE on Caltech-101 {}, supervised on CUB {}, "
            "supervised on Caltech-101 {}".format("a" if frozen else "b", *numbers)
            + note,
            "settings": "published by the authors for random tokens, trained, MAE on CUB; unverified for all else",
            "cost": "on CUB " + cost(IMAGES["CUB"], f"{trained('head' if frozen else 'deep', CLASSES['CUB']):,}"),
            "data": f"{layout('CUB')}; Caltech-101 is that of VTAB-1k",
        },
        options=("", caltech, supervised, supervised + caltech),
        config=config(MAE, {**method, **frozen}, fgvc("CUB"), PUBLISHED["mae-cub-deep"]),
    )


ORIGINS = {
    "uniform": "uniform noise (VPT)",
    "kmeans": "k-means centres",
    "mean": "mean-pooled tokens",
    "max": "max-pooled tokens",
    "random": "random tokens",
}
VPT_DEEP = {"name": "vpt-deep", "length": LENGTHS["deep"]}


def study(name: str, what: str, paper: str, loop: str) -> Recipe:
    """A curve of SPT-deep and one of VPT-deep: a loop over an option, MAE on CUB."""
    return Recipe(
        name=name,
        title=f"SPT-deep and VPT-deep by {what}; CUB, MAE ViT-B/16",
        facts={
            "paper": paper,
            "settings": "published by the authors for SPT-deep of length 20 on all of CUB; unverified for all else",
            "cost": "per run " + cost(IMAGES["CUB"], f"{trained('deep', CLASSES['CUB']):,} or more"),
            "data": layout("CUB"),
        },
        options=("", " --method vpt-deep --method.pooling all"),
        loop=loop,
        config=config(MAE, spt("deep"), fgvc("CUB"), PUBLISHED["mae-cub-deep"]),
    )


def mini(name: str, pretraining: Pretraining) -> Iterator[Recipe]:
    """What a small machine can run: a bundled backbone, any task."""
    for kind, title, method in (
        ("shallow", "SPT-shallow", spt("shallow")),
        ("deep", "SPT-deep", spt("deep")),
        ("frozen", "SPT-deep with frozen prompts", {**spt("deep"), "fixed": True}),
        ("vpt", "VPT-deep", VPT_DEEP),
    ):
        yield Recipe(
            name=f"mini-{name}-{kind}",
            title=f"{title} on a small task, bundled {pretraining.backbone['name']}",
            facts={
                "paper": "none: other backbones and other tasks",
                "settings": "of ViT-B/16, so unverified here",
                "cost": "100 epochs; for 800 images ten minutes to half an hour on a free CPU core, estimated",
                "data": "a folder with an image folder or list files: --data DIR; without it scikit-learn's digits",
            },
            options=(" --data DIR",),
            config=config(pretraining, method, {"source": "digits"}, pretraining.settings),
        )


def config(pretraining: Pretraining, method: Options, data: Options, settings: Settings) -> Options:
    """The whole of a file."""
    return {
        "data": data,
        "backbone": pretraining.backbone,
        "method": {**method, "pooling": pretraining.pooling},
        "train": {
            "epochs": 100,
            "batch_size": 32,
            "optimizer": "adamw",
            "learning_rate": settings.learning_rate,
            "delta_weight_decay": settings.weight_decay,
            "head_weight_decay": settings.head_weight_decay,
            "warmup_epochs": 10,
            "schedule": "cosine",
            "head": "truncated",
            "clip_norm": None,
        },
    }


def spt(depth: str) -> Options:
    """Tokens at random, which gave the paper's large tables."""
    return {"name": f"spt-{depth}", "length": LENGTHS[depth], "source": "random"}


def fgvc(task: str) -> Options:
    """Crops and flips; a tenth for validation where the folder has no `val`."""
    folder = f"data/{task.lower()}"
    return {"source": folder, "geometry": "crop", "augment": "crop+flip", "validation_fraction": 0.1}


def layout(task: str) -> str:
    return f"data/{task.lower()} with train/CLASS/IMAGE and test/CLASS/IMAGE, and val/ if the task has one"


def results(name: str, row: str) -> dict[str, str]:
    """A row of RESULTS, by its columns."""
    columns, *rows = (line.split() for line in RESULTS.strip().splitlines())
    (found,) = (numbers for first, second, *numbers in rows if (first, second) == (name, row))
    return dict(zip(columns, found, strict=True))


def source(name: str) -> str:
    return "Table 3" if name == "sup" else "Table 2"


def unverified(pretraining: Pretraining) -> str:
    return f"unverified: nearest proxy, another project of the first author's: {pretraining.proxy}"


def trained(depth: str, classes: int) -> int:
    """Parameters of ViT-B/16, with the head."""
    return 768 * {"deep": 12 * 20, "shallow": 100, "head": 0}[depth] + 769 * classes


def cost(images: int, parameters: str) -> str:
    return f"100 epochs of {images:,} images, {parameters} trained parameters"


if __name__ == "__main__":
    sys.exit(main())
