"""Where a backbone comes from, as plain values (no torch), for configs and delta files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from promptvit.errors import ConfigError

Pool = Literal["token", "avg", "avg-pretrained"]


@dataclass(frozen=True, kw_only=True)
class BackboneSource:
    """Enough to load the same backbone again.

    - `name`: a bundled or timm name (`vit_base_patch16_224.orig_in21k`), `hf-hub:owner/repository`, or a local
      folder that holds a timm `config.json` and weights.
    - `checkpoint`: a local safetensors, pth or npz file with the weights for the architecture `name`.
    - `image_size`: input height and width in pixels; null is the checkpoint's own. Position embeddings are resampled.
    - `pool`: how a ViT or EVA is read: `token` is its CLS row after the final norm; `avg` the mean of its patches,
      then a norm that starts at the identity where the weights have none for that (VPT's way to read MAE);
      `avg-pretrained` the mean, then the final norm of the weights (SPT's way); null is the model's own.
    - `tuned`: a run or delta of this backbone whose method trained weights of it (full, partial, bias): they take the
      place of the pretrained ones.
    - `pretrained`: False leaves the weights random (tests and benchmarks).
    """

    name: str = "vit_pico"
    checkpoint: str | None = None
    image_size: int | tuple[int, int] | None = None
    pool: Pool | None = None
    tuned: str | None = None
    pretrained: bool = True

    def __post_init__(self) -> None:
        problems = []
        if self.size is not None and min(self.size) < 1:
            problems.append(f"image_size={self.image_size}: expected at least 1 pixel")
        if self.pool not in (None, *get_args(Pool)):
            problems.append(f"pool={self.pool!r}: expected token, avg, avg-pretrained or null")
        if not self.pretrained and (self.checkpoint or self.tuned):
            problems.append("pretrained=False: expected neither checkpoint nor tuned, whose weights it would leave out")
        ConfigError.collect(problems, "BackboneSource")
        for name in ("checkpoint", "tuned"):  # a delta names them, and is loaded from anywhere
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, str(Path(path).expanduser().absolute()))

    @property
    def size(self) -> tuple[int, int] | None:
        """`image_size` as height and width."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneSource:
        """From JSON or YAML, which have lists in place of tuples; raises TypeError for other fields."""
        size = values.get("image_size")
        return cls(**{**values, "image_size": tuple(size) if isinstance(size, list) else size})
