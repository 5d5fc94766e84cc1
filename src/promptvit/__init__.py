"""promptvit: visual prompt tuning. The public names; each is imported on first use, so that `--help` is quick."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptvit.analysis.attention import attention_rollout, prompt_attention
    from promptvit.analysis.attribution import grad_cam, integrated_gradients
    from promptvit.analysis.cka import linear_cka
    from promptvit.analysis.cost import estimate_cost
    from promptvit.analysis.curves import overfitting
    from promptvit.analysis.faithfulness import deletion_insertion
    from promptvit.analysis.feature_stats import FeatureStats
    from promptvit.analysis.probes import layer_probes
    from promptvit.analysis.shift import frechet_distance, kernel_distance, shift
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
    from promptvit.study.advise import Advice, Budget
    from promptvit.study.gather import advise
    from promptvit.train.config import RunConfig, TrainConfig
    from promptvit.train.loop import fit

_HOMES = {
    "Adapter": "methods.adapter",
    "Add": "methods.add",
    "Advice": "study.advise",
    "advise": "study.gather",
    "attention_rollout": "analysis.attention",
    "Backbone": "backbones.base",
    "backbone_names": "backbones.load",
    "Bias": "methods.bias",
    "BlockInput": "backbones.base",
    "Budget": "study.advise",
    "Cls": "methods.cls",
    "DataConfig": "data.config",
    "deletion_insertion": "analysis.faithfulness",
    "E2VPT": "methods.e2vpt",
    "Ensemble": "ensemble",
    "estimate_cost": "analysis.cost",
    "FeatureStats": "analysis.feature_stats",
    "fit": "train.loop",
    "frechet_distance": "analysis.shift",
    "from_timm": "backbones.load",
    "Full": "methods.full",
    "grad_cam": "analysis.attribution",
    "integrated_gradients": "analysis.attribution",
    "kernel_distance": "analysis.shift",
    "KeyValue": "methods.e2vpt",
    "layer_probes": "analysis.probes",
    "Linear": "methods.linear",
    "linear_cka": "analysis.cka",
    "load": "checkpoint",
    "load_backbone": "backbones.load",
    "load_ensemble": "ensemble",
    "load_peft": "peft_folder",
    "load_task": "data.load",
    "LoRA": "methods.lora",
    "Masks": "methods.masks",
    "MLP": "methods.mlp",
    "overfitting": "analysis.curves",
    "Partial": "methods.partial",
    "Pixel": "methods.pixel",
    "Prediction": "model",
    "prompt_attention": "analysis.attention",
    "PromptvitError": "errors",
    "prune": "pruning.scores",
    "prune_run": "pruning.search",
    "PruneConfig": "pruning.config",
    "RunConfig": "train.config",
    "save_peft": "peft_folder",
    "score_prompts": "pruning.scores",
    "Scores": "pruning.scores",
    "shift": "analysis.shift",
    "Side": "methods.side",
    "SPT": "methods.spt",
    "TrainConfig": "train.config",
    "tune": "model",
    "TunedModel": "model",
    "VPT": "methods.vpt",
}

__version__ = version("promptvit")
__all__ = [
    "E2VPT",
    "MLP",
    "SPT",
    "VPT",
    "Adapter",
    "Add",
    "Advice",
    "Backbone",
    "Bias",
    "BlockInput",
    "Budget",
    "Cls",
    "DataConfig",
    "Ensemble",
    "FeatureStats",
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
    "advise",
    "attention_rollout",
    "backbone_names",
    "deletion_insertion",
    "estimate_cost",
    "fit",
    "frechet_distance",
    "from_timm",
    "grad_cam",
    "integrated_gradients",
    "kernel_distance",
    "layer_probes",
    "linear_cka",
    "load",
    "load_backbone",
    "load_ensemble",
    "load_peft",
    "load_task",
    "overfitting",
    "prompt_attention",
    "prune",
    "prune_run",
    "save_peft",
    "score_prompts",
    "shift",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptvit' has no attribute {name!r}")
    return getattr(import_module(f"promptvit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
