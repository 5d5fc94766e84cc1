"""A run's folder: what is written where, each file in one step.

config.yaml     the whole configuration, reusable
metrics.jsonl   a row per epoch
nmi.jsonl       NMI of prompts and patches, a row per epoch, if asked for (promptvit.analysis.nmi)
state/          what a killed run needs to go on: the last whole epoch; prompts and head as they started, and as they
                were after `train.keep_epoch`, for pruning (not of methods that train backbone weights)
delta/          the result (see promptvit.checkpoint)
predictions.json  what it says of each test image (see promptvit.train.predictions), or of each validation image
summary.json    figures, protocol, versions, cost
tb/             TensorBoard, if asked for
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from promptvit.errors import ConfigError, DeltaError
from promptvit.files import is_begun, write_all, write_bytes, write_compact_json, write_json, write_text
from promptvit.methods import METHODS
from promptvit.train.config import RunConfig
from promptvit.train.predictions import Predictions

Row = dict[str, Any]
When = Literal["start", "early"]
"""Before the first step, or after `train.keep_epoch`."""


@dataclass(frozen=True)
class RunFolder:
    """The files of the run in `root`."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.root / "config.yaml"

    @property
    def delta(self) -> Path:
        """The folder of the delta."""
        return self.root / "delta"

    @property
    def summary(self) -> Path:
        """The result; it exists if and only if the run is done."""
        return self.root / "summary.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of event files."""
        return self.root / "tb"

    @property
    def state(self) -> Path:
        """The last whole epoch."""
        return self.root / "state" / "last.pt"

    @property
    def predictions(self) -> Path:
        """What it says of each test or validation image."""
        return self.root / "predictions.json"

    def values(self, when: When) -> Path:
        """Trained values as they were once."""
        return self.root / "state" / f"{when}.safetensors"

    def check(self, config: dict[str, Any], *, resume: bool) -> None:
        """Raise unless the folder is free or, with `resume`, holds a run of the same configuration."""
        if not is_begun(self.config, "a run", resume=resume):
            return
        known = _completed(yaml.safe_load(self.config.read_text()) or {})
        changed = [name for name, values in _completed(_plain(config)).items() if known[name] != values]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} differ from {self.config}",
                expected="the same configuration",
                fix="Resume without changes, or choose another folder",
            )

    def read_config(self) -> RunConfig:
        """The configuration; raises ConfigError if there is none, or a damaged one."""
        if not self.config.is_file():
            raise ConfigError(f"{self.root} has no {self.config.name}", expected="a run's folder")
        try:
            return RunConfig.from_dict(yaml.safe_load(self.config.read_text()) or {})
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.config} is not YAML: {' '.join(str(error).split())}") from None

    def write_config(self, config: dict[str, Any]) -> None:
        """From now on the folder holds a run."""
        if not self.config.exists():
            write_text(self.config, yaml.safe_dump(_plain(config), sort_keys=False))

    def write_state(self, state: dict[str, Any]) -> None:
        """Keep `state` (tensors and plain values) and the metrics in it.

        Metrics first: a row too many is written again by the resumed run, one too few would stay missing.
        """
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in state["rows"])
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_all({self.root / "metrics.jsonl": rows.encode(), self.state: buffer.getvalue()})

    def read_state(self) -> dict[str, Any] | None:
        """The state of the last whole epoch, or None if there is none yet."""
        if not self.state.exists():
            return None
        try:
            return torch.load(self.state, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise DeltaError(f"{self.state} cannot be read: {error}", fix="Remove it to start the run anew") from error

    def write_values(self, when: When, tensors: dict[str, Tensor]) -> None:
        """Keep these trained values."""
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(self.values(when), safetensors.torch.save(content))

    def read_values(self, when: When) -> dict[str, Tensor]:
        """Values that the run has kept; raises DeltaError if it has not, or if the file is damaged."""
        path = self.values(when)
        try:
            return safetensors.torch.load(path.read_bytes())
        except FileNotFoundError:
            raise DeltaError(
                f"{self.root} has kept no values of {when}",
                fix="Train it again"
                + (" with --train.keep_epoch" if when == "early" else "")
                + ", or rewind to others",
            ) from None
        except (OSError, SafetensorError) as error:
            raise DeltaError(f"{path} cannot be read: {error}", fix="Train the run again") from error

    def write_predictions(self, predictions: Predictions) -> None:
        """Keep what the tuned model says of each image."""
        write_compact_json(self.predictions, predictions.to_dict())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """The result; from now on the run is done."""
        write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any]:
        """The result of a run that is done."""
        return json.loads(self.summary.read_text())


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """The same with the default of every field that it lacks: a file may be older than a field."""
    defaults = _plain(RunConfig().to_dict())
    completed = {name: {**values, **(config.get(name) or {})} for name, values in defaults.items()}
    name = completed["method"]["name"]
    if name in METHODS:
        given = {key: value for key, value in completed["method"].items() if key != "name"}
        completed["method"] = {"name": name, **_plain(METHODS[name].build(**given).to_dict())}
    return completed


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Lists in place of tuples, as YAML has them."""
    return json.loads(json.dumps(config))
