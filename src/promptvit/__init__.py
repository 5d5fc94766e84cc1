"""promptvit: visual prompt tuning. The public names; each is imported on first use, so that `--help` is quick."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptvit.backbones.base import Backbone, BlockInput
    from promptvit.backbones.load import backbone_names, from_timm, load_backbone
    from promptvit.checkpoint import load
    from promptvit.data.config import DataConfig
    from promptvit.data.load import load_task
    from promptvit.errors import PromptvitError
    from promptvit.methods.full import Full
    from promptvit.methods.linear import Linear
    from promptvit.methods.vpt import VPT
    from promptvit.model import Prediction, TunedModel, tune
    from promptvit.train.config import RunConfig, TrainConfig
    from promptvit.train.loop import fit

_HOMES = {
    "Backbone": "backbones.base",
    "BlockInput": "backbones.base",
    "DataConfig": "data.config",
    "Full": "methods.full",
    "Linear": "methods.linear",
    "Prediction": "model",
    "PromptvitError": "errors",
    "RunConfig": "train.config",
    "TrainConfig": "train.config",
    "TunedModel": "model",
    "VPT": "methods.vpt",
    "backbone_names": "backbones.load",
    "fit": "train.loop",
    "from_timm": "backbones.load",
    "load": "checkpoint",
    "load_backbone": "backbones.load",
    "load_task": "data.load",
    "tune": "model",
}

__version__ = version("promptvit")
__all__ = [
    "VPT",
    "Backbone",
    "BlockInput",
    "DataConfig",
    "Full",
    "Linear",
    "Prediction",
    "PromptvitError",
    "RunConfig",
    "TrainConfig",
    "TunedModel",
    "backbone_names",
    "fit",
    "from_timm",
    "load",
    "load_backbone",
    "load_task",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptvit' has no attribute {name!r}")
    return getattr(import_module(f"promptvit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
