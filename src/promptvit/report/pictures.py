"""Small pictures of images that are still where a run has read them, as data in the page."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from promptvit.data.config import DataConfig
from promptvit.data.decode import decode
from promptvit.data.load import load_task
from promptvit.errors import DataError
from promptvit.train.predictions import Predictions

SIDE = 160
"""Pixels of the longer side, at most."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small copy as a `data:` address. `is_tiny`: so small that its pixels are to be seen."""

    address: str
    is_tiny: bool


def pictures(predictions: Predictions, places: list[int], data: DataConfig) -> dict[int, Picture]:
    """Small copies of the images at these `places` of the predictions, those that can be read from `data.source`."""
    found = {}
    pixels = None
    for place in places:
        image = predictions.images[place]
        try:
            if isinstance(image, str):
                found[place] = small(decode(Path(data.source).expanduser() / image))
            else:
                pixels = _pixels(data, predictions.split) if pixels is None else pixels
                found[place] = small(Image.fromarray(pixels[image]))
        except (DataError, OSError, LookupError):
            continue
    return found


def small(image: Image.Image) -> Picture:
    """An RGB image, made smaller if it is large: JPEG, or PNG if it is tiny."""
    is_tiny = max(image.size) <= 64
    image.thumbnail((SIDE, SIDE))
    content = BytesIO()
    kind, options = ("png", {"optimize": True}) if is_tiny else ("jpeg", {"quality": 80, "optimize": True})
    image.save(content, format=kind, **options)
    return Picture(address=f"data:image/{kind};base64,{b64encode(content.getvalue()).decode()}", is_tiny=is_tiny)


def _pixels(data: DataConfig, split: str) -> np.ndarray:
    task = load_task(data)
    images = task.val if split == "val" else task.test
    if images is None or isinstance(images.images, tuple):
        raise DataError(f"{data.source} has no {split} images in memory")
    return images.images
