"""LoRA (Hu et al., ICLR 2022), through PEFT: low-rank updates of linear layers of the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import ClassVar

from torch import nn

from promptvit.backbones.base import Backbone, BackboneInfo
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Method, Preset

PROJECTIONS = ("qkv", "q_proj", "k_proj", "v_proj")
"""What timm calls the layers that make queries, keys and values."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """W + alpha / rank · B A in place of W in some linear layers; A and B are trained, B starts at zero (section 4.1).

    Needs PEFT (extra `lora`). Its words: r, lora_alpha, lora_dropout, target_modules.

    - `rank`: of the update, r.
    - `alpha`: the update is scaled by alpha / rank.
    - `dropout`: on what the update sees, in training.
    - `targets`: linear layers, each by the end of its timm name (`proj`, `mlp.fc1`, `blocks.0.attn.qkv`); null is the
      projections to queries, keys and values.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Sequence[str] | None = None

    kind: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        problems = []
        if self.rank < 1:
            problems.append(f"rank={self.rank}: expected at least 1; the method `linear` has no update")
        if self.alpha <= 0:
            problems.append(f"alpha={self.alpha}: expected a value above 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}: expected a probability in [0, 1)")
        if isinstance(self.targets, str) or (self.targets is not None and not all(self.targets)):
            problems.append(f"targets={self.targets!r}: expected a list of names, like [proj, fc1, fc2]")
        elif self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))
            if not self.targets:
                problems.append("targets=(): expected at least one name, or null; the method `linear` has no update")
        ConfigError.collect(problems, "LoRA")

    def refusal(self, info: BackboneInfo) -> str:
        """A ConvNet has no attention to take by default."""
        return "" if info.depth or self.targets else "it has no attention; name linear layers with `targets`"

    def prepare(self, backbone: Backbone) -> Backbone:
        """A copy that shares every weight and whose target layers have an update of their own.

        Raises ConfigError without PEFT, or for a target that the backbone lacks or does not call.
        """
        layers = self.layers(backbone)
        peft = require_peft()
        own = backbone.own()
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # only ever divided by r
            lora_dropout=self.dropout,
            target_modules=layers,
        )
        peft.inject_adapter_in_model(config, own.model)
        return own

    def training_parts(self, backbone: Backbone) -> Iterable[nn.Module]:
        """The dropout of the updates; all else stays in eval mode."""
        return [module for name, module in backbone.named_modules() if name.endswith(".lora_dropout")]

    def layers(self, backbone: Backbone) -> list[str]:
        """Full names of the target layers; raises ConfigError for a target that is none or would change nothing."""
        weights, modules = backbone.weights(), dict(backbone.model.named_modules())
        linear = [name for name, m in modules.items() if type(m) is nn.Linear and f"{name}.weight" in weights]
        ends = self.targets or PROJECTIONS
        layers = [name for name in linear if any(_ends(name, end) for end in ends)]
        missing = [end for end in self.targets or () if not any(_ends(name, end) for name in layers)]
        if missing or not layers:
            raise ConfigError(
                f"no linear layer is called {', '.join(missing or PROJECTIONS)}",
                expected=f"targets among {', '.join(dict.fromkeys(name.rpartition('.')[2] for name in linear)) or '-'}",
                where="LoRA",
            )
        bypassed = [name for name in layers if f"{name.rpartition('.')[0]}.q_bias" in weights and _ends(name, "qkv")]
        if bypassed:
            raise ConfigError(
                f"{bypassed[0]} has its biases apart: timm reads its weight and never calls it, an update is not seen",
                expected="targets that are called, like targets=[proj, fc1, fc2]",
                where="LoRA",
            )
        return layers


def require_peft() -> ModuleType:
    """The package, which is slow to import; raises ConfigError if it is not installed."""
    try:
        return import_module("peft")
    except ImportError:
        raise ConfigError("LoRA needs PEFT", where="LoRA", fix="pip install 'promptvit[lora]'") from None


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


METHODS.register("lora", Preset(method=LoRA, summary="low-rank updates of the attention's projections (needs PEFT)"))
