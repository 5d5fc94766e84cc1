"""Run folders, as the verbs take them: a run, or the delta in it."""

from __future__ import annotations

from pathlib import Path

import yaml

from promptvit.errors import ConfigError, DeltaError
from promptvit.train.config import RunConfig


def delta_folder(folder: Path) -> Path:
    """The folder of the delta in a run's folder, or `folder` itself if it is one."""
    for candidate in (folder / "delta", folder):
        if (candidate / "delta.json").is_file():
            return candidate
    unfinished = (folder / "config.yaml").is_file()
    raise DeltaError(
        f"{folder} holds no delta",
        expected="a run's folder, or one with delta.json",
        fix=f"The run is not done: promptvit train --config {folder}/config.yaml --out {folder} --resume"
        if unfinished
        else "Train one: promptvit train --help",
    )


def run_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no config.yaml", expected="a run's folder", fix="Or name the images with --data"
        )
    try:
        return RunConfig.from_dict(yaml.safe_load(path.read_text()) or {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}", where="run folder") from None
