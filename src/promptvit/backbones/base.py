"""A backbone: a pretrained model that is driven, not edited; most are driven block by block, with room for prompts."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promptvit.backbones.source import BackboneSource
from promptvit.errors import ConfigError
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Features, HeadPrompts, Images, Prompts, Tokens

Readout = Literal["own", "image", "prompt", "all"]
"""What becomes the feature vector: the model's own readout, or the mean of patch rows, of prompt rows, or of both,
after the final norm (VPT, section 4.3; `all` is how MAE and Swin are read there)."""
BIASES = ("bias", "q_bias", "k_bias", "v_bias")
POSITION_TABLE = "relative_position_bias_table"


@dataclass(frozen=True, kw_only=True)
class BlockInput:
    """What one block gets beside the tokens.

    - `tokens` [P, D] or [B, P, D]: fresh prompts. They take the place of prompt rows that arrive from the block
      before; with P = 0 those end here. None: whatever arrives travels on.
    - `keys`, `values` [H, T, d] or [B, H, T, d]: they join the keys and values inside the attention, after the
      key normalisation and without position.
    - `bias` [T] or [B, T]: added to the attention logits of `keys`. With log n a key counts as n equal ones.
    - `added` [N, D] or [1, D]: added to the N image rows before the block.
    """

    tokens: Prompts | None = None
    keys: HeadPrompts | None = None
    values: HeadPrompts | None = None
    bias: Float[Tensor, "*batch T"] | None = None
    added: Float[Tensor, "rows D"] | None = None

    def __post_init__(self) -> None:
        if (self.keys is None) != (self.values is None):
            raise ConfigError("keys without values or values without keys", expected="both", where="BlockInput")
        if self.bias is not None and (self.keys is None or self.keys.shape[-2] != self.bias.shape[-1]):
            raise ConfigError(
                f"bias of {self.bias.shape[-1]} keys", expected="one for each of `keys`", where="BlockInput"
            )

    @property
    def inside(self) -> BlockInput:
        """What acts inside the attention alone."""
        return BlockInput(keys=self.keys, values=self.values, bias=self.bias)

    def behind(
        self, keys: HeadPrompts, values: HeadPrompts, bias: Float[Tensor, "*batch T"] | None = None
    ) -> BlockInput:
        """Keys, values and bias alone: the given ones, and behind them its own."""
        if self.keys is None or self.values is None:
            return BlockInput(keys=keys, values=values, bias=bias)
        if bias is not None or self.bias is not None:
            parts = (bias, keys), (self.bias, self.keys)
            first, second = (k.new_zeros(k.shape[-2]) if b is None else b for b, k in parts)
            bias = join(first, second, dim=-1)
        return BlockInput(keys=join(keys, self.keys), values=join(values, self.values), bias=bias)


NOTHING = BlockInput()


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Where the rows of an image are, for blocks that want to know.

    `grid`: patches as height and width, at the first block. `rotation`: rotary embedding of the image rows (the
    prefix stays as it is), for all blocks or one per block.
    """

    grid: tuple[int, int]
    rotation: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """The sizes of a backbone, and what methods ask of it.

    `family`: the kind of architecture; `width`: of features, D; `widths`, `heads`, `rows`: width of the tokens,
    attention heads and number of image rows at each block that takes prompts (none in a ConvNet); `head_width`: d;
    `prefix`: rows before the patches (CLS, registers); `cls`: whether there is a CLS token; `patch_size` and `grid`
    (of the first convolution) as height and width; `channels` of the input image; `readout`: how features are
    pooled; `activation`, `norm` and `details`: what weights do not tell of the arithmetic.
    """

    family: str
    width: int
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    rows: tuple[int, ...]
    head_width: int
    prefix: int
    cls: bool
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    channels: int
    readout: str
    activation: str
    norm: str
    details: str = ""

    @property
    def depth(self) -> int:
        """How many blocks take prompts, L."""
        return len(self.widths)


