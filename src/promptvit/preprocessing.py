"""How a picture becomes a backbone's input: the values, without the code that applies them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from promptvit.errors import ConfigError

Geometry = Literal["squash", "crop"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "tf1-bilinear"]
Channels = tuple[float, float, float]
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, on values in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Size and normalisation of a backbone's input.

    - `size`: height and width in pixels.
    - `mean`, `std`: per channel, on values in [0, 1].
    - `interpolation`: the resampling filter, with antialiasing; `tf1-bilinear` is TensorFlow 1's, without antialiasing
      or the shift by half a pixel.
    - `geometry`: `squash` resizes to `size` whatever the aspect ratio; `crop` resizes the short side to
      `size / crop_fraction` and takes the centre.
    """

    size: tuple[int, int]
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    interpolation: Interpolation = "bicubic"
    geometry: Geometry = "squash"
    crop_fraction: float = 0.875

    def __post_init__(self) -> None:
        problems = []
        if len(self.size) != 2 or min(self.size) < 1:
            problems.append(f"size={self.size}: expected height and width of at least 1 pixel")
        if min(self.std) <= 0:
            problems.append(f"std={self.std}: expected values above 0")
        if not 0 < self.crop_fraction <= 1:
            problems.append(f"crop_fraction={self.crop_fraction}: expected a value in (0, 1]")
        for name, choices in (("geometry", Geometry), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(choices):
                problems.append(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(choices))}")
        ConfigError.collect(problems, "Preprocessing")

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of an image before the last crop: what a cache keeps."""
        if self.geometry == "squash":
            return self.size
        height, width = self.size
        return round(height / self.crop_fraction), round(width / self.crop_fraction)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; raises ConfigError on unknown or missing keys."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        try:
            return cls(**plain)
        except TypeError as error:
            raise ConfigError(f"preprocessing {values}", expected=f"the fields of Preprocessing: {error}") from None
