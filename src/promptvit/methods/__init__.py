"""One file per method: what is trained, and what each block gets beside the tokens."""

from promptvit.methods import (
    adapter,
    add,
    bias,
    cls,
    e2vpt,
    full,
    linear,
    lora,
    mlp,
    partial,
    pixel,
    side,
    spt,
    vpt,
)  # each registers its names
from promptvit.methods.base import METHODS

__all__ = [
    "METHODS",
    "adapter",
    "add",
    "bias",
    "cls",
    "e2vpt",
    "full",
    "linear",
    "lora",
    "mlp",
    "partial",
    "pixel",
    "side",
    "spt",
    "vpt",
]
