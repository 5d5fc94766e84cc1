"""Delta files: what a method trained, the head, and enough to refuse everything that does not fit.

A delta is a folder with two files.

`delta.safetensors`: tensors `delta.*` (the method's), `head.*` (the head's) and, for methods that train backbone
weights, `backbone.*` under the timm model's own names.

`delta.json`:

    format          1; a reader refuses a higher number
    method          {"kind", "config"}: the registered name and the fields of its config
    backbone        {"source", "fingerprint", "info"}: how to load it, SHA-256 of its sizes and weights, its sizes
    preprocessing   size, mean, std, interpolation, geometry, crop_fraction
    classes         names in label order
    sha256          of delta.safetensors
    versions        of promptvit, torch and timm that wrote it

Nothing in a delta is ever unpickled.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from promptvit.backbones.base import Backbone
from promptvit.backbones.load import load_source
from promptvit.backbones.source import BackboneSource
from promptvit.delta_files import DESCRIPTION, FORMAT, TENSORS, check_digest, read_description, read_tensors
from promptvit.errors import DeltaError
from promptvit.files import digest, json_bytes, write_all
from promptvit.methods import METHODS
from promptvit.model import TunedModel, assemble, class_names
from promptvit.preprocessing import Preprocessing


def save(model: TunedModel, folder: str | Path) -> Path:
    """Write the delta of `model` into `folder`, each file in one step; raises OutputError."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.trained_tensors().items()}
    content = safetensors.torch.save(tensors)
    backbone = model.backbone
    description = {
        "format": FORMAT,
        "method": {"kind": model.method.kind, "config": model.method.to_dict()},
        "backbone": {
            "source": dataclasses.asdict(backbone.source),
            "fingerprint": backbone.fingerprint,
            "info": dataclasses.asdict(backbone.info),
        },
        "preprocessing": model.preprocessing.to_dict(),
        "classes": list(model.classes),
        "sha256": digest(content),
        "versions": {name: version(name) for name in ("promptvit", "torch", "timm")},
    }
    write_all({folder / TENSORS: content, folder / DESCRIPTION: json_bytes(description)})
    return folder


def load(folder: str | Path, *, backbone: Backbone | None = None) -> TunedModel:
    """The tuned model of a delta, in eval mode, on `backbone` or on the one that its description names.

    Raises DeltaError if the files are damaged, of a later format, or made for another backbone.
    """
    folder = Path(folder)
    description = read_description(folder)
    try:
        source = BackboneSource.from_dict(description["backbone"]["source"])
        expected = description["backbone"]["fingerprint"]
        method = METHODS[description["method"]["kind"]].method.from_dict(description["method"]["config"])
        classes, sha256 = class_names(description["classes"]), description["sha256"]
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(f"{folder / DESCRIPTION} is not a delta description: {error}") from error
    backbone = backbone or _load_backbone(source, folder)
    if backbone.fingerprint != expected:
        raise DeltaError(
            f"the backbone {backbone.source.name or type(backbone.model).__name__!r} has fingerprint "
            f"{backbone.fingerprint[:12]}",
            expected=f"{source.name or 'the one it was trained on'} with {expected[:12]}",
            where=str(folder),
            fix="Prompts work only on the weights they were trained with; load those",
        )
    model = assemble(backbone, method, classes)
    model.preprocessing = preprocessing
    _assign(model, folder, sha256)
    return model.eval()


def load_named_backbone(folder: str | Path) -> Backbone:
    """The backbone that the delta in `folder` was trained on, loaded by its name; raises DeltaError if it has none."""
    folder = Path(folder)
    try:
        source = BackboneSource.from_dict(read_description(folder)["backbone"]["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(f"{folder / DESCRIPTION} is not a delta description: {error}") from error
    return _load_backbone(source, folder)


def _load_backbone(source: BackboneSource, folder: Path) -> Backbone:
    if not source.name:
        raise DeltaError(
            f"{folder} was trained on a model made in the program, which has no name to load it by",
            fix="Hand it over: load(folder, backbone=from_timm(model))",
        )
    return load_source(source)


def _assign(model: TunedModel, folder: Path, sha256: str | None) -> None:
    """Copy the file's tensors into `model`, all of them or none."""
    tensors, found = read_tensors(folder)
    targets = model.trained_tensors()
    problems = mismatches(targets, tensors)
    if problems:
        raise DeltaError(
            "; ".join(problems), where=str(folder / TENSORS), fix="The file belongs to another method or task"
        )
    check_digest(folder, found, sha256)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def mismatches(targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """What keeps `tensors` from taking the place of `targets`: other names, other shapes."""
    problems = [f"tensor {name} is missing" for name in targets if name not in tensors]
    problems += [f"tensor {name} is not one of this method's" for name in tensors if name not in targets]
    problems += [
        f"tensor {name} has shape {list(tensors[name].shape)}, expected {list(target.shape)}"
        for name, target in targets.items()
        if name in tensors and tensors[name].shape != target.shape
    ]
    return problems
