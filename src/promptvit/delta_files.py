"""The two files of a delta and how they are read; `promptvit.checkpoint` says what is in them. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from promptvit.errors import DeltaError
from promptvit.files import digest

FORMAT = 1
TENSORS, DESCRIPTION = "delta.safetensors", "delta.json"


def read_description(folder: Path) -> dict[str, Any]:
    """What `delta.json` says; raises DeltaError if there is none, or of a later format."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise DeltaError(
            f"{path} does not exist", expected=f"a folder with {TENSORS} and {DESCRIPTION}", where="load"
        ) from None
    except (OSError, ValueError) as error:
        raise DeltaError(f"{path} cannot be read: {error}", fix="Copy or train the delta again") from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise DeltaError(f"{path} has no format number", expected="a delta description", where="load")
    if description["format"] > FORMAT:
        raise DeltaError(
            f"{path} has format {description['format']}", expected=f"at most {FORMAT}", fix="Update promptvit"
        )
    return description


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of `delta.safetensors`, and its SHA-256; raises DeltaError if there is none or it is damaged."""
    path = folder / TENSORS
    try:
        content = path.read_bytes()
        return safetensors.torch.load(content), digest(content)
    except FileNotFoundError:
        raise DeltaError(f"{path} does not exist", fix="Copy the whole folder") from None
    except (OSError, SafetensorError) as error:
        raise DeltaError(
            f"{path} is truncated or not a safetensors file: {error}", fix="Copy or train the delta again"
        ) from error


def check_digest(folder: Path, found: str, described: str | None) -> None:
    """Raise DeltaError if the tensors are not the ones that the description was written for."""
    if found != described:
        raise DeltaError(
            f"{folder / TENSORS} is not the file that {DESCRIPTION} describes (SHA-256 differs)",
            fix="Copy both files of one delta",
        )
