"""A backbone: a pretrained model that is driven block by block, with room for prompts at every block."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promptvit.backbones.source import BackboneSource
from promptvit.errors import ConfigError
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Features, HeadPrompts, Images, Prompts, Tokens


@dataclass(frozen=True, kw_only=True)
class BlockInput:
    """What one block gets beside the tokens.

    - `tokens` [P, D] or [B, P, D]: fresh prompts. They take the place of prompt rows that arrive from the block
      before; with P = 0 those end here. None: whatever arrives travels on.
    - `keys`, `values` [H, T, d] or [B, H, T, d]: they join the keys and values inside the attention, after the
      key normalisation and without position.
    """

    tokens: Prompts | None = None
    keys: HeadPrompts | None = None
    values: HeadPrompts | None = None

    def __post_init__(self) -> None:
        if (self.keys is None) != (self.values is None):
            raise ConfigError("keys without values or values without keys", expected="both", where="BlockInput")


NOTHING = BlockInput()


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """The sizes of a backbone.

    `width` D, `depth` L, `heads` H, `head_width` d; `prefix`: rows before the patches (CLS, registers);
    `patch_size` and `grid` as height and width; `channels` of the input image; `readout`: how features are pooled;
    `activation` and `norm`: what weights do not tell of the arithmetic.
    """

    width: int
    depth: int
    heads: int
    head_width: int
    prefix: int
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    channels: int
    readout: str
    activation: str
    norm: str


class Backbone(nn.Module, ABC):
    """A pretrained model, frozen and in eval mode, as embed -> blocks -> readout.

    `model` is the user's own module: its keys and bits never change; only its parameters' `requires_grad` flags
    are cleared. A family implements the abstract methods and calls the model's own submodules.
    """

    def __init__(
        self, model: nn.Module, info: BackboneInfo, preprocessing: Preprocessing, source: BackboneSource
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.info = info
        self.preprocessing = preprocessing
        self.source = source
        self.fingerprint = fingerprint(self.body(), info)
        self.eval()

    @abstractmethod
    def embed(self, images: Images) -> Tokens:
        """Images [B, channels, height, width] to the tokens [B, N, D] that enter the first block."""

    @abstractmethod
    def block(self, index: int, x: Tokens, given: BlockInput, rows: int) -> Float[Tensor, "B R D"]:
        """The first `rows` rows [B, rows, D] of what block `index` makes of `x` [B, N, D] and `given`."""

    @abstractmethod
    def fold_block(self, index: int, given: BlockInput) -> BlockInput:
        """`given` with its tokens turned into the keys and values that they contribute in block `index`."""

    @abstractmethod
    def readout(self, x: Tokens) -> Features:
        """The rows [B, R, D] of the last block that the readout reads to features [B, D]."""

    @abstractmethod
    def readout_rows(self, image_rows: int) -> int:
        """How many of the first rows of the last block's output the readout reads, out of `image_rows`."""

    @property
    @abstractmethod
    def checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass instead of kept (the model's own setting)."""

    @abstractmethod
    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute blocks in the backward pass: less memory for more time, the same gradients."""

    @abstractmethod
    def body(self) -> dict[str, Tensor]:
        """The model's tensors by its own names, without its classification head."""

    def forward(self, images: Images, inputs: Sequence[BlockInput] = ()) -> Features:
        """Features [B, D] of `images` [B, channels, height, width], with `inputs` (one per block, or none at all).

        A row is computed only if something reads it: image rows up to the last block, there only those of the
        readout, and prompt rows only where they travel on (the next block gets no fresh ones).
        """
        inputs = inputs or [NOTHING] * self.info.depth
        if len(inputs) != self.info.depth:
            raise ConfigError(
                f"{len(inputs)} block inputs",
                expected=f"one per block, {self.info.depth}",
                where="Backbone.forward",
            )
        x = self.embed(images)  # [B, N, D]
        image_rows = x.shape[1]
        for index, given in enumerate(inputs):
            if given.tokens is not None:
                x = x[:, :image_rows]
            if given.tokens is not None and self.travels(index, inputs):
                x = torch.cat([x, per_image(given.tokens, x.shape[0])], dim=1)  # [B, N+P, D]
                given = BlockInput(keys=given.keys, values=given.values)
            rows = x.shape[1]
            if index == self.info.depth - 1:
                rows = self.readout_rows(image_rows)
            elif inputs[index + 1].tokens is not None:
                rows = image_rows
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.block, index, x, given, rows, use_reentrant=False)
            else:
                x = self.block(index, x, given, rows)
        return self.readout(x)

    def travels(self, index: int, inputs: Sequence[BlockInput]) -> bool:
        """Whether the prompt rows that leave block `index` are read by the next one."""
        return index + 1 < self.info.depth and inputs[index + 1].tokens is None

    @torch.no_grad()
    def fold(self, inputs: Sequence[BlockInput]) -> tuple[BlockInput, ...]:
        """The same inputs for inference: prompts whose outputs nobody reads become keys and values, once."""
        folded = []
        for index, given in enumerate(inputs):
            if given.tokens is not None and not self.travels(index, inputs):
                end = given.tokens[..., :0, :] if arrives(index, inputs) else None  # no rows: others end here
                given = dataclasses.replace(self.fold_block(index, given), tokens=end)
            folded.append(given)
        return tuple(folded)


def arrives(index: int, inputs: Sequence[BlockInput]) -> bool:
    """Whether prompt rows from earlier blocks reach block `index`, to travel on or to end there."""
    return index > 0 and inputs[index - 1].tokens is None and any(given.tokens is not None for given in inputs[:index])


def per_image(tokens: Tensor, batch: int) -> Tensor:
    """Prompts [P, D] or [B, P, D] as [B, P, D]; shared prompts are not copied."""
    return tokens.expand(batch, -1, -1) if tokens.ndim == 2 else tokens


def fingerprint(tensors: dict[str, Tensor], info: BackboneInfo) -> str:
    """SHA-256 over the sizes and every tensor's name, type, shape and bytes: two backbones are one if it agrees."""
    digest = hashlib.sha256(repr(info).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
