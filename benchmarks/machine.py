"""What a figure was measured on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import timm
import torch

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


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    """The commit of this checkout, or `none`."""
    return git("rev-parse", "--verify", "HEAD") or "none"


def changed() -> bool:
    """Whether the checkout differs from its commit."""
    return bool(git("status", "--porcelain"))


def git(*arguments: str) -> str:
    """What git answers in this checkout; nothing if it cannot."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
