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
    from promptvit.ensemble import Ensemble, load_ensemble
    from promptvit.errors import PromptvitError
    from promptvit.methods.adapter import Adapter
    from promptvit.methods.add import Add
    from promptvit.methods.bias import Bias
    from promptvit.methods.cls import Cls
    from promptvit.methods.e2vpt import E2VPT, KeyValue
    from promptvit.methods.full import Full
    from promptvit.methods.linear import Linear
    from promptvit.methods.lora import LoRA
    from promptvit.methods.masks import Masks
    from promptvit.methods.mlp import MLP
    from promptvit.methods.partial import Partial
    from promptvit.methods.pixel import Pixel
    from promptvit.methods.side import Side
    from promptvit.methods.spt import SPT
    from promptvit.methods.vpt import VPT
    from promptvit.model import Prediction, TunedModel, tune
    from promptvit.peft_folder import load_peft, save_peft
    from promptvit.pruning.config import PruneConfig
    from promptvit.pruning.scores import Scores, prune, score_prompts
    from promptvit.pruning.search import prune_run
    from promptvit.train.config import RunConfig, TrainConfig
    from promptvit.train.loop import fit

_HOMES = {
    "Adapter": "methods.adapter",
    "Add": "methods.add",
    "Backbone": "backbones.base",
    "Bias": "methods.bias",
    "BlockInput": "backbones.base",
    "Cls": "methods.cls",
    "DataConfig": "data.config",
    "E2VPT": "methods.e2vpt",
    "Ensemble": "ensemble",
    "Full": "methods.full",
    "KeyValue": "methods.e2vpt",
    "Linear": "methods.linear",
    "LoRA": "methods.lora",
    "MLP": "methods.mlp",
    "Masks": "methods.masks",
    "Partial": "methods.partial",
    "Pixel": "methods.pixel",
    "Prediction": "model",
    "PromptvitError": "errors",
    "PruneConfig": "pruning.config",
    "RunConfig": "train.config",
    "Scores": "pruning.scores",
    "Side": "methods.side",
    "SPT": "methods.spt",
    "TrainConfig": "train.config",
    "TunedModel": "model",
    "VPT": "methods.vpt",
    "backbone_names": "backbones.load",
    "fit": "train.loop",
    "from_timm": "backbones.load",
    "load": "checkpoint",
    "load_backbone": "backbones.load",
    "load_ensemble": "ensemble",
    "load_peft": "peft_folder",
    "load_task": "data.load",
    "prune": "pruning.scores",
    "prune_run": "pruning.search",
    "save_peft": "peft_folder",
    "score_prompts": "pruning.scores",
    "tune": "model",
}

__version__ = version("promptvit")
__all__ = [
    "E2VPT",
    "MLP",
    "SPT",
    "VPT",
    "Adapter",
    "Add",
    "Backbone",
    "Bias",
    "BlockInput",
    "Cls",
    "DataConfig",
    "Ensemble",
    "Full",
    "KeyValue",
    "Linear",
    "LoRA",
    "Masks",
    "Partial",
    "Pixel",
    "Prediction",
    "PromptvitError",
    "PruneConfig",
    "RunConfig",
    "Scores",
    "Side",
    "TrainConfig",
    "TunedModel",
    "backbone_names",
    "fit",
    "from_timm",
    "load",
    "load_backbone",
    "load_ensemble",
    "load_peft",
    "load_task",
    "prune",
    "prune_run",
    "save_peft",
    "score_prompts",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptvit' has no attribute {name!r}")
    return getattr(import_module(f"promptvit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
