"""Adapters (Pfeiffer et al., EACL 2021): a small bottleneck behind the MLP of every block."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from promptvit.backbones.base import Backbone, BackboneInfo
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Method, Preset


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """A bottleneck with a residual behind the MLP of each block of a frozen backbone (Adapter of VPT, section 4.1).

    With u = MLP(LN(h)) a block gives h + u + up(gelu(down(u))). `up` starts at zero, so the model starts as the
    frozen backbone; the weight of `down` starts like that of any linear layer of PyTorch, so that what passes the
    bottleneck, and with it the first gradient of `up`, does not depend on the width.

    - `reduction`: width of the block over that of the bottleneck; the paper tries 8, 64 and 256.
    - `compat_zero_init`: start with `down` at zero too, as in the paper's code. Each then keeps the other's gradient
      at zero, and nothing is ever trained but the bias of `up`: one vector per block.
    """

    reduction: int = 8
    compat_zero_init: bool = False

    kind: ClassVar[str] = "adapter"
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ConfigError(f"reduction={self.reduction}", expected="at least 1", where="Adapter")

    def refusal(self, info: BackboneInfo) -> str:
        """There must be blocks with MLPs, and in all of them room for a bottleneck."""
        if not info.depth:
            return "adapters stand behind the MLP of a transformer block"
        narrowest = min(info.widths)
        if self.reduction > narrowest:
            return f"reduction={self.reduction} leaves no bottleneck at a width of {narrowest}"
        return ""

    def prepare(self, backbone: Backbone) -> Backbone:
        """A copy that shares every parameter, with adapters around its MLPs."""
        own = backbone.own()
        for (name, *_), width in zip(own.units(), own.info.widths, strict=True):
            block = own.model.get_submodule(name)
            mlp = cast(nn.Module, block.mlp)
            block.mlp = AdaptedMLP(mlp, width, width // self.reduction, zeros=self.compat_zero_init)
        return own


class AdaptedMLP(nn.Module):
    """`mlp` and an adapter behind it: [..., D] to [..., D]."""

    def __init__(self, mlp: nn.Module, width: int, bottleneck: int, *, zeros: bool) -> None:
        super().__init__()
        down, up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        for tensor in (down.bias, up.weight, up.bias, *([down.weight] if zeros else [])):
            nn.init.zeros_(tensor)
        self.mlp = mlp
        self.adapter = nn.Sequential(OrderedDict(down=down, gelu=nn.GELU(), up=up))
        self.adapter.to(next(mlp.parameters()))  # a part of the backbone: on its device, of its type

    def forward(self, x: Tensor) -> Tensor:
        u = self.mlp(x)
        return u + self.adapter(u)


METHODS.register("adapter", Preset(method=Adapter, summary="a small bottleneck behind the MLP of every block"))
