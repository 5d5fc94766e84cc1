"""What a run is called, wherever it is."""

from __future__ import annotations

import json
from pathlib import Path

from promptvit.files import digest
from promptvit.train.config import RunConfig
from promptvit.train.loop import make_method


def run_key(config: RunConfig) -> str:
    """What a run is, whatever the folders of its data and of runs before it, and the machine: 16 hexadecimal digits.

    Two runs with the same key have the same numbers, to rounding, if their data are the same.
    """
    method = make_method(config)
    values = {**config.to_dict(), "method": {"name": method.kind, **method.to_dict()}}
    for part, name in (("data", "source"), ("backbone", "tuned"), ("train", "head_from")):
        values[part] = {**values[part], name: values[part][name] and Path(values[part][name]).name}
    for part, name in (("train", "device"), ("train", "tensorboard"), ("data", "workers"), ("data", "cache_gib")):
        del values[part][name]
    return digest(json.dumps(values, sort_keys=True).encode())[:16]
