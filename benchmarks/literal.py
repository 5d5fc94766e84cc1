"""VPT as the paper writes it (Jia et al., ECCV 2022, sections 3.1 and 3.2): concatenate, run, overwrite.

The yardstick. It runs timm's own blocks, with fused attention, over all rows of every image.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class LiteralVPT(nn.Module):
    """`prompts` [S, P, D] stand between CLS and patches: S = 1 is shallow, S = L is deep."""

    def __init__(self, model: VisionTransformer, prompts: Tensor, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.prompts = nn.Parameter(prompts)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of `images` [B, channels, height, width]."""
        x = self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(images)))  # [B, N, D]
        x = join(x[:, :1], self.prompts[0], x[:, 1:])  # [B, 1+P+N-1, D]
        for i, block in enumerate(self.model.blocks):
            if 0 < i < len(self.prompts):
                x = join(x[:, :1], self.prompts[i], x[:, 1 + self.prompts.shape[1] :])
            x = block(x)
        return self.head(self.model.forward_head(self.model.norm(x), pre_logits=True))


def join(cls: Tensor, prompts: Tensor, patches: Tensor) -> Tensor:
    """CLS [B, 1, D], prompts [P, D] and patches [B, N-1, D] as one [B, P+N, D]."""
    return torch.cat([cls, prompts.expand(cls.shape[0], -1, -1), patches], dim=1)
