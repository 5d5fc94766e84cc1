"""Images for tests of the command line."""

from pathlib import Path

import pytest
from PIL import Image

from promptvit.data.digits import read_digits


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Digits 0 and 1 as `root/class/image`."""
    root = tmp_path_factory.mktemp("images")
    digits = read_digits().train
    for i in [i for i, label in enumerate(digits.labels) if label < 2][:40]:
        folder = root / ("zero", "one")[digits.labels[i]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(digits.images[i]).save(folder / f"{i}.png")
    return root
