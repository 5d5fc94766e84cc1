"""timm's `SwinTransformer` family: Swin and S3, with shifted windows and patch merging."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    WindowAttention,
)
from torch import Tensor, nn

from promptvit.backbones.attention import first_rows
from promptvit.backbones.base import Backbone, BackboneInfo, BlockInput, Positions, TokenBackbone
from promptvit.backbones.plain import check_images, norm_name
from promptvit.backbones.windows import attend_in_windows, project_windows
from promptvit.errors import BackboneError, ConfigError
from promptvit.shapes import Features, Images, Tokens

POOLS = ("avg", "max", "avgmax")


class SwinBackbone(TokenBackbone):
    """A timm `SwinTransformer` whose submodules are called here, block by block.

    Prompts are keys and values of every window of their image, without position bias and outside the shift mask.
    Those that travel are queries there too, and leave as the mean over the windows (VPT, section 3 and appendix).
    """

    model: SwinTransformer
    drives: ClassVar[tuple[type[nn.Module], ...]] = (SwinTransformer,)
    heads: ClassVar[tuple[str, ...]] = ("head.fc.",)

    @staticmethod
    def check(model: nn.Module) -> None:
        """Raise BackboneError for a part that is not driven here, by its class name."""
        assert isinstance(model, SwinTransformer)
        for where, part, known in _parts(model):
            if type(part) is not known:
                raise BackboneError(
                    f"{where} is a {type(part).__name__}",
                    expected=f"a {known.__name__}",
                    where="SwinBackbone",
                    fix="Other classes are not driven yet; choose another backbone",
                )
        if model.global_pool not in POOLS:
            raise BackboneError(
                f"global_pool={model.global_pool!r}",
                expected=", ".join(POOLS),
                where="SwinBackbone",
                fix="Build the timm model with one of these: they give one feature vector of the model's width",
            )

    @staticmethod
    def describe(model: nn.Module) -> BackboneInfo:
        """From the modules themselves."""
        assert isinstance(model, SwinTransformer)
        patch_embed = cast(PatchEmbed, model.patch_embed)
        blocks = blocks_of(model)
        first, attentions = blocks[0][1], [cast(WindowAttention, block.attn) for _, block in blocks]
        return BackboneInfo(
            family="swin",
            width=model.num_features,
            widths=tuple(block.dim for _, block in blocks),
            heads=tuple(attention.num_heads for attention in attentions),
            rows=tuple(math.prod(grid_at(patch_embed.grid_size, stage)) for stage, _ in blocks),
            head_width=attentions[0].proj.in_features // attentions[0].num_heads,
            prefix=0,
            cls=False,
            patch_size=cast(tuple[int, int], patch_embed.proj.kernel_size),
            grid=patch_embed.grid_size,
            channels=patch_embed.proj.in_channels,
            readout=model.global_pool,
            activation=type(first.mlp.act).__name__,
            norm=norm_name(first.norm1),
            details=repr([(block.window_size, block.shift_size) for _, block in blocks]),
        )

    @staticmethod
    def image_size(model: nn.Module) -> tuple[int, int]:
        """The patch embedding's."""
        return cast(tuple[int, int], cast(PatchEmbed, model.patch_embed).img_size)

    def embed(self, images: Images) -> tuple[Tokens, Positions]:
        """The patches [B, h*w, D] of the first stage."""
        check_images(images, self.model.patch_embed, self.info, dynamic=self.model.dynamic_img_size)
        x = self.model.patch_embed(images)  # [B, h, w, D]
        return x.flatten(1, 2), Positions(grid=(x.shape[1], x.shape[2]))

    def enter(self, index: int, x: Tokens, image_rows: int, positions: Positions) -> tuple[Tensor, int]:
        """Patch merging where a stage begins: 2x2 patches become one, a prompt counts as four equal ones."""
        blocks = blocks_of(self.model)
        stage = blocks[index][0]
        if index == 0 or stage == blocks[index - 1][0]:
            return x, image_rows
        merging = cast(PatchMerging, stages_of(self.model)[stage].downsample)
        patches = merging(x[:, :image_rows].unflatten(1, grid_at(positions.grid, stage - 1))).flatten(1, 2)
        if x.shape[1] == image_rows:
            return patches, patches.shape[1]
        prompts = merging.reduction(merging.norm(x[:, image_rows:].repeat(1, 1, 4)))
        return torch.cat([patches, prompts], dim=1), patches.shape[1]

    def block(
        self, index: int, x: Tokens, given: BlockInput, rows: int, positions: Positions
    ) -> Float[Tensor, "B R D"]:
        """Window attention and MLP of block `index` for the first `rows` rows: the image's, or all."""
        stage, block = blocks_of(self.model)[index]
        given = self.fold_block(index, given)
        attended = attend_in_windows(block, block.norm1(x), rows, grid_at(positions.grid, stage), given)
        x = first_rows(x, rows) + block.drop_path1(attended)
        return x + block.drop_path2(block.mlp(block.norm2(x)))

    def fold_block(self, index: int, given: BlockInput) -> BlockInput:
        """The prompts of block `index` as keys and values; the gradient passes."""
        if given.tokens is None:
            return given
        _, block = blocks_of(self.model)[index]
        _, k, v = project_windows(cast(WindowAttention, block.attn), block.norm1(given.tokens))  # [(B,) H, P, d]
        return given.behind(k, v)

    def final_norm(self, x: Tokens) -> Tokens:
        """`norm`."""
        return self.model.norm(x)

    def own_readout(self, x: Tokens) -> Features:
        """The head's own pooling, of the patches as one line of them: it does not ask where they are."""
        return self.model.forward_head(x.unsqueeze(1), pre_logits=True)

    def after_pooling(self, features: Features) -> Features:
        """Nothing: the norm comes first."""
        return features

    def readout_rows(self, image_rows: int) -> int:
        """All of the image's."""
        return image_rows

    def units(self) -> list[list[str]]:
        """timm's blocks; its `downsample`, which opens a stage, goes with the block before."""
        units: list[list[str]] = []
        for stage, layer in enumerate(stages_of(self.model)):
            if stage > 0:
                units[-1].append(f"layers.{stage}.downsample")
            units += [[f"layers.{stage}.blocks.{place}"] for place in range(len(layer.blocks))]
        return units

    def stages(self) -> list[list[str]]:
        """The same for timm's layers."""
        count = len(self.model.layers)
        merging = [[f"layers.{stage}.downsample"] for stage in range(1, count)]
        return [[f"layers.{stage}.blocks", *after] for stage, after in enumerate([*merging, []])]

    def last(self) -> list[str]:
        """`norm`."""
        return ["norm"]

    def resized(self, size: tuple[int, int]) -> Backbone:
        """Raises ConfigError."""
        window = blocks_of(self.model)[-1][1].window_size
        merged = 2 ** (len(self.model.layers) - 1)
        height, width = (p * merged * w for p, w in zip(self.info.patch_size, window, strict=True))
        raise ConfigError(
            f"a Swin for images of {size}",
            expected=f"its own size: patch, merging and window fit together only in steps of {height}x{width} pixels",
            where="resized",
            fix="Load the backbone with image_size, or choose a method that leaves the size as it is",
        )

    @property
    def checkpointing(self) -> bool:
        """timm's own flags, one per stage."""
        return any(layer.grad_checkpointing for layer in stages_of(self.model))

    def set_checkpointing(self, enabled: bool) -> None:
        """Sets timm's own flags."""
        self.model.set_grad_checkpointing(enabled)


