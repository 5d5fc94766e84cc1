"""Where a backbone comes from, as plain values (no torch), for configs and delta files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promptvit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BackboneSource:
    """Enough to load the same backbone again.

    - `name`: a bundled or timm name (`vit_base_patch16_224.orig_in21k`), `hf-hub:owner/repository`, or a local
      folder that holds a timm `config.json` and weights.
    - `checkpoint`: a local safetensors, pth or npz file with the weights for the architecture `name`.
    - `image_size`: input height and width in pixels; null is the checkpoint's own. Position embeddings are resampled.
    - `pretrained`: False leaves the weights random (tests and benchmarks).
    """

    name: str = "vit_pico"
    checkpoint: str | None = None
    image_size: int | tuple[int, int] | None = None
    pretrained: bool = True

    def __post_init__(self) -> None:
        sizes = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        if self.image_size is not None and any(size is None or size < 1 for size in sizes):
            raise ConfigError(f"image_size={self.image_size}", expected="at least 1 pixel", where="BackboneSource")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneSource:
        """From JSON or YAML, which have lists in place of tuples; raises TypeError for other fields."""
        size = values.get("image_size")
        return cls(**{**values, "image_size": tuple(size) if isinstance(size, list) else size})