class Backbone(nn.Module, ABC):
    """A pretrained model, frozen and in eval mode: images and what a method gives to features.

    `model` is the user's own module: its keys and bits never change; only its parameters' `requires_grad` flags
    are cleared. `fixed` names parameters that no method trains. A family implements the abstract methods and calls
    the model's own submodules.
    """

    drives: ClassVar[tuple[type[nn.Module], ...]]
    """The timm classes of the family."""
    not_driven: ClassVar[tuple[str, ...]] = ()
    """timm names of these classes, as patterns, that `check` refuses."""
    heads: ClassVar[tuple[str, ...]]
    """How names of the model's own classification head begin."""

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        source: BackboneSource,
        fixed: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.info = self.describe(model)
        self.preprocessing = preprocessing
        self.source = source
        self.fixed = frozenset(fixed)
        self.of_task = False
        """Whether this is the backbone of one tuned model, and no longer the pretrained one."""
        self.fingerprint = fingerprint(self)
        self.eval()

    @staticmethod
    @abstractmethod
    def check(model: nn.Module) -> None:
        """Raise BackboneError for a part that is not driven here, by its class name."""

    @staticmethod
    @abstractmethod
    def describe(model: nn.Module) -> BackboneInfo:
        """The sizes of a model that `check` lets pass."""

    @staticmethod
    @abstractmethod
    def image_size(model: nn.Module) -> tuple[int, int] | None:
        """The height and width that a model is built for; None if it takes images of any size."""

    @abstractmethod
    def forward(self, images: Images, inputs: Sequence[BlockInput] = (), readout: Readout = "own") -> Features:
        """Features [B, D] of `images` [B, channels, height, width], with `inputs` (one per block, or none at all)."""

    @abstractmethod
    def fold(self, inputs: Sequence[BlockInput], readout: Readout = "own") -> tuple[BlockInput, ...]:
        """The same inputs for inference, with all that does not depend on the images computed once."""

    @abstractmethod
    def units(self) -> list[list[str]]:
        """The blocks from first to last, each as the beginnings of its tensors' names; what stands between two
        blocks (patch merging) belongs to the first of them."""

    @abstractmethod
    def stages(self) -> list[list[str]]:
        """The same for stages; a plain transformer is one stage."""

    @abstractmethod
    def last(self) -> list[str]:
        """What comes after the last block: the beginnings of the names of final norms."""

    @property
    @abstractmethod
    def first_convolution(self) -> str:
        """The name of the convolution that sees the image."""

    @abstractmethod
    def resized(self, size: tuple[int, int]) -> Backbone:
        """A copy for images of `size` (height, width) that shares every tensor but resampled position embeddings;
        raises ConfigError if the architecture cannot."""

    @property
    @abstractmethod
    def checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass instead of kept (the model's own setting)."""

    @abstractmethod
    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute blocks in the backward pass: less memory for more time, the same gradients."""

    def body(self) -> dict[str, Tensor]:
        """The model's tensors (parameters and buffers) by its own names, without its classification head."""
        return {name: t for name, t in self.model.state_dict().items() if not name.startswith(self.heads)}

    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters among them."""
        return {name: p for name, p in self.model.named_parameters() if not name.startswith(self.heads)}

    def trainable(self) -> list[str]:
        """Names of all parameters that a method may train."""
        return [name for name in self.weights() if name not in self.fixed]

    def under(self, *beginnings: str) -> list[str]:
        """Names of trainable parameters of the modules called `beginnings`, or in them."""
        starts = tuple(f"{beginning}." for beginning in beginnings)
        return [name for name in self.trainable() if f"{name}.".startswith(starts)]

    def biases(self, *, position_tables: bool = False) -> list[str]:
        """Names of all bias vectors; with `position_tables` the relative position biases of Swin too."""
        wanted = (*BIASES, POSITION_TABLE) if position_tables else BIASES
        return [name for name in self.trainable() if name.rpartition(".")[2] in wanted]

    def own(self, trained: Collection[str] = ()) -> Backbone:
        """A copy for one task, with parameters `trained` of its own, which get gradients, and all others shared.

        Two that share tensors move together: bring a backbone to its device and type before it is tuned.
        """
        shared = {id(p): p for name, p in self.model.named_parameters() if name not in trained}
        twin = copy.deepcopy(self, shared)
        twin.of_task = True
        for name, parameter in twin.model.named_parameters():
            if name in trained:
                parameter.requires_grad_(True)
        return twin


class TokenBackbone(Backbone, ABC):
    """A transformer as embed -> blocks -> readout, with room for prompts at every block."""

    @abstractmethod
    def embed(self, images: Images) -> tuple[Tokens, Positions]:
        """Images [B, channels, height, width] to the tokens [B, N, D] that enter the first block."""

    @abstractmethod
    def block(
        self, index: int, x: Tokens, given: BlockInput, rows: int, positions: Positions
    ) -> Float[Tensor, "B R D"]:
        """The first `rows` rows [B, rows, D] of what block `index` makes of `x` [B, N, D] and `given`."""

    @abstractmethod
    def fold_block(self, index: int, given: BlockInput) -> BlockInput:
        """`given` with its tokens turned into the keys and values that they contribute in block `index`."""

    @abstractmethod
    def final_norm(self, x: Tokens) -> Tokens:
        """The norm after the last block, of any rows."""

    @abstractmethod
    def own_readout(self, x: Tokens) -> Features:
        """The normalised rows [B, R, D] that the model's own readout reads, to features [B, D]."""

    @abstractmethod
    def after_pooling(self, features: Features) -> Features:
        """What the model does with pooled rows before its head: a norm (MAE), or nothing."""

    @abstractmethod
    def readout_rows(self, image_rows: int) -> int:
        """How many of the first rows of the last block's output the own readout reads, out of `image_rows`."""

    def embed_patches(self, images: Images) -> Tokens:
        """Patches alone [B, h*w, D], no prefix rows and no positions: timm's patch embedding, at any image size."""
        embedding = cast(nn.Module, self.model.patch_embed)
        if embedding.dynamic_img_pad:
            down, right = (-size % patch for size, patch in zip(images.shape[2:], self.info.patch_size, strict=True))
            images = F.pad(images, (0, right, 0, down))
        projected = cast(nn.Module, embedding.proj)(images).flatten(2).transpose(1, 2)
        return cast(nn.Module, embedding.norm)(projected)

    @property
    def norms_embedding(self) -> bool:
        """Whether a norm stands between the embedding and the first block."""
        return False

    @property
    def first_convolution(self) -> str:
        """The patch embedding's."""
        return "patch_embed.proj"

    def enter(self, index: int, x: Tokens, image_rows: int, positions: Positions) -> tuple[Tensor, int]:
        """What happens to `x` (image rows, then prompt rows) between blocks, before block `index`; and how many of
        its rows are the image's then. Nothing, unless stages differ in width."""
        return x, image_rows

    def forward(self, images: Images, inputs: Sequence[BlockInput] = (), readout: Readout = "own") -> Features:
        """Features [B, D] of `images` [B, channels, height, width], with `inputs` (one per block, or none at all).

        A row is computed only if something reads it: image rows up to the last block, there only those of the
        readout, and prompt rows only where they travel on (the next block gets no fresh ones) or are read out.
        """
        inputs = inputs or [NOTHING] * self.info.depth
        if len(inputs) != self.info.depth:
            raise ConfigError(
                f"{len(inputs)} block inputs", expected=f"one per block, {self.info.depth}", where="Backbone.forward"
            )
        x, positions = self.embed(images)  # [B, N, D]
        image_rows = x.shape[1]
        for index, given in enumerate(inputs):
            if given.tokens is not None:
                x = x[:, :image_rows]
            x, image_rows = self.enter(index, x, image_rows, positions)
            if given.added is not None:
                x = add(x, given.added, image_rows)
            if given.tokens is not None and self.travels(index, inputs, readout):
                x = torch.cat([x, per_image(given.tokens, x.shape[0])], dim=1)  # [B, N+P, D]
                given = given.inside
            rows = x.shape[1]
            if index == self.info.depth - 1:
                rows = {"own": self.readout_rows(image_rows), "image": image_rows}.get(readout, rows)
            elif inputs[index + 1].tokens is not None:
                rows = image_rows
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.block, index, x, given, rows, positions, use_reentrant=False)
            else:
                x = self.block(index, x, given, rows, positions)
        return self.read(self.final_norm(x), image_rows, readout)

    def read(self, x: Tokens, image_rows: int, readout: Readout) -> Features:
        """Features [B, D] of the normalised rows that `readout` reads: image rows, then prompt rows."""
        if readout == "own":
            return self.own_readout(x)
        rows = x[:, image_rows:] if readout == "prompt" else x[:, self.info.prefix :]
        return self.after_pooling(rows.mean(dim=1))

    def travels(self, index: int, inputs: Sequence[BlockInput], readout: Readout = "own") -> bool:
        """Whether the prompt rows that leave block `index` are read, by the next one or by the readout."""
        if index + 1 < self.info.depth:
            return inputs[index + 1].tokens is None
        return readout in ("prompt", "all")

    @torch.no_grad()
    def fold(self, inputs: Sequence[BlockInput], readout: Readout = "own") -> tuple[BlockInput, ...]:
        """The same inputs for inference: prompts whose outputs nobody reads become keys and values, once."""
        folded = []
        for index, given in enumerate(inputs):
            if given.tokens is not None and not self.travels(index, inputs, readout):
                end = given.tokens[..., :0, :] if arrives(index, inputs) else None  # no rows: others end here
                given = dataclasses.replace(self.fold_zeros(index, given), tokens=end, added=given.added)
            folded.append(given)
        return tuple(folded)

    def fold_zeros(self, index: int, given: BlockInput) -> BlockInput:
        """`fold_block`, where n prompts that are zero (masked, not removed) become one that counts as n."""
        tokens = given.tokens
        assert tokens is not None
        zero = (tokens == 0).all(dim=-1)
        if tokens.ndim == 3 or tokens.is_meta or (count := int(zero.sum())) < 2:
            return self.fold_block(index, given)
        kept = torch.cat([tokens[zero][:1], tokens[~zero]])
        folded = self.fold_block(index, BlockInput(tokens=kept))
        assert folded.keys is not None
        assert folded.values is not None
        bias = tokens.new_zeros(len(kept))
        bias[0] = math.log(count)
        return given.behind(folded.keys, folded.values, bias)


