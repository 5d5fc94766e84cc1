"""What a figure was measured on and with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import timm
import torch

from promptvit.search.origin import git, processor

ROOT = Path(__file__).parents[1]


def machine(device: torch.device, threads: int) -> dict[str, object]:
    """Processor, device, precision and versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": threads,
        "precision": str(torch.get_default_dtype()).removeprefix("torch."),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit of this checkout, or `none`."""
    return git("rev-parse", "--verify", "HEAD") or "none"


def changed() -> bool:
    """Whether the checkout differs from its commit."""
    return bool(git("status", "--porcelain"))
