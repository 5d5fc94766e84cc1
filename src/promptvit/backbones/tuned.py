"""A fine-tuned backbone: the weights that a saved method trained, in the backbone that they were trained in."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from promptvit.backbones.base import Backbone
from promptvit.delta_files import DESCRIPTION, check_digest, read_description, read_tensors
from promptvit.errors import DeltaError

PREFIX = "backbone."


def with_tuned_weights(backbone: Backbone, folder: str | Path) -> Backbone:
    """The freshly loaded `backbone`, whose weights change, with those of the delta (or run) in `folder`.

    Prompts and the head of that delta stay behind. Raises DeltaError if the delta is damaged, of another backbone, or
    of a method that trains no weights of the backbone itself.
    """
    folder = Path(folder)
    folder = folder / "delta" if (folder / "delta").is_dir() else folder
    kind, name, fingerprint, sha256 = _described(folder)
    if backbone.fingerprint != fingerprint:
        raise DeltaError(
            f"{folder} was trained on {name or 'a model made in the program'} with fingerprint {fingerprint[:12]}",
            expected=f"{backbone.source.name} with {backbone.fingerprint[:12]}",
            where="tuned",
            fix="Name the backbone as that run did (--backbone.name, checkpoint, image_size, pool)",
        )
    tensors, found = read_tensors(folder)
    check_digest(folder, found, sha256)
    _copy(folder, kind, tensors, backbone.body())
    return type(backbone)(backbone.model, backbone.preprocessing, backbone.source, backbone.fixed)


def _described(folder: Path) -> tuple[str, str, str, str]:
    """Kind of the method, name and fingerprint of its backbone, SHA-256 of the tensors."""
    description = read_description(folder)
    try:
        original = description["backbone"]
        return description["method"]["kind"], original["source"]["name"], original["fingerprint"], description["sha256"]
    except (KeyError, TypeError) as error:
        raise DeltaError(f"{folder / DESCRIPTION} is not a delta description: {error}") from error


def _copy(folder: Path, kind: str, tensors: dict[str, Tensor], body: dict[str, Tensor]) -> None:
    """Put the delta's backbone tensors into `body`, all of them or none."""
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    other = [name for name, tensor in weights.items() if name not in body or body[name].shape != tensor.shape]
    if other or not weights:
        raise DeltaError(
            f"the method {kind!r} of {folder} trained {other[0] if other else 'nothing of the backbone'}",
            expected="weights of the backbone itself, as full, partial and bias train them",
            where="tuned",
            fix="A tuned model that has more than such weights is loaded whole, by promptvit.load",
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            body[name].copy_(tensor)
