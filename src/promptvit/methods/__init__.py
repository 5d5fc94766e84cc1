"""One file per method: what is trained, and what each block gets beside the tokens."""

from promptvit.methods import full, linear, vpt  # each registers its names
from promptvit.methods.base import METHODS

__all__ = ["METHODS", "full", "linear", "vpt"]
