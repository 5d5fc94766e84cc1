"""timm's `Eva` family: EVA, EVA-02, DINOv3, ViTs with rotary positions, Perception Encoder, Sapiens2."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from promptvit.backbones.attention import attend, first_rows
from promptvit.backbones.base import BackboneInfo, BlockInput, Positions
from promptvit.backbones.plain import PlainBackbone, check_images, check_parts, norm_name, sizes
from promptvit.shapes import Images, Tokens

ROTARY = (
    *("temperature", "grid_indexing", "grid_offset", "grid_type", "ref_feat_shape", "mrope_section", "rotate_half"),
    *("in_pixels", "linear_bands", "max_res", "min_period", "max_period", "normalize_coords"),
)


class EvaBackbone(PlainBackbone[Eva]):
    """A timm `Eva` whose submodules are called here; only patches have a rotary position, prompts and prefix none."""

    drives: ClassVar[tuple[type[nn.Module], ...]] = (Eva,)
    heads: ClassVar[tuple[str, ...]] = ("head.",)

    @staticmethod
    def check(model: nn.Module) -> None:
        """Raise BackboneError for a part that is not driven here, by its class name."""
        assert isinstance(model, Eva)
        check_parts(model, blocks=(EvaBlock, EvaBlockPostNorm), attentions=(EvaAttention, AttentionRope))

    @staticmethod
    def describe(model: nn.Module) -> BackboneInfo:
        """From the modules themselves."""
        assert isinstance(model, Eva)
        block = cast(EvaBlock | EvaBlockPostNorm, model.blocks[0])
        norm = norm_name(block.norm1) + (" after" if isinstance(block, EvaBlockPostNorm) else "")
        return sizes(model, family="eva", norm=norm, details=rotation_name(model.rope))

    def embed(self, images: Images) -> tuple[Tokens, Positions]:
        """Patches, prefix tokens and learned positions [B, N, D], as they enter the first block."""
        check_images(images, self.model.patch_embed, self.info, dynamic=self.model.dynamic_img_size)
        x, rotation = self.model._pos_embed(self.model.patch_embed(images))
        if rotation is not None:  # [n, 2d], [L, H, n, 2d] if mixed; [B, 1, n, 2d], [L, B, H, n, 2d] if patches drop
            rotation = rotation[None] if rotation.ndim == 2 else rotation
            rotation = pad(rotation.transpose(-2, -3), before=self.info.prefix)  # [..., N, H or 1, 2d]
        return self.model.norm_pre(x), Positions(grid=self.info.grid, rotation=rotation)

    def block(
        self, index: int, x: Tokens, given: BlockInput, rows: int, positions: Positions
    ) -> Float[Tensor, "B R D"]:
        """Attention and MLP of block `index` for the first `rows` rows."""
        if given.tokens is not None:
            given = self.fold_block(index, given)
        block = cast(EvaBlock | EvaBlockPostNorm, self.model.blocks[index])
        attended = attend(
            cast(EvaAttention | AttentionRope, block.attn),
            self.before_attention(index, x),
            rows,
            given.keys,
            given.values,
            given.bias,
            rotation=self.rotation(index, x.shape[1], positions),
            recomputed=self.checkpointing,
        )
        x = first_rows(x, rows)
        if isinstance(block, EvaBlockPostNorm):
            x = x + block.drop_path1(block.norm1(attended))
            return x + block.drop_path2(block.norm2(block.mlp(x)))
        x = x + block.drop_path1(scaled(attended, block.gamma_1))
        return x + block.drop_path2(scaled(block.mlp(block.norm2(x)), block.gamma_2))

    def before_attention(self, index: int, x: Tensor) -> Tensor:
        """`norm1`, unless the block norms what comes out."""
        return x if isinstance(self.model.blocks[index], EvaBlockPostNorm) else super().before_attention(index, x)

    def rotation(self, index: int, rows: int, positions: Positions) -> Tensor | None:
        """Of `rows` rows [..., rows, H or 1, 2d] at block `index`: image rows, then prompt rows that travel."""
        rotation = positions.rotation
        if rotation is None:
            return None
        rotation = rotation[index] if self.model.rope_mixed else rotation
        behind = rows - rotation.shape[-3]
        return pad(rotation, behind=behind) if behind else rotation


def pad(rotation: Float[Tensor, "*b n H dd"], *, before: int = 0, behind: int = 0) -> Float[Tensor, "*b N H dd"]:
    """Sine 0 and cosine 1 for rows without a position."""
    sine, cosine = rotation.chunk(2, dim=-1)
    place = (0, 0, 0, 0, before, behind)
    return torch.cat([F.pad(sine, place), F.pad(cosine, place, value=1.0)], dim=-1)


def scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    """Layer scale, where there is one."""
    return x if gamma is None else gamma * x


def rotation_name(rope: nn.Module | None) -> str:
    """Class and settings: nothing of them is in the weights."""
    if rope is None:
        return ""
    settings = {name: vars(rope)[name] for name in ROTARY if name in vars(rope)}
    return f"{type(rope).__name__} {settings}"
