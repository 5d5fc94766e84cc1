"""timm's `VisionTransformer` family: ViT, DeiT, MAE, CLIP, SigLIP, DINOv2, any prefix-token count and readout."""

from __future__ import annotations

from typing import ClassVar, cast

from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from promptvit.backbones.attention import attend, first_rows
from promptvit.backbones.base import BackboneInfo, BlockInput, Positions
from promptvit.backbones.plain import PlainBackbone, check_images, check_parts, norm_name, sizes
from promptvit.shapes import Images, Tokens


class ViTBackbone(PlainBackbone[VisionTransformer]):
    """A timm `VisionTransformer` whose submodules are called here, block by block."""

    drives: ClassVar[tuple[type[nn.Module], ...]] = (VisionTransformer, VisionTransformerDistilled)
    not_driven: ClassVar[tuple[str, ...]] = (
        *("*_rpn_*", "*_??x2_*", "*_xp_*", "*dwee*", "*pwee*", "*dlittle*"),  # other blocks or attention
    )
    heads: ClassVar[tuple[str, ...]] = ("head.", "head_dist.")

    @staticmethod
    def check(model: nn.Module) -> None:
        """Raise BackboneError for a part that is not driven here, by its class name."""
        assert isinstance(model, VisionTransformer)
        check_parts(model, blocks=(Block,), attentions=(Attention,))

    @staticmethod
    def describe(model: nn.Module) -> BackboneInfo:
        """From the modules themselves."""
        assert isinstance(model, VisionTransformer)
        details = "prefix pooled" if model.pool_include_prefix else ""
        return sizes(model, family="vit", norm=norm_name(cast(Block, model.blocks[0]).norm1), details=details)

    def embed(self, images: Images) -> tuple[Tokens, Positions]:
        """Patches, prefix tokens and positions [B, N, D], as they enter the first block."""
        check_images(images, self.model.patch_embed, self.info, dynamic=self.model.dynamic_img_size)
        x = self.model._pos_embed(self.model.patch_embed(images))
        return self.model.norm_pre(self.model.patch_drop(x)), Positions(grid=self.info.grid)

    def block(
        self, index: int, x: Tokens, given: BlockInput, rows: int, positions: Positions
    ) -> Float[Tensor, "B R D"]:
        """Attention and MLP of block `index` for the first `rows` rows."""
        if given.tokens is not None:
            given = self.fold_block(index, given)
        block = cast(Block, self.model.blocks[index])
        attention, normed = cast(Attention, block.attn), self.before_attention(index, x)
        attended = attend(attention, normed, rows, given.keys, given.values, given.bias, recomputed=self.checkpointing)
        x = first_rows(x, rows) + block.drop_path1(block.ls1(attended))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def readout_rows(self, image_rows: int) -> int:
        """The CLS row (and the distillation row), or all image rows."""
        return 2 if type(self.model) is VisionTransformerDistilled else super().readout_rows(image_rows)
