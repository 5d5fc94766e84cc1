"""timm's `VisionTransformer` family: ViT, DeiT, MAE, CLIP, SigLIP, DINOv2, any prefix-token count and readout."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from promptvit.backbones.attention import attend, first_rows, project_keys_values
from promptvit.backbones.base import Backbone, BackboneInfo, BlockInput
from promptvit.backbones.source import BackboneSource
from promptvit.errors import BackboneError, ConfigError
from promptvit.preprocessing import Preprocessing
from promptvit.shapes import Features, Images, Tokens

OTHER_BLOCKS = ("*_rpn_*", "*_??x?_*", "*_xp_*", "*dwee*", "*pwee*", "*dlittle*", "*dpwee*")
"""timm names of this class whose blocks or attention are of a kind that is not driven here."""
HEADS = ("head.", "head_dist.")


class ViTBackbone(Backbone):
    """A timm `VisionTransformer` whose submodules are called here, block by block."""

    model: VisionTransformer

    def __init__(self, model: VisionTransformer, preprocessing: Preprocessing, source: BackboneSource) -> None:
        super().__init__(model, _info(model), preprocessing, source)

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

    def embed(self, images: Images) -> Tokens:
        """Patches, prefix tokens and positions [B, N, D], as they enter the first block."""
        _check_images(images, self.model, self.info)
        x = self.model._pos_embed(self.model.patch_embed(images))
        return self.model.norm_pre(self.model.patch_drop(x))

    def block(self, index: int, x: Tokens, given: BlockInput, rows: int) -> Float[Tensor, "B R D"]:
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
            k, v = _join(k, given.keys), _join(v, given.values)
        return BlockInput(keys=k, values=v)

    def readout(self, x: Tokens) -> Features:
        """Final norm and the model's own pooling."""
        return self.model.forward_head(self.model.norm(x), pre_logits=True)

    def readout_rows(self, image_rows: int) -> int:
        """The CLS row (and the distillation row), or all image rows."""
        if type(self.model) is VisionTransformerDistilled:
            return 2
        return 1 if self.info.readout == "token" else image_rows

    @property
    def checkpointing(self) -> bool:
        """timm's own flag, `set_grad_checkpointing`."""
        return self.model.grad_checkpointing

    def set_checkpointing(self, enabled: bool) -> None:
        """Sets timm's own flag."""
        self.model.set_grad_checkpointing(enabled)

    def body(self) -> dict[str, Tensor]:
        """timm's state dict less the classification heads."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if not name.startswith(HEADS)}


def _join(keys: Tensor, others: Tensor) -> Tensor:
    """Two sets of per-head rows, [H, T, d] or [B, H, T, d], as one."""
    if keys.ndim < others.ndim:
        keys = keys.expand(others.shape[0], -1, -1, -1)
    elif others.ndim < keys.ndim:
        others = others.expand(keys.shape[0], -1, -1, -1)
    return torch.cat([keys, others], dim=-2)


def _info(model: VisionTransformer) -> BackboneInfo:
    block = cast(Block, model.blocks[0])
    attention = cast(Attention, block.attn)
    patch_embed = cast(PatchEmbed, model.patch_embed)
    return BackboneInfo(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=attention.num_heads,
        head_width=attention.head_dim,
        prefix=model.num_prefix_tokens,
        patch_size=cast(tuple[int, int], patch_embed.proj.kernel_size),
        grid=patch_embed.grid_size,
        channels=patch_embed.proj.in_channels,
        readout=model.global_pool,
        activation=type(block.mlp.act).__name__,
        norm=f"{type(block.norm1).__name__} {getattr(block.norm1, 'eps', '')}".strip(),
    )


def _refuse_other(where: str, part: nn.Module, known: type[nn.Module]) -> None:
    if type(part) is not known:
        raise BackboneError(
            f"{where} is a {type(part).__name__}",
            expected=f"timm's {known.__name__}",
            where="ViTBackbone",
            fix="Other block, attention and embedding classes are not driven yet; choose another backbone",
        )


def _check_images(images: Tensor, model: VisionTransformer, info: BackboneInfo) -> None:
    patch_embed = cast(PatchEmbed, model.patch_embed)
    given, own = tuple(images.shape[2:]), cast(tuple[int, int], patch_embed.img_size)
    if not model.dynamic_img_size:
        expected, fits = f"{own[0]}x{own[1]}", given == own
    elif patch_embed.dynamic_img_pad:
        expected, fits = "any number of", True
    else:
        height, width = info.patch_size
        expected, fits = f"multiples of {height}x{width}", given[0] % height == 0 and given[1] % width == 0
    if not fits or images.shape[1] != info.channels:
        raise ConfigError(
            f"images of shape {list(images.shape)}",
            expected=f"{info.channels} channels of {expected} pixels",
            where="ViTBackbone.embed",
            fix="Resize the images, or load the backbone with image_size",
        )
