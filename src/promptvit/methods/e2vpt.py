"""E2VPT: visual prompts beside the tokens and key-value prompts inside the attention (Han et al., ICCV 2023,
arXiv 2307.13770)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from promptvit.backbones.base import NOTHING, Backbone, BackboneInfo, BlockInput, Readout
from promptvit.errors import ConfigError
from promptvit.methods.base import METHODS, Delta, Method, Preset, unknown_choices
from promptvit.methods.linear import Linear
from promptvit.methods.masks import Masks
from promptvit.methods.prompts import Prompts
from promptvit.methods.samples import Samples
from promptvit.methods.spt import SPT
from promptvit.methods.vpt import VPT

PROMPTS = VPT()
PATCH_WIDTH = 16
"""What the official uniform start takes for the width of a prompt, whatever the head."""


@dataclass(frozen=True, kw_only=True)
class KeyValue:
    """Prompts [H, T, d] that join the keys and values of every head: after the key normalisation, without position, the
    same for every image (section 3.2). Queries and the number of rows stay as they are.

    - `length`: prompts per block, T.
    - `values`: `shared` has one tensor as keys and as values, as in the paper's runs; `separate` has two.
    - `blocks`: `all`; the `first` alone; or `tied`, one tensor for all blocks, trained by all.
    - `init`: uniform in ±sqrt(6 / (d · T)) with `paper`, so more prompts start smaller; in ±sqrt(6 / d) with `head`,
      whatever the length; in ±sqrt(6 / (channels · patch area + 16)) with `patch`. `normal` is truncated normal with a
      standard deviation of 0.02.
    - `dropout`: on the values, drawn anew for every image.
    """

    length: int = 5
    values: Literal["shared", "separate"] = "shared"
    blocks: Literal["all", "first", "tied"] = "all"
    init: Literal["paper", "head", "patch", "normal"] = "paper"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        problems = unknown_choices(self)
        if self.length < 1:
            problems.append(f"length={self.length}: expected at least 1 prompt; kv=None has none")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}: expected a probability in [0, 1)")
        ConfigError.collect(problems, "KeyValue")

    def build(self, backbone: Backbone) -> KeyValues:
        """Freshly initialised, keys before values."""
        info = backbone.info
        heads = info.heads if self.blocks == "all" else info.heads[:1]
        shapes = [(len(list(stage)), count, self.length, info.head_width) for count, stage in groupby(heads)]
        keys = [self._start(torch.empty(shape), backbone) for shape in shapes]
        separate = self.values == "separate"
        values = [self._start(torch.empty(shape), backbone) for shape in shapes] if separate else None
        return KeyValues(keys, values, tied=self.blocks == "tied", dropout=self.dropout)

    def _start(self, values: Tensor, backbone: Backbone) -> Tensor:
        info = backbone.info
        if self.init == "normal":
            return nn.init.trunc_normal_(values, std=0.02)
        fan = {
            "paper": info.head_width * self.length,
            "head": info.head_width,
            "patch": info.channels * math.prod(info.patch_size) + PATCH_WIDTH,
        }[self.init]
        bound = math.sqrt(6 / fan)
        return nn.init.uniform_(values, -bound, bound)


class KeyValues(Delta):
    """Key-value prompts of the first blocks.

    `keys` [S, H, T, d]: one tensor per stage of equally many heads, with a set for each of its blocks; with `tied` one
    tensor [1, H, T, d], which all blocks use. `values` as `keys`; None: the keys are the values too.
    """

    def __init__(
        self,
        keys: Sequence[Float[Tensor, "_ _ T d"]],
        values: Sequence[Float[Tensor, "_ _ T d"]] | None,
        *,
        tied: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.keys = nn.ParameterList(nn.Parameter(stage) for stage in keys)
        self.values = None if values is None else nn.ParameterList(nn.Parameter(stage) for stage in values)
        self.tied, self.dropout = tied, dropout

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """Keys and values [H, T, d] per block; [B, H, T, d], with a mask for every image and block, under dropout."""
        depth = backbone.info.depth
        keys = self._drawn(self.keys, depth, batch)
        values = keys if self.values is None else self._drawn(self.values, depth, batch)
        given = [BlockInput(keys=k, values=v) for k, v in zip(keys, values, strict=True)]
        return (*given, *[NOTHING] * (depth - len(given)))

    def _drawn(self, stages: nn.ParameterList, depth: int, batch: int) -> list[Tensor]:
        blocks = [block for stage in stages for block in stage.unbind(0)]
        blocks = blocks * depth if self.tied else blocks
        if self.training and self.dropout > 0:
            return [F.dropout(block.expand(batch, *block.shape), self.dropout) for block in blocks]
        return blocks


PARTS = {"kv": KeyValue, "masks": Masks}
"""Fields of `E2VPT` that are dataclasses and no methods."""


@dataclass(frozen=True, kw_only=True)
class E2VPT(Method):
    """Visual prompts, key-value prompts, or both; visual prompts may be pruned.

    - `prompts`: the visual prompts: a `VPT` or an `SPT`, by `name` with its own fields; null: none.
    - `kv`: the key-value prompts, a `KeyValue`; null: none.
    - `masks`: what is pruned of the visual prompts, a `Masks`; `promptvit prune` finds it. Null: nothing.
    """

    prompts: Method | None = PROMPTS
    kv: KeyValue | None = KeyValue()
    masks: Masks | None = None

    kind: ClassVar[str] = "e2vpt"
    learning_rate: ClassVar[float] = VPT.learning_rate
    inner: ClassVar[tuple[str, ...]] = ("prompts",)

    def __post_init__(self) -> None:
        problems = []
        if self.prompts is not None and not isinstance(self.prompts, VPT | SPT):
            problems.append(f"prompts={type(self.prompts).__name__}: expected a VPT or an SPT")
        problems += [
            f"{name}={getattr(self, name)!r}: expected a {kind.__name__}, or none"
            for name, kind in PARTS.items()
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kind)
        ]
        if self.prompts is None and self.kv is None:
            problems.append("neither prompts nor kv: the method `linear` has none")
        if self.prompts is None and self.masks is not None:
            problems.append("masks without prompts: key-value prompts are not pruned")
        ConfigError.collect(problems, "E2VPT")

    @property
    def visual(self) -> Method:
        """What trains all but the key-value prompts."""
        return self.prompts or Linear()

    def refusal(self, info: BackboneInfo) -> str:
        """That of the visual prompts; one tensor does not fit blocks that differ in heads."""
        if not info.depth:
            return "there is no attention to join"
        tied = self.kv is not None and self.kv.blocks == "tied" and len(set(info.heads)) > 1
        reasons = [self.visual.refusal(info), "kv.blocks=tied: its blocks differ in heads" if tied else ""]
        return "; ".join(filter(None, reasons))

    def trained(self, backbone: Backbone) -> Collection[str]:
        """Those of the visual prompts' method."""
        return self.visual.trained(backbone)

    def prepare(self, backbone: Backbone) -> Backbone:
        """As that method does."""
        return self.visual.prepare(backbone)

    def build(self, backbone: Backbone) -> Delta:
        """The same visual prompts as those of `prompts` alone; of pruned ones, those that are kept."""
        visual = None if self.prompts is None else cast(Prompts, self.prompts.build(backbone))
        if visual is not None and self.masks is not None:
            visual = visual.pruned(self.masks)
        return E2VPTDelta(visual, None if self.kv is None else self.kv.build(backbone))

    @property
    def needs_samples(self) -> bool:
        """As the visual prompts do."""
        return self.visual.needs_samples

    @property
    def augments_samples(self) -> bool:
        """As the visual prompts do."""
        return self.visual.augments_samples

    def start(self, delta: Delta, backbone: Backbone, samples: Samples | None, classes: int) -> None:
        """Visual prompts as they start by themselves; of pruned ones, those that are kept."""
        assert isinstance(delta, E2VPTDelta)
        if not self.needs_samples or self.prompts is None or delta.visual is None:
            return
        if self.masks is None:
            self.prompts.start(delta.visual, backbone, samples, classes)
            return
        whole = cast(Prompts, self.prompts.build(backbone)).to(delta.visual.prompts[0].device)
        self.prompts.start(whole, backbone, samples, classes)
        delta.visual.load_state_dict(whole.pruned(self.masks).state_dict())

    @property
    def readout(self) -> Readout:
        """That of the visual prompts."""
        return self.visual.readout

    @property
    def backbone_share(self) -> float:
        """As for the visual prompts alone."""
        return self.visual.backbone_share

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, `prompts` with the name of their method."""
        visual = None if self.prompts is None else {"name": self.prompts.kind, **self.prompts.to_dict()}
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            "prompts": visual,
            **{n: None if part is None else dataclasses.asdict(part) for n, part in parts.items()},
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Method:
        """The inverse of `to_dict`; parts may also be given as objects. Raises ConfigError for an unknown field."""
        parts = dict(fields)
        if isinstance(given := parts.get("prompts"), dict):
            own = {name: value for name, value in given.items() if name != "name"}
            name = given.get("name", VPT.kind)
            parts["prompts"] = None if name is None else METHODS[name].build(**own)
        for name, part in PARTS.items():
            if isinstance(given := parts.get(name), dict):
                known = {field.name for field in dataclasses.fields(part)}
                problems = [f"{name}.{key}={given[key]!r}: no such field" for key in given if key not in known]
                problems += [f"{name}: {field} is missing" for field in required(part) if field not in given]
                ConfigError.collect(problems, part.__name__)
                parts[name] = part(**given)
        return cls(**parts)


def required(part: type) -> list[str]:
    """Fields of a dataclass without a default."""
    return [field.name for field in dataclasses.fields(part) if field.default is dataclasses.MISSING]


class E2VPTDelta(Delta):
    """Visual prompts and key-value prompts, each of which may be missing."""

    def __init__(self, visual: Prompts | None, kv: KeyValues | None) -> None:
        super().__init__()
        self.visual, self.kv = visual, kv

    def forward(self, backbone: Backbone, batch: int) -> tuple[BlockInput, ...]:
        """Both at each block."""
        if self.visual is None or self.kv is None:
            return cast(Delta, self.visual or self.kv)(backbone, batch)
        pairs = zip(self.visual(backbone, batch), self.kv(backbone, batch), strict=True)
        return tuple(dataclasses.replace(given, keys=kv.keys, values=kv.values) for given, kv in pairs)


for _name, _fields, _summary in (
    ("e2vpt", {}, "prompts beside the tokens, and key-value prompts inside the attention"),
    ("kv", {"prompts": None}, "key-value prompts alone"),
):
    METHODS.register(_name, Preset(method=E2VPT, fields=_fields, summary=_summary))
