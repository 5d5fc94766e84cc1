"""PEFT adapter folders: a LoRA task as `peft.PeftModel.from_pretrained` reads it, and back.

`adapter_config.json` says which layers, rank and scale; `adapter_model.safetensors` holds `lora_A` and `lora_B` of each
layer, and the head under the name that it has in the timm model. They do not say how images are prepared, what the
classes are called, or which weights the adapter was trained on: the user has to know.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from promptvit.backbones.base import Backbone
from promptvit.checkpoint import mismatches
from promptvit.errors import ConfigError, DeltaError
from promptvit.files import json_bytes, write_all
from promptvit.methods.lora import LoRA, require_peft
from promptvit.model import TunedModel, tune

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, ADAPTER = "base_model.model.", ".default"
DONE = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save"}
"""What is in our files and read from theirs."""
HARMLESS = {
    *("peft_version", "base_model_name_or_path", "revision", "auto_mapping", "task_type", "inference_mode"),
    *("exclude_modules", "layers_to_transform", "layers_pattern"),  # which layers: the tensors tell
}
"""Entries that change nothing of what an adapter computes."""
STARTS = (True, False, "gaussian")
"""Ways to start that leave the backbone's weights alone."""


def save_peft(model: TunedModel, folder: str | Path) -> Path:
    """Write the LoRA task `model` into `folder` for PEFT; raises ConfigError for another method, and OutputError.

    To be loaded onto the same timm model made with as many classes as the task has.
    """
    method, folder = model.method, Path(folder)
    if not isinstance(method, LoRA):
        raise ConfigError(
            f"a task tuned with {type(method).__name__}", expected="one tuned with LoRA", where="save_peft"
        )
    classifier = classifier_name(model.backbone)
    tensors = {
        _their_name(name, classifier): tensor.detach().cpu().contiguous()
        for name, tensor in model.trained_tensors().items()
    }
    config = {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "target_modules": _layers(tensors),
        "modules_to_save": [classifier],
        "base_model_name_or_path": model.backbone.source.name or None,
        "inference_mode": True,
    }
    write_all({folder / TENSORS: safetensors.torch.save(tensors), folder / CONFIG: json_bytes(config)})
    return folder


def load_peft(folder: str | Path, backbone: Backbone, classes: int | Sequence[str]) -> TunedModel:
    """The tuned model, in eval mode, of an adapter that PEFT trained on the timm model of `backbone`.

    Its head is the one that PEFT kept (`modules_to_save`); a folder without one gives an untrained head. Raises
    DeltaError for files that are damaged, do not fit the backbone or `classes`, or hold what LoRA here cannot do.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    theirs = _read_tensors(folder / TENSORS)
    model = tune(backbone, _method(config, _layers(theirs), backbone), classes)
    classifier = classifier_name(backbone)
    names = {_their_name(name, classifier): name for name in model.trained_tensors()}
    tensors = {names.get(name, name): tensor for name, tensor in theirs.items()}
    targets = model.trained_tensors()
    if not any(name.startswith("head.") for name in tensors):
        targets = {name: tensor for name, tensor in targets.items() if not name.startswith("head.")}
    problems = mismatches(targets, tensors)
    if problems:
        raise DeltaError(
            "; ".join(problems), where=str(folder / TENSORS), fix="The adapter belongs to another backbone or task"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    return model.eval()


def classifier_name(backbone: Backbone) -> str:
    """What timm calls the head of this model: `head`, `head.fc`, `fc`; raises ConfigError if it has two."""
    classifier = cast(Any, backbone.model).get_classifier()
    if not isinstance(classifier, nn.Module):
        raise ConfigError(
            f"{type(backbone.model).__name__} has more than one head", expected="one", where="adapter folder"
        )
    return next(name for name, module in backbone.model.named_modules() if module is classifier)


def _their_name(name: str, classifier: str) -> str:
    part, _, rest = name.partition(".")
    return PREFIX + (f"{classifier}.{rest}" if part == "head" else rest.replace(f"{ADAPTER}.", "."))


def _layers(tensors: dict[str, Tensor]) -> list[str]:
    """The layers that have an update in a file of PEFT."""
    ends = [name.removeprefix(PREFIX).partition(".lora_A.") for name in tensors]
    return sorted(layer for layer, found, _ in ends if found)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DeltaError(f"{path} cannot be read: {error}", expected="a folder that PEFT wrote") from error
    missing = DONE - set(config if isinstance(config, dict) else ())
    if missing:
        raise DeltaError(f"{path} lacks {', '.join(sorted(missing))}", expected="an adapter that PEFT wrote")
    if config["peft_type"] != "LORA":
        raise DeltaError(f"{path} is of type {config['peft_type']}", expected="LORA", where="load_peft")
    plain = require_peft().LoraConfig().to_dict()
    usual = {name: (None, False, [], {}, value) for name, value in plain.items()} | {"init_lora_weights": STARTS}
    other = {name: value for name, value in config.items() if name not in DONE | HARMLESS}
    problems = [f"{name}={value!r}" for name, value in other.items() if value not in usual.get(name, (None, False))]
    if problems:
        raise DeltaError(
            f"{path} has {', '.join(problems)}", expected="plain LoRA; nothing else is done here", where="load_peft"
        )
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DeltaError(
            f"{path} cannot be read: {error}",
            expected="a safetensors file",
            fix="PEFT writes one with save_pretrained; a pickled adapter_model.bin is not read",
        ) from error


def _method(config: dict[str, Any], layers: list[str], backbone: Backbone) -> LoRA:
    """With targets for the layers that the file has, by the ends of their names if these tell the same."""
    method = LoRA(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(config["lora_dropout"]),
        targets=sorted({layer.rpartition(".")[2] for layer in layers}),
    )
    same = set(method.layers(backbone)) == set(layers)
    return method if same else dataclasses.replace(method, targets=layers)
