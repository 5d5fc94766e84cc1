"""Run folders, as the verbs take them: a run, or the delta in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.errors import ConfigError, DeltaError
from promptvit.train.config import RunConfig

if TYPE_CHECKING:
    from promptvit.model import Classifier

OTHERS = "another run of the same task, once for each: the probabilities of all are averaged"
"""Help of `--with`."""


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


def load_runs(folder: str, others: Sequence[str]) -> Classifier:
    """The tuned model of a run, or the ensemble of several."""
    from promptvit.checkpoint import load
    from promptvit.ensemble import load_ensemble

    folders = [delta_folder(Path(each)) for each in (folder, *others)]
    return load_ensemble(folders) if others else load(folders[0])


def run_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`."""
    from promptvit.train.folder import RunFolder  # needs torch

    if not RunFolder(folder).config.is_file():
        raise ConfigError(
            f"{folder} has no config.yaml", expected="a run's folder", fix="Or name the images with --data"
        )
    return RunFolder(folder).read_config()
