"""What a figure was made with: the commit, the machine and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("promptvit", "torch", "timm", "accelerate")


@cache
def origin() -> dict[str, Any]:
    """Plain values."""
    return {
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def commit() -> str:
    """Of the checkout that this file is in, followed by `+` if the checkout differs from it; empty outside one.

    An installed package may lie in the checkout of another project, which does not track it.
    """
    if not git("ls-files", "--error-unmatch", Path(__file__).name):
        return ""
    found = git("rev-parse", "--verify", "HEAD")
    return found + ("+" if found and git("status", "--porcelain", "--untracked-files=no") else "")


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git(*arguments: str) -> str:
    """What git answers about the checkout that this file is in; nothing if there is none."""
    try:
        command = ["git", *arguments]
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return answer.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
