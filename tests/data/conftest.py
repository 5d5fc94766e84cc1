"""Tasks with list files: small ones drawn here, and the shared ones, where they are."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(os.environ.get("PROMPTVIT_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mini-vtab"


@pytest.fixture(scope="session")
def mini_vtab() -> Path:
    """The folder of the shared tasks."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}; set PROMPTVIT_DATA")
    return SHARED


@pytest.fixture(scope="session")
def make_task():
    """A task as VTAB's bundles have it, every picture another: `make_task(folder, train=4, val=2, test=3)`."""
    numbers = itertools.count()

    def make(folder: Path, *, suffix: str = "png", classes: int = 2, **sizes: int) -> Path:
        sizes = {"train": 4, "val": 2, "test": 3} | sizes
        names = {"train": "train800", "val": "val200", "test": "test"}
        lines = {}
        for split, size in sizes.items():
            (folder / "images" / names[split]).mkdir(parents=True)
            lines[split] = [f"images/{names[split]}/{i:06d}.{suffix} {i % classes}" for i in range(size)]
            for line in lines[split]:
                noise = np.random.default_rng(next(numbers)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / line.split()[0])
            (folder / f"{names[split]}.txt").write_text("\n".join(lines[split]) + "\n")
        (folder / "train800val200.txt").write_text("\n".join([*lines["train"], *lines["val"]]) + "\n")
        return folder

    return make
