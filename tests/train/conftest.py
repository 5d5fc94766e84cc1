"""A small task of real images: scikit-learn's digits 0 and 1, or 0 to 2, as an image folder."""

from pathlib import Path

import pytest
from PIL import Image

from promptvit.data.digits import read_digits


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    task = read_digits()
    for name, split, count in (("train", task.train, 60), ("val", task.val, 20), ("test", task.test, 20)):
        keep = [i for i, label in enumerate(split.labels) if label < 3][:count]
        for i in keep:
            folder = root / name / str(split.labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i]).save(folder / f"{i}.png")
    return root
