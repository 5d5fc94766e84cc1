"""What a finished run has left in its folder, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptvit.analysis.curves import trained_in
from promptvit.delta_files import read_description
from promptvit.errors import ConfigError, DataError, DeltaError
from promptvit.files import read_json
from promptvit.train.predictions import Predictions

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRecord:
    """The files of a run; some may be missing in one that an older version made.

    - `rows`: an epoch each; those of the chosen training if the run was pruned, none if that was not trained again.
    - `nmi`: rows of `nmi.jsonl`. `predictions`: None if the run has kept none.
    """

    folder: Path
    summary: dict[str, Any]
    rows: list[Row]
    nmi: list[Row]
    predictions: Predictions | None

    @property
    def classes(self) -> list[str]:
        """Their names."""
        return self.summary["task"]["classes"]

    @property
    def split(self) -> str:
        """Whose accuracy counts: test, or val where there are no test images."""
        return "val" if self.summary["result"]["test"] is None else "test"

    @property
    def metrics(self) -> dict[str, Any]:
        """Of that split."""
        return self.summary["result"][self.split]


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`; raises ConfigError if there is none that is done, DataError for a damaged file."""
    path = folder / "summary.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds neither a run that is done nor a study",
            expected="a folder with summary.json or results.json",
            where="report",
            fix=f"Finish it: promptvit train --config {folder}/config.yaml --out {folder} --resume"
            if (folder / "config.yaml").is_file()
            else "",
        )
    summary = read_json(path)
    return RunRecord(
        folder=folder,
        summary=summary,
        rows=_rows(trained_in(folder, summary) / "metrics.jsonl"),
        nmi=_rows(folder / "nmi.jsonl"),
        predictions=_predictions(folder / "predictions.json", len(summary["task"]["classes"])),
    )


def delta_digest(folder: Path) -> str | None:
    """The SHA-256 of the delta that the run in `folder` has now; None without a readable one."""
    try:
        return read_description(folder / "delta").get("sha256")
    except DeltaError:
        return None


def _rows(path: Path) -> list[Row]:
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", expected="a line of JSON for each epoch") from None


def _predictions(path: Path, classes: int) -> Predictions | None:
    if not path.is_file():
        return None
    predictions = Predictions.from_dict(read_json(path))
    if not all(0 <= label < classes for label in (*predictions.labels, *predictions.predicted)):
        raise DataError(
            f"{path} names classes that the run has not", fix="promptvit evaluate RUN --keep writes it anew"
        )
    return predictions
