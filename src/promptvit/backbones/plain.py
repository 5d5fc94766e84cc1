"""Plain transformers of timm: one patch embedding, one stage of equal blocks, one norm; what ViT and EVA share."""

from __future__ import annotations

import dataclasses
from abc import ABC
from typing import Generic, TypeVar, cast

from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from promptvit.backbones.attention import SelfAttention, project_keys_values
from promptvit.backbones.base import Backbone, BackboneInfo, BlockInput, Positions, TokenBackbone
from promptvit.errors import BackboneError, ConfigError
from promptvit.shapes import Features, Tokens

Model = TypeVar("Model", VisionTransformer, Eva)


class PlainBackbone(TokenBackbone, Generic[Model], ABC):
    """A timm `VisionTransformer` or `Eva`: a family adds how images are embedded and what its blocks compute."""

    model: Model

    @staticmethod
    def image_size(model: nn.Module) -> tuple[int, int]:
        """The patch embedding's."""
        return cast(tuple[int, int], cast(PatchEmbed, model.patch_embed).img_size)

    def before_attention(self, index: int, x: Tensor) -> Tensor:
        """Rows of any kind [..., D] as the attention of block `index` takes them."""
        return cast(nn.Module, self.model.blocks[index].norm1)(x)

    def rotation(self, index: int, rows: int, positions: Positions) -> Tensor | None:
        """Rotary embedding of the first `rows` rows at block `index`; None without rotary positions."""
        return None

    @property
    def norms_embedding(self) -> bool:
        """`norm_pre`: of CLIP."""
        return not isinstance(self.model.norm_pre, nn.Identity)

    def fold_block(self, index: int, given: BlockInput) -> BlockInput:
        """The prompts of block `index` as keys and values, without position; the gradient passes."""
        if given.tokens is None:
            return given
        attention = cast(SelfAttention, self.model.blocks[index].attn)
        k, v = project_keys_values(attention, self.before_attention(index, given.tokens))
        return given.behind(k.transpose(-2, -3), v.transpose(-2, -3))  # [H, P, d] or [B, H, P, d] each

    def final_norm(self, x: Tokens) -> Tokens:
        """`norm`: the identity where the model pools first (MAE)."""
        return self.model.norm(x)

    def own_readout(self, x: Tokens) -> Features:
        """The model's own pooling."""
        return self.model.forward_head(x, pre_logits=True)

    def after_pooling(self, features: Features) -> Features:
        """`fc_norm`: the identity where the model norms first."""
        return self.model.fc_norm(features)

    def readout_rows(self, image_rows: int) -> int:
        """The CLS row, or all image rows."""
        return 1 if self.info.readout == "token" else image_rows

    def units(self) -> list[list[str]]:
        """timm's `blocks`."""
        return [[f"blocks.{index}"] for index in range(self.info.depth)]

    def stages(self) -> list[list[str]]:
        """One."""
        return [["blocks"]]

    def last(self) -> list[str]:
        """`norm` or `fc_norm`, and the attention pooling of models that have one."""
        return ["norm", "fc_norm", "attn_pool"]

    def resized(self, size: tuple[int, int]) -> Backbone:
        """With timm's `set_input_size`: position embeddings resampled, bicubic."""
        if any(pixels < patch for pixels, patch in zip(size, self.info.patch_size, strict=True)):
            raise ConfigError(f"images of {size}", expected="at least one patch", where="resized")
        own = self.own()
        model = cast(Model, own.model)
        model.set_input_size(img_size=size)
        model.requires_grad_(False)
        grid = cast(PatchEmbed, model.patch_embed).grid_size
        rows = (own.info.prefix + grid[0] * grid[1],) * own.info.depth
        own.info = dataclasses.replace(own.info, grid=grid, rows=rows)
        own.preprocessing = dataclasses.replace(own.preprocessing, size=size)
        return own

    @property
    def checkpointing(self) -> bool:
        """timm's own flag, `set_grad_checkpointing`."""
        return self.model.grad_checkpointing

    def set_checkpointing(self, enabled: bool) -> None:
        """Sets timm's own flag."""
        self.model.set_grad_checkpointing(enabled)


def sizes(model: VisionTransformer | Eva, *, family: str, norm: str, details: str) -> BackboneInfo:
    """The sizes of a plain transformer, from the modules themselves."""
    attention = cast(SelfAttention, model.blocks[0].attn)
    patch_embed = cast(PatchEmbed, model.patch_embed)
    depth = len(model.blocks)
    return BackboneInfo(
        family=family,
        width=model.embed_dim,
        widths=(model.embed_dim,) * depth,
        heads=(attention.num_heads,) * depth,
        rows=(model.num_prefix_tokens + patch_embed.num_patches,) * depth,
        head_width=attention.head_dim,
        prefix=model.num_prefix_tokens,
        cls=model.cls_token is not None,
        patch_size=cast(tuple[int, int], patch_embed.proj.kernel_size),
        grid=patch_embed.grid_size,
        channels=patch_embed.proj.in_channels,
        readout=model.global_pool,
        activation=type(cast(nn.Module, model.blocks[0].mlp).act).__name__,
        norm=norm,
        details=details,
    )


def norm_name(norm: nn.Module) -> str:
    """Class and epsilon: what the weights of a norm do not tell."""
    return f"{type(norm).__name__} {getattr(norm, 'eps', '')}".strip()


def check_parts(model: VisionTransformer | Eva, *, blocks: tuple[type, ...], attentions: tuple[type, ...]) -> None:
    """Raise BackboneError for an embedding, block or attention of another class, or a model that does not pool."""
    _refuse_other("patch_embed", model.patch_embed, (PatchEmbed,))
    for index, block in enumerate(model.blocks):
        _refuse_other(f"blocks.{index}", block, blocks)
        _refuse_other(f"blocks.{index}.attn", cast(nn.Module, block.attn), attentions)
    if not model.global_pool:
        raise BackboneError(
            "global_pool='' gives all tokens, not one feature vector",
            expected="token, avg, avgmax, max or map",
            where=type(model).__name__,
            fix="Build the timm model with one of these",
        )


def _refuse_other(where: str, part: nn.Module, known: tuple[type, ...]) -> None:
    if type(part) not in known:
        raise BackboneError(
            f"{where} is a {type(part).__name__}",
            expected=" or ".join(f"timm's {one.__name__}" for one in known),
            where="load_backbone",
            fix="Other block, attention and embedding classes are not driven yet; choose another backbone",
        )


def check_images(images: Tensor, patch_embed: nn.Module, info: BackboneInfo, *, dynamic: bool) -> None:
    """Raise ConfigError for images that the patch embedding does not take."""
    assert isinstance(patch_embed, PatchEmbed)
    given, own = tuple(images.shape[2:]), cast(tuple[int, int], patch_embed.img_size)
    channels = cast(nn.Conv2d, patch_embed.proj).in_channels
    if not dynamic:
        expected, fits = f"{own[0]}x{own[1]}", given == own
    elif patch_embed.dynamic_img_pad:
        expected, fits = "any number of", True
    else:
        height, width = info.patch_size
        expected, fits = f"multiples of {height}x{width}", given[0] % height == 0 and given[1] % width == 0
    if not fits or images.shape[1] != channels:
        raise ConfigError(
            f"images of shape {list(images.shape)}",
            expected=f"{channels} channels of {expected} pixels",
            where="Backbone.embed",
            fix="Resize the images, or load the backbone with image_size",
        )
