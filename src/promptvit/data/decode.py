"""Image files of every kind as 8-bit RGB, at the size a backbone's input is stored in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from promptvit.errors import BrokenImageError
from promptvit.preprocessing import Preprocessing

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Box = tuple[float, float, float, float]  # left, top, right, bottom
# The values that stand for white, by the first letters of a mode (I;16 has byte orders after them).
WHITES = {"I;16": (65535,), "I": (255, 65535), "F": (1, 255, 65535)}


def decode(file: Path | str | BytesIO) -> Image.Image:
    """The picture in a file as 8-bit RGB; see `to_rgb` for what becomes of other kinds.

    Raises BrokenImageError if it is missing, no image, truncated, or larger than Pillow's limit against
    decompression bombs. Around threads that call this, enter `quiet_pillow` once.
    """
    name = file if isinstance(file, str | Path) else "an image stream"
    with _broken_if_it_fails(name), Image.open(file) as image:
        return _to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A new 8-bit RGB image, turned upright as its EXIF orientation says.

    Transparent pixels lie on white; 16-bit, 32-bit and float grey are scaled to 8 bits, not clipped; an
    animation gives its current frame, in a file its first. Raises BrokenImageError.
    """
    with _broken_if_it_fails("an image"):
        return _to_rgb(image)


def fit(image: Image.Image, preprocessing: Preprocessing) -> UInt8[Tensor, "3 height width"]:
    """An RGB image at `preprocessing.stored_size`, resized with antialiasing, or as TensorFlow 1 does and then rounded.

    `squash` ignores the aspect ratio; `crop` covers the size with the short side and keeps the centre.
    """
    height, width = preprocessing.stored_size
    box = (0.0, 0.0, float(image.width), float(image.height))
    if preprocessing.geometry == "crop":
        box = _centre(image.width, image.height, width, height)
    if preprocessing.interpolation == "tf1-bilinear":
        pixels = tf1_bilinear(np.asarray(image), box, height, width).round().astype(np.uint8)
    else:
        pixels = np.array(image.resize((width, height), FILTERS[preprocessing.interpolation], box=box))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, height, width]


def tf1_bilinear(pixels: UInt8[np.ndarray, "h w 3"], box: Box, height: int, width: int) -> Float32[np.ndarray, "H W 3"]:
    """The part of a picture inside `box`, resized to [height, width] as TensorFlow 1 does by default.

    Of n pixels made from m, number i lies at i m / n: there is neither a shift by half a pixel nor antialiasing, and
    beyond the last pixel is its own value.
    """
    left, top, right, bottom = box
    return _between(_between(pixels, 0, top, bottom, height), 1, left, right, width)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's warnings about odd files are not shown inside.

    Warning filters belong to the process. Threads that set and restore their own would leave one another's
    behind; inside this they all restore to silence, and the last exit restores what was there.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


@contextmanager
def _broken_if_it_fails(name: Path | str) -> Iterator[None]:
    with quiet_pillow():
        try:
            yield
        except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
            raise BrokenImageError(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8.

    White is the least of the mode's `WHITES` that no value exceeds, or, above all of them, the largest value.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    peak = values.max()
    white = next((usual for usual in WHITES[image.mode[:4]] if peak <= usual), peak)
    return Image.fromarray(np.round(values.clip(min=0) * (255 / white)).astype(np.uint8))


def _centre(width: int, height: int, out_width: int, out_height: int) -> Box:
    """The part of a picture that is left when it is resized to cover the output and cropped at the centre.

    Resizing this part alone gives the same pixels, and stays cheap for a picture of 1 x 10,000.
    """
    if width * out_height >= height * out_width:  # wider than the output: the height decides
        scaled_width, scaled_height = width * out_height // height, out_height
    else:
        scaled_width, scaled_height = out_width, height * out_width // width
    left, top = round((scaled_width - out_width) / 2), round((scaled_height - out_height) / 2)
    x, y = width / scaled_width, height / scaled_height
    return left * x, top * y, (left + out_width) * x, (top + out_height) * y


def _between(pixels: np.ndarray, axis: int, start: float, stop: float, count: int) -> np.ndarray:
    """`count` values along `axis`, each from the two pixels beside its place."""
    places = start + np.arange(count) * ((stop - start) / count)
    before = places.astype(np.int64)
    after = np.minimum(before + 1, pixels.shape[axis] - 1)
    share = np.expand_dims((places - before).astype(np.float32), tuple({0, 1, 2} - {axis}))
    low, high = (pixels.take(index, axis).astype(np.float32) for index in (before, after))
    return low + (high - low) * share