def stages_of(model: SwinTransformer) -> list[SwinTransformerStage]:
    """timm's layers."""
    return [cast(SwinTransformerStage, layer) for layer in model.layers]


def blocks_of(model: SwinTransformer) -> list[tuple[int, SwinTransformerBlock]]:
    """All blocks from first to last, each after the number of its stage."""
    stages = enumerate(stages_of(model))
    return [(stage, cast(SwinTransformerBlock, block)) for stage, layer in stages for block in layer.blocks]


def grid_at(grid: tuple[int, int], stage: int) -> tuple[int, int]:
    """Height and width of a patch grid in `stage`: merging halves them, and rounds up."""
    return -(-grid[0] // 2**stage), -(-grid[1] // 2**stage)


def _parts(model: SwinTransformer) -> Iterator[tuple[str, nn.Module, type[nn.Module]]]:
    """The parts that the drive relies on, each with its name and with the class it has to be of."""
    yield "patch_embed", model.patch_embed, PatchEmbed
    for stage, layer in enumerate(model.layers):
        yield f"layers.{stage}", layer, SwinTransformerStage
        assert isinstance(layer, SwinTransformerStage)  # refused otherwise
        yield f"layers.{stage}.downsample", layer.downsample, PatchMerging if stage > 0 else nn.Identity
        for place, block in enumerate(layer.blocks):
            yield f"layers.{stage}.blocks.{place}", block, SwinTransformerBlock
            yield f"layers.{stage}.blocks.{place}.attn", cast(nn.Module, block.attn), WindowAttention
