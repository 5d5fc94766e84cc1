"""What to read and how: the `data:` part of a configuration. Imports neither torch nor an image library."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from promptvit.errors import ConfigError
from promptvit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Geometry, Interpolation, Preprocessing

Augmentation = Literal["none", "flip", "crop", "crop+flip", "resized-crop+flip"]
Normalisation = Literal["checkpoint", "imagenet", "none"]
BrokenPolicy = Literal["error", "skip"]
TrainOn = Literal["train", "train+val"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a task's images are and how they are used; raises ConfigError with all problems at once.

    - `source`: `digits` (comes with scikit-learn), an image folder, a folder with VTAB list files, `hf:NAME` (a dataset
      of Hugging Face, or a folder of one), or `webdataset:PATTERN` (tar files with an image and `cls`; `{split}` in it
      stands for train, val and test).
    - `geometry`: how an image meets the input size, see `Preprocessing`; null is squash. This and the next three are
      saved with the result.
    - `crop_fraction`: with `geometry=crop`, the share of the short side that is kept; null is the checkpoint's.
    - `interpolation`: the resampling filter, see `Preprocessing`; null is the checkpoint's.
    - `normalisation`: by mean and standard deviation of the `checkpoint` or of `imagenet` (VPT, SPT), or `none`, which
      leaves values in [0, 1].
    - `augment`: what changes training images at random; `resized-crop` takes 8 to 100 % of the stored pixels (with
      `geometry=crop` these are the centre).
    - `validation_fraction`: share of the training images held out when there is no val split (not for digits).
    - `train_share`: share of the training images that is used, class by class, at least one of each. For the same
      `seed` a smaller share lies inside a larger one; validation and test images stay.
    - `images`: about so many training and validation images together, in the proportion of the two and class by class;
      null is all of them. Test images stay, and a smaller number lies inside a larger one, as with `train_share`.
    - `shots`: so many training images of each class, and as many validation images; null is all of them.
    - `train_on`: `train+val` also trains on the validation images, so validation says nothing after it.
    - `broken`: stop at the first image that cannot be decoded, or skip all of them and say which.
    - `cache_gib`: memory for decoded images of one split, in GiB; a split that does not fit is decoded anew.
    - `workers`: decoding processes for a split that does not fit.
    - `seed`: of the held-out validation images (not for digits), of `train_share`, `images` and `shots`.
    """

    source: str = "digits"
    geometry: Geometry | None = None
    crop_fraction: float | None = None
    interpolation: Interpolation | None = None
    normalisation: Normalisation = "checkpoint"
    augment: Augmentation = "none"
    validation_fraction: float = 0.2
    train_share: float = 1.0
    images: int | None = None
    shots: int | None = None
    train_on: TrainOn = "train"
    broken: BrokenPolicy = "error"
    cache_gib: float = 2.0
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            *_not_one_of("geometry", self.geometry, (None, *get_args(Geometry))),
            *_not_one_of("interpolation", self.interpolation, (None, *get_args(Interpolation))),
            *_not_one_of("normalisation", self.normalisation, get_args(Normalisation)),
            *_not_one_of("augment", self.augment, get_args(Augmentation)),
            *_not_one_of("train_on", self.train_on, get_args(TrainOn)),
            *_not_one_of("broken", self.broken, get_args(BrokenPolicy)),
        ]
        if not self.source.strip():
            problems.append(f"source={self.source!r}: expected digits or a folder")
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            problems.append(f"crop_fraction={self.crop_fraction}: expected a value in (0, 1], or null")
        if self.crop_fraction is not None and self.geometry != "crop":
            problems.append(f"crop_fraction={self.crop_fraction}: nothing is cropped; expected geometry=crop with it")
        if not 0 < self.validation_fraction < 1:
            problems.append(f"validation_fraction={self.validation_fraction}: expected a value in (0, 1)")
        if not 0 < self.train_share <= 1:
            problems.append(f"train_share={self.train_share}: expected a value in (0, 1]")
        if not self.cache_gib >= 0:  # also catches nan
            problems.append(f"cache_gib={self.cache_gib}: expected 0 or more")
        problems += [
            f"{name}={getattr(self, name)}: expected at least {least}, or null"
            for name, least in (("images", 4), ("shots", 1))
            if getattr(self, name) is not None and getattr(self, name) < least
        ]
        if self.images is not None and self.shots is not None:
            problems.append(f"images={self.images} with shots={self.shots}: expected one of the two")
        if self.workers < 0:
            problems.append(f"workers={self.workers}: expected 0 or more")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed={self.seed}: expected 0 to 2**32 - 1")
        ConfigError.collect(problems, "DataConfig")

    def preprocessing(self, checkpoint: Preprocessing) -> Preprocessing:
        """The checkpoint's, with what this configuration has in its place."""
        mean, std = {
            "checkpoint": (checkpoint.mean, checkpoint.std),
            "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
            "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        }[self.normalisation]
        return dataclasses.replace(
            checkpoint,
            mean=mean,
            std=std,
            interpolation=self.interpolation or checkpoint.interpolation,
            geometry=self.geometry or checkpoint.geometry,
            crop_fraction=self.crop_fraction or checkpoint.crop_fraction,
        )


def _not_one_of(field: str, value: Any, choices: tuple[Any, ...]) -> list[str]:
    """The problem with `value`, if it is none of the `choices`."""
    if value in choices:
        return []
    return [f"{field}={value!r}: expected one of {', '.join(str(choice) for choice in choices)}"]
