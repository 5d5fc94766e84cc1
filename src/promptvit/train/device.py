"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from promptvit.errors import ConfigError
from promptvit.train.config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the device, the precision and the processes; raises ConfigError for a missing device."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise _no_device("cuda", "no CUDA device is visible")
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise _no_device("mps", "this is no Mac with a GPU")
    AcceleratorState._reset_state(reset_partial_state=True)  # another run of this process may have had other settings
    try:
        return Accelerator(
            cpu=config.device == "cpu",
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            gradient_accumulation_steps=config.accumulate,
        )
    except ValueError as error:  # a precision that the device lacks
        raise ConfigError(f"precision={config.precision}: {error}", where="TrainConfig", fix="Use fp32") from error


def seed_all(seed: int, device: torch.device) -> None:
    """`torch.manual_seed`, of the CPU alone where nothing else computes: with a CUDA build on a machine without a GPU,
    torch notes every call for the others down for later, with its stack."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _no_device(name: str, reason: str) -> ConfigError:
    return ConfigError(f"device={name}: {reason}", expected="auto or cpu here", where="TrainConfig")
