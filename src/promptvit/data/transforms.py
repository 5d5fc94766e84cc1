"""From stored pixels to a backbone's input: augmentation on uint8 batches, then normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from promptvit.data.config import Augmentation
from promptvit.data.decode import decode, fit, to_rgb
from promptvit.errors import DataError
from promptvit.preprocessing import Preprocessing
from promptvit.registry import unknown

Pixels = UInt8[Tensor, "B 3 height width"]
AREA, ASPECT, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of a resized crop: the share of the pixels, width by height, and draws before the whole is taken."""


def prepare(image: Path | str | Image.Image | np.ndarray, preprocessing: Preprocessing) -> UInt8[Tensor, "3 h w"]:
    """One picture (a file, a Pillow image, or uint8 [h, w, 3]) as stored pixels [3, *stored_size].

    Raises BrokenImageError on a file that cannot be decoded and DataError on another kind of array.
    """
    if isinstance(image, Path | str):
        return fit(decode(image), preprocessing)
    if isinstance(image, Image.Image):
        return fit(to_rgb(image), preprocessing)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"an image array of {image.dtype} {list(image.shape)}", expected="uint8 [height, width, 3]")
    return fit(Image.fromarray(image), preprocessing)


def normalise(images: Pixels, preprocessing: Preprocessing) -> Float32[Tensor, "B 3 H W"]:
    """The backbone's input [B, 3, *size] as a new tensor: the centre, in [0, 1], minus mean, over std.

    Takes stored or augmented pixels, on any device; raises DataError on another size.
    """
    _check(images, preprocessing)
    mean = torch.tensor(preprocessing.mean, device=images.device)[:, None, None]
    std = torch.tensor(preprocessing.std, device=images.device)[:, None, None]
    scaled = _centre(images, preprocessing) / 255  # a new tensor, so the rest can be in place
    return scaled.sub_(mean).div_(std)


def augment(
    images: Pixels, kind: Augmentation, preprocessing: Preprocessing, generator: torch.Generator
) -> UInt8[Tensor, "B 3 H W"]:
    """Every image changed by itself at random, at the input size [B, 3, *size]; a new tensor.

    - `crop` takes a random window of the stored pixels; where these are no larger than the input (squash), an
      eighth of its size is first reflected around them.
    - `resized-crop` takes a part of 8 to 100 % of the stored pixels, 3:4 to 4:3 in shape, and resizes it (bicubic).
    - `flip` mirrors half of the images left to right.

    All chance comes from `generator`; a CPU generator gives the same on every device. Raises DataError on
    another size and UnknownNameError on another kind.
    """
    known = get_args(Augmentation)
    if kind not in known:
        raise unknown("augmentation", kind, known, f"Known: {', '.join(known)}")
    _check(images, preprocessing)
    if kind == "none":
        return _centre(images, preprocessing).clone()
    parts = kind.split("+")
    if "resized-crop" in parts:
        images = _resized_crops(images, preprocessing.size, generator)
    count, (height, width) = images.shape[0], images.shape[2:]
    out_height, out_width = preprocessing.size
    top, left = (torch.full((count,), offset) for offset in _centre_offset(images, preprocessing))
    flipped = torch.zeros(count, dtype=torch.bool)
    if "crop" in parts:
        top = _random_offset(count, height, out_height, generator)
        left = _random_offset(count, width, out_width, generator)
    if "flip" in parts:
        flipped = torch.rand(count, generator=generator, device=generator.device) < 0.5
    rows = _reflect(top.to(images.device)[:, None] + torch.arange(out_height, device=images.device), height)
    columns = _reflect(left.to(images.device)[:, None] + torch.arange(out_width, device=images.device), width)
    columns = torch.where(flipped.to(images.device)[:, None], columns.flip(1), columns)
    return _take(images, rows, columns)


def _resized_crops(
    images: Pixels, size: tuple[int, int], generator: torch.Generator
) -> UInt8[Tensor, "B 3 out_height out_width"]:
    """A random part of each image at `size`. The first of ten draws that fits is taken, or the whole image."""
    count, (height, width) = images.shape[0], images.shape[2:]
    area, aspect, top, left = torch.rand(4, count, TRIES, generator=generator, device=generator.device).cpu()  # [B, 10]
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
    aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** aspect
    heights, widths = (area / aspect).sqrt().round().clamp(min=1), (area * aspect).sqrt().round().clamp(min=1)
    fits = (heights <= height) & (widths <= width)
    chosen = fits.byte().argmax(dim=1, keepdim=True)  # the first of those that fit
    whole = ~fits.any(dim=1, keepdim=True)
    heights = heights.gather(1, chosen).masked_fill(whole, height)  # [B, 1]
    widths = widths.gather(1, chosen).masked_fill(whole, width)
    tops = (top.gather(1, chosen) * (height - heights + 1)).floor()
    lefts = (left.gather(1, chosen) * (width - widths + 1)).floor()
    boxes = torch.cat([tops, lefts, heights, widths], dim=1).int().tolist()
    resized = [
        functional.interpolate(
            image[None, :, y : y + tall, x : x + wide].float(), size=size, mode="bicubic", antialias=True
        )
        for image, (y, x, tall, wide) in zip(images, boxes, strict=True)
    ]
    if not resized:
        return images.new_empty(0, 3, *size)
    return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)


def _random_offset(count: int, size: int, out: int, generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Where each window begins; below 0 and beyond the end, `_reflect` continues the image."""
    slack = size - out if size > out else out // 8
    low = 0 if size > out else -slack
    return torch.randint(low, slack + 1, (count,), generator=generator, device=generator.device)


def _reflect(index: Int64[Tensor, "B n"], size: int) -> Int64[Tensor, "B n"]:
    """Indices below 0 or from `size` on, mirrored back at the edge pixel."""
    return size - 1 - (size - 1 - index.abs()).abs()


def _take(images: Pixels, rows: Int64[Tensor, "B H"], columns: Int64[Tensor, "B W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Pixel (row, column) of each image, for every pair."""
    channels = images.shape[1]
    rows = rows[:, None, :, None].expand(-1, channels, -1, images.shape[3])  # [B, 3, H, width]
    columns = columns[:, None, None, :].expand(-1, channels, rows.shape[2], -1)  # [B, 3, H, W]
    return images.gather(2, rows).gather(3, columns)  # [B, 3, H, W]


def _centre_offset(images: Pixels, preprocessing: Preprocessing) -> tuple[int, int]:
    (height, width), (out_height, out_width) = images.shape[2:], preprocessing.size
    return round((height - out_height) / 2), round((width - out_width) / 2)


def _centre(images: Pixels, preprocessing: Preprocessing) -> UInt8[Tensor, "B 3 H W"]:
    top, left = _centre_offset(images, preprocessing)
    return images[:, :, top : top + preprocessing.size[0], left : left + preprocessing.size[1]]


def _check(images: Pixels, preprocessing: Preprocessing) -> None:
    stored, cropped = [3, *preprocessing.stored_size], [3, *preprocessing.size]
    if images.dtype != torch.uint8 or images.ndim != 4 or list(images.shape[1:]) not in (stored, cropped):
        raise DataError(
            f"images of {images.dtype} {list(images.shape)}",
            expected=f"torch.uint8 [B, {', '.join(map(str, stored))}]",
            fix="Make them with prepare() or ImageDataset, with the same preprocessing",
        )
