"""Statistics of the images that the bundled backbones were pretrained on, into the package: CIFAR-100, class-balanced.

    python -m scripts.pretraining_stats --data cifar100

`--data` is what `scripts.pretrain_pico` takes. 100 training images of each class are drawn with the seed 0; 2,000
feature rows are kept, in float16: they stand for the images in KID and in samples of other sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
from importlib.resources import files
from pathlib import Path

import numpy as np
from scripts.pretrain_pico import Images, read

from promptvit.analysis.extractor import Extractor, feature_stats
from promptvit.analysis.feature_stats import BUNDLED, FeatureStats
from promptvit.backbones.load import load_backbone
from promptvit.data.dataset import ImageDataset
from promptvit.data.task import Split

EACH = 100
ASSETS = Path(str(files("promptvit.analysis"))) / "assets"


def balanced(images: Images, each: int) -> Split:
    """`each` images of every class, or all of a class that has fewer."""
    labels = images.labels.numpy()
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == label][:each] for label in np.unique(labels)])
    return Split(images=images.pixels[chosen].permute(0, 2, 3, 1).numpy(), labels=labels[chosen].astype(np.int64))


def statistics(backbone: str, split: Split) -> FeatureStats:
    """What is shipped for a backbone."""
    extractor = Extractor.of(load_backbone(backbone))
    stats = feature_stats(extractor, ImageDataset(split, extractor.preprocessing), name="CIFAR-100 train")
    return dataclasses.replace(stats, rows=stats.rows.astype(np.float16))


def main() -> None:
    """Write a file for each backbone."""
    parser = argparse.ArgumentParser(description="Statistics of the bundled backbones' pretraining images.")
    parser.add_argument("--data", type=Path, required=True, help="an npz file, or a folder for torchvision's CIFAR-100")
    parser.add_argument("--out", type=Path, default=ASSETS)
    given = parser.parse_args()
    split = balanced(read(given.data, "train"), EACH)
    for backbone in BUNDLED:
        path = statistics(backbone, split).save(given.out / f"{backbone}.stats.safetensors")
        print(f"{path}: {path.stat().st_size / 1024:,.0f} KiB")


if __name__ == "__main__":
    main()