def arrives(index: int, inputs: Sequence[BlockInput]) -> bool:
    """Whether prompt rows from earlier blocks reach block `index`, to travel on or to end there."""
    return index > 0 and inputs[index - 1].tokens is None and any(given.tokens is not None for given in inputs[:index])


def per_image(tokens: Tensor, batch: int) -> Tensor:
    """Prompts [P, D] or [B, P, D] as [B, P, D]; shared prompts are not copied."""
    return tokens.expand(batch, -1, -1) if tokens.ndim == 2 else tokens


def join(rows: Tensor, others: Tensor, dim: int = -2) -> Tensor:
    """Two sets of per-head rows, [H, T, d] or [B, H, T, d], or of their biases, as one along `dim`."""
    if rows.ndim < others.ndim:
        rows = rows.expand(others.shape[0], *rows.shape)
    elif others.ndim < rows.ndim:
        others = others.expand(rows.shape[0], *others.shape)
    return torch.cat([rows, others], dim=dim)


def add(x: Tensor, added: Tensor, image_rows: int) -> Tensor:
    """`x` [B, N+P, D] with `added` on its N image rows; raises ConfigError unless it has N rows, or one for all."""
    if added.shape[0] not in (1, image_rows):
        raise ConfigError(
            f"{added.shape[0]} rows to add",
            expected=f"one per image row, {image_rows}, or one for all",
            where="Backbone.forward",
            fix="Rows to add fit one image size",
        )
    if x.shape[1] == image_rows:
        return x + added
    return torch.cat([x[:, :image_rows] + added, x[:, image_rows:]], dim=1)


