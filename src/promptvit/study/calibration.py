"""What a user's own studies have shown: tasks tuned in several ways, in a file that makes later advice better.

A line of JSON for each task, backbone and size. Files are merged by what their lines are about; the later one wins.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from promptvit.errors import DataError
from promptvit.files import write_text
from promptvit.study.facts import Choice, Disparity, Similarity
from promptvit.study.rules import sigmoid

FORMAT = 1
PRIOR_DEVIATION = 1.5
"""Of the offset of one's own backbone, in logits: three of them lead from one end of all advice to the other."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A task that was tuned in several ways on one backbone.

    - `fingerprint`: of the backbone. `images`: training images; `classes`: of the task.
    - `disparity`, `similarity`: as the advice knew them. `logit`: of the published evidence that prompts win.
    - `accuracies`: method to mean test accuracy in percent, over `seeds`. `protocol`: its name.
    - `origin`: commit, machine and versions. `study`: its name.
    """

    task: str
    backbone: str
    fingerprint: str
    images: int
    classes: int
    disparity: Disparity
    similarity: Similarity
    logit: float
    accuracies: Mapping[Choice, float]
    seeds: tuple[int, ...]
    protocol: str
    study: str = ""
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """What it is about."""
        return self.task, self.fingerprint, self.images, self.classes, self.protocol

    @property
    def gap(self) -> float:
        """Prompts minus full fine-tuning, in points."""
        return self.accuracies["prompts"] - self.accuracies["full"]

    @property
    def winner(self) -> Choice:
        """The best way; of equals the first in the order of the file."""
        return max(self.accuracies, key=lambda way: self.accuracies[way])


def read_records(path: str | Path) -> tuple[Record, ...]:
    """The records of a file; raises DataError with the line that is none."""
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            records.append(_record(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}, line {number}: {error}", expected="a record of a calibration file", where="calibration"
            ) from None
    return tuple(records)


def _record(line: bytes) -> Record:
    values = json.loads(line)
    if values.pop("format") != FORMAT:
        raise ValueError("another format")
    record = Record(**{**values, "seeds": tuple(values["seeds"])})
    if not {"prompts", "full"} <= record.accuracies.keys():
        raise ValueError("no accuracy of prompts or of full")
    unknown = record.accuracies.keys() - set(get_args(Choice))
    if unknown:
        raise ValueError(f"accuracies of {', '.join(sorted(unknown))}")
    if not all(math.isfinite(value) for value in (record.logit, *record.accuracies.values())):
        raise ValueError("a logit or an accuracy that is not finite")
    if min(record.images, record.classes) < 1:
        raise ValueError(f"{record.images} images of {record.classes} classes")
    return record


def merged(*files: Iterable[Record]) -> tuple[Record, ...]:
    """All records, each once; of two about the same the later."""
    return tuple({record.key: record for records in files for record in records}.values())


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """The whole file in one step."""
    lines = [json.dumps({"format": FORMAT, **dataclasses.asdict(record)}, ensure_ascii=False) for record in records]
    write_text(Path(path), "".join(f"{line}\n" for line in lines))


def offset(records: Iterable[Record]) -> float:
    """What to add to the published logit of a backbone, by its `records`: the most probable offset with a normal prior
    around zero (Platt's calibration with one parameter). No records give 0; ties count as half."""
    known = [(record.logit, 0.5 if record.gap == 0 else float(record.gap > 0)) for record in records]
    found = 0.0
    for _ in range(50):  # Newton's method on a concave function
        shares = np.array([sigmoid(logit + found) for logit, _ in known])
        slope = sum(won - share for (_, won), share in zip(known, shares, strict=True)) - found / PRIOR_DEVIATION**2
        step = slope / (float((shares * (1 - shares)).sum()) + 1 / PRIOR_DEVIATION**2)
        found += step
        if abs(step) < 1e-12:
            break
    return found
