"""timm's `VisionTransformer` family: ViT, DeiT, MAE, CLIP, SigLIP, DINOv2, any prefix-token count and readout."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, cast

from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from promptvit.backbones.attention import attend, first_rows, project_keys_values
from promptvit.backbones.base import Backbone, BackboneInfo, BlockInput, Positions, TokenBackbone, join
from promptvit.errors import BackboneError, ConfigError
from promptvit.shapes import Features, Images, Tokens


class ViTBackbone(TokenBackbone):
    """A timm `VisionTransformer` whose submodules are called here, block by block."""

    model: VisionTransformer
    drives: ClassVar[tuple[type[nn.Module], ...]] = (VisionTransformer, VisionTransformerDistilled)
    not_driven: ClassVar[tuple[str, ...]] = (
        *("*_rpn_*", "*_??x?_*", "*_xp_*", "*dwee*", "*pwee*", "*dlittle*", "*dpwee*"),  # other blocks or attention
    )
    heads: ClassVar[tuple[str, ...]] = ("head.", "head_dist.")

    @staticmethod
    def check(model: nn.Module) -> None:
        """Raise BackboneError for a part that is not driven here, by its class name."""
        assert isinstance(model, VisionTransformer)
        parts: list[tuple[str, nn.Module, type[nn.Module]]] = [("patch_embed", model.patch_embed, PatchEmbed)]
        parts += [(f"blocks.{i}", block, Block) for i, block in enumerate(model.blocks)]
        for where, part, known in parts:
            _refuse_other(where, part, known)
            if isinstance(part, Block):
                _refuse_other(f"{where}.attn", part.attn, Attention)
        if not model.global_pool:
            raise BackboneError(
                "global_pool='' gives all tokens, not one feature vector",
                expected="token, avg, avgmax, max, map or prr",
                where=type(model).__name__,
                fix="Build the timm model with one of these",
            )

    @staticmethod
    def describe(model: nn.Module) -> BackboneInfo:
        """From the modules themselves."""
        assert isinstance(model, VisionTransformer)
        block = cast(Block, model.blocks[0])
        attention = cast(Attention, block.attn)
        patch_embed = cast(PatchEmbed, model.patch_embed)
        depth = len(model.blocks)
        return BackboneInfo(
            family="vit",
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
            activation=type(block.mlp.act).__name__,
            norm=norm_name(block.norm1),
        )

    def embed(self, images: Images) -> tuple[Tokens, Positions]:
        """Patches, prefix tokens and positions [B, N, D], as they enter the first block."""
        check_images(images, self.model.patch_embed, self.info, dynamic=self.model.dynamic_img_size)
        x = self.model._pos_embed(self.model.patch_embed(images))
        return self.model.norm_pre(self.model.patch_drop(x)), Positions(grid=self.info.grid)

    def embed_patches(self, images: Images) -> Tokens:
        """The patch embedding's own convolution and norm."""
        patch_embed = cast(PatchEmbed, self.model.patch_embed)
        return patch_embed.norm(patch_embed.proj(images).flatten(2).transpose(1, 2))

    def block(
        self, index: int, x: Tokens, given: BlockInput, rows: int, positions: Positions
    ) -> Float[Tensor, "B R D"]:
        """Attention and MLP of block `index` for the first `rows` rows."""
        if given.tokens is not None:
            given = self.fold_block(index, given)
        block = cast(Block, self.model.blocks[index])
        attention, normed = cast(Attention, block.attn), block.norm1(x)
        attended = attend(attention, normed, rows, given.keys, given.values, recomputed=self.checkpointing)
        x = first_rows(x, rows) + block.drop_path1(block.ls1(attended))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def fold_block(self, index: int, given: BlockInput) -> BlockInput:
        """The prompts of block `index` as keys and values; the gradient passes."""
        if given.tokens is None:
            return given
        block = cast(Block, self.model.blocks[index])
        k, v = project_keys_values(cast(Attention, block.attn), block.norm1(given.tokens))
        k, v = k.transpose(-2, -3), v.transpose(-2, -3)  # [H, P, d] or [B, H, P, d]
        if given.keys is not None and given.values is not None:
            k, v = join(k, given.keys), join(v, given.values)
        return BlockInput(keys=k, values=v)

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
        """The CLS row (and the distillation row), or all image rows."""
        if type(self.model) is VisionTransformerDistilled:
            return 2
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

    @property
    def first_convolution(self) -> str:
        """The patch embedding's."""
        return "patch_embed.proj"

    def resized(self, size: tuple[int, int]) -> Backbone:
        """With timm's `set_input_size`: position embeddings resampled, bicubic."""
        return resized(self, size)

    @property
    def checkpointing(self) -> bool:
        """timm's own flag, `set_grad_checkpointing`."""
        return self.model.grad_checkpointing

    def set_checkpointing(self, enabled: bool) -> None:
        """Sets timm's own flag."""
        self.model.set_grad_checkpointing(enabled)


def resized(backbone: Backbone, size: tuple[int, int]) -> Backbone:
    """A copy of a backbone with plain patches and `set_input_size`, for images of `size`."""
    across = zip(size, backbone.info.patch_size, strict=True)
    if any(pixels < patch for pixels, patch in across):
        raise ConfigError(f"images of {size}", expected="at least one patch", where="resized")
    own = backbone.own()
    model = cast(VisionTransformer, own.model)
    model.set_input_size(img_size=size)
    model.requires_grad_(False)
    grid = cast(PatchEmbed, model.patch_embed).grid_size
    rows = (own.info.prefix + grid[0] * grid[1],) * own.info.depth
    own.info = dataclasses.replace(own.info, grid=grid, rows=rows)
    own.preprocessing = dataclasses.replace(own.preprocessing, size=size)
    return own


def norm_name(norm: nn.Module) -> str:
    """Class and epsilon: what the weights of a norm do not tell."""
    return f"{type(norm).__name__} {getattr(norm, 'eps', '')}".strip()


def _refuse_other(where: str, part: nn.Module, known: type[nn.Module]) -> None:
    if type(part) is not known:
        raise BackboneError(
            f"{where} is a {type(part).__name__}",
            expected=f"timm's {known.__name__}",
            where="ViTBackbone",
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
