"""What is known of the benchmarks' tasks: VTAB-1k (Zhai et al., 2019) and the fine-grained sets of the VPT paper."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Benchmark = Literal["vtab-1k", "fgvc"]


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One task of a benchmark.

    - `name`: its folder, and its name everywhere.
    - `group`: natural, specialized or structured, whose means VTAB-1k reports; or fgvc.
    - `train`, `val`, `test`: numbers of images.
    - `aliases`: other names in use; see `find_task`.
    - `lossless`: the originals hold exact pixels, so a JPEG copy is not the same data.
    - `twins`: why images may be in two splits of the original itself; empty where none are known to be.
    - `images`: where the images lie below the folder of the set as its authors publish it.
    """

    name: str
    group: str
    classes: int
    train: int = 800
    val: int = 200
    test: int
    aliases: tuple[str, ...] = ()
    lossless: bool = False
    twins: str = ""
    images: str = "images"

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of images by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


TWINS = "dSprites turns its shapes from 0 to 360 degrees, both included"

VTAB = (
    TaskInfo(
        name="cifar",
        group="natural",
        classes=100,
        test=10_000,
        aliases=("cifar100", "cifar(num_classes=100)"),
        lossless=True,
    ),
    TaskInfo(name="caltech101", group="natural", classes=102, test=6_084, aliases=("caltech",)),
    TaskInfo(name="dtd", group="natural", classes=47, test=1_880),
    TaskInfo(
        name="oxford_flowers102",
        group="natural",
        classes=102,
        test=6_149,
        aliases=("flowers102", "flowers", "oxford_flowers"),
    ),
    TaskInfo(
        name="oxford_iiit_pet",
        group="natural",
        classes=37,
        test=3_669,
        aliases=("oxford_pet", "oxford_pets", "pet", "pets"),
    ),
    TaskInfo(name="svhn", group="natural", classes=10, test=26_032, aliases=("svhn_cropped",), lossless=True),
    TaskInfo(name="sun397", group="natural", classes=397, test=21_750, aliases=("sun",)),
    TaskInfo(name="patch_camelyon", group="specialized", classes=2, test=32_768, aliases=("camelyon", "pcam")),
    TaskInfo(name="eurosat", group="specialized", classes=10, test=5_400),
    TaskInfo(name="resisc45", group="specialized", classes=45, test=6_300, aliases=("resisc",)),
    TaskInfo(
        name="diabetic_retinopathy",
        group="specialized",
        classes=5,
        test=42_670,
        aliases=("retinopathy", "retino", 'diabetic_retinopathy(config="btgraham-300")'),
    ),
    TaskInfo(
        name="clevr_count",
        group="structured",
        classes=8,
        test=15_000,
        aliases=("clevr_counting", 'clevr(task="count_all")'),
        lossless=True,
    ),
    TaskInfo(
        name="clevr_dist",
        group="structured",
        classes=6,
        test=15_000,
        aliases=("clevr_distance", 'clevr(task="closest_object_distance")'),
        lossless=True,
    ),
    TaskInfo(name="dmlab", group="structured", classes=6, test=22_735),
    TaskInfo(
        name="kitti",
        group="structured",
        classes=4,
        test=711,
        aliases=("kitti_dist", "kitti_distance", 'kitti(task="closest_vehicle_distance")'),
    ),
    TaskInfo(
        name="dsprites_loc",
        group="structured",
        classes=16,
        test=73_728,
        aliases=(
            "dsprites_location",
            "dsprites_position",
            "dspr_loc",
            'dsprites(predicted_attribute="label_x_position",num_classes=16)',
        ),
        lossless=True,
        twins=TWINS,
    ),
    TaskInfo(
        name="dsprites_ori",
        group="structured",
        classes=16,
        test=73_728,
        aliases=(
            "dsprites_orientation",
            "dspr_ori",
            'dsprites(predicted_attribute="label_orientation",num_classes=16)',
        ),
        lossless=True,
        twins=TWINS,
    ),
    TaskInfo(
        name="smallnorb_azi",
        group="structured",
        classes=18,
        test=12_150,
        aliases=(
            "smallnorb_azimuth",
            "smallnorb_azim",
            "snorb_azi",
            "snorb_azim",
            'smallnorb(predicted_attribute="label_azimuth")',
        ),
        lossless=True,
    ),
    TaskInfo(
        name="smallnorb_ele",
        group="structured",
        classes=9,
        test=12_150,
        aliases=(
            "smallnorb_elevation",
            "smallnorb_elev",
            "snorb_ele",
            "snorb_elev",
            'smallnorb(predicted_attribute="label_elevation")',
        ),
        lossless=True,
    ),
)
"""In the order of the benchmark's tables."""

FGVC = (
    TaskInfo(
        name="cub",
        group="fgvc",
        classes=200,
        train=5_394,
        val=600,
        test=5_794,
        aliases=("cub200", "cub_200_2011", "cub_birds"),
    ),
    TaskInfo(name="nabirds", group="fgvc", classes=555, train=21_536, val=2_393, test=24_633),
    TaskInfo(
        name="oxford_flowers",
        group="fgvc",
        classes=102,
        train=1_020,
        val=1_020,
        test=6_149,
        aliases=("flowers", "flowers102", "oxford_flowers102"),
        images=".",
    ),
    TaskInfo(
        name="stanford_dogs",
        group="fgvc",
        classes=120,
        train=10_800,
        val=1_200,
        test=8_580,
        aliases=("dogs",),
        images="Images",
    ),
    TaskInfo(
        name="stanford_cars",
        group="fgvc",
        classes=196,
        train=7_329,
        val=815,
        test=8_041,
        aliases=("cars", "stanford_cars196"),
        images=".",
    ),
)

BENCHMARKS: dict[Benchmark, tuple[TaskInfo, ...]] = {"vtab-1k": VTAB, "fgvc": FGVC}


def find_task(name: str, benchmark: Benchmark) -> TaskInfo | None:
    """The task of `benchmark` that goes by `name`, if there is one.

    Letters and digits alone count, in any case, without the words for a group or VTAB before them: `CIFAR-100`,
    `Natural/CIFAR100`, `vtab-cifar(num_classes=100)` and `cifar` are one task.
    """
    return _NAMES[benchmark].get(_plain(name))


def benchmark_of(names: list[str]) -> Benchmark | None:
    """The benchmark that knows the most of the task names; None if none knows at least half of them."""
    known: dict[Benchmark, int] = {
        benchmark: sum(find_task(name, benchmark) is not None for name in names) for benchmark in BENCHMARKS
    }
    best = max(known, key=known.__getitem__)
    return best if names and 2 * known[best] >= len(names) else None


def _plain(name: str) -> str:
    stem = re.sub(r"^(natural|specialized|structured|fgvc)[-_/]|^vtab(-1k)?[-_/]", "", name.strip("/ ").lower())
    return re.sub(r"[^a-z0-9]", "", stem)


def _by_name(tasks: tuple[TaskInfo, ...]) -> dict[str, TaskInfo]:
    found = {_plain(name): task for task in tasks for name in (task.name, *task.aliases)}
    assert len(found) == sum(len({_plain(name) for name in (task.name, *task.aliases)}) for task in tasks)
    return found


_NAMES = {benchmark: _by_name(tasks) for benchmark, tasks in BENCHMARKS.items()}