def fingerprint(backbone: Backbone) -> str:
    """SHA-256 over what the arithmetic depends on and every tensor's name, type, shape and bytes: two backbones are one
    if it agrees. Empty for tensors without values (on torch's meta device)."""
    info, tensors = backbone.info, backbone.body()
    if any(tensor.is_meta for tensor in tensors.values()):
        return ""
    kind = (info.family, info.heads, info.prefix, info.patch_size, info.grid, info.readout, info.activation, info.norm)
    digest = hashlib.sha256(repr((*kind, info.details, arithmetic(backbone.model, backbone.heads))).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def arithmetic(model: nn.Module, heads: tuple[str, ...]) -> list[tuple[object, ...]]:
    """What modules compute with beside their tensors: strides, dilations, the epsilons of norms, kinds of pooling."""
    numbers: list[tuple[object, ...]] = []
    for name, module in model.named_modules():
        if f"{name}.".startswith(heads):
            continue
        if isinstance(module, nn.Conv2d):
            numbers.append((name, module.stride, module.padding, module.dilation, module.groups))
        elif "Pool" in type(module).__name__:
            numbers.append(
                (name, type(module).__name__, *(vars(module).get(size) for size in ("kernel_size", "stride")))
            )
        elif "eps" in vars(module):
            numbers.append((name, module.eps))
    return numbers
