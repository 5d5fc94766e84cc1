"""Maps of what a run's answers rest on, in its report: what `analyze attribution` left in its folder."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptvit.analysis.config import ATTRIBUTION
from promptvit.files import write_compact_json
from promptvit.report.markup import Child, Markup, isolated, join, tag
from promptvit.report.numbers import percent
from promptvit.report.record import delta_digest

FORMAT = 1
KINDS = {"grad-cam": "Grad-CAM", "rollout": "Attention rollout", "integrated-gradients": "Integrated gradients"}
BETTER = {"deletion": "lower", "insertion": "higher"}


@dataclass(frozen=True, kw_only=True)
class MapsOf:
    """What one run makes of the images that are shown: the classes that it predicts, and its maps over the images, as
    `data:` addresses."""

    run: str
    predicted: Sequence[str]
    pictures: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class KeptMaps:
    """Maps of some of a run's images, as files keep them.

    - `delta`: its SHA-256. `kind`: of the maps. `source`: the name of the data; `images`: how many of its validation
      images were looked at, `accuracy`: the share that is right.
    - `scores`: deletion and insertion against random maps, if they were asked for.
    - `labels`, `pictures`: the classes and `data:` addresses of the images that are shown; `runs`: what this run makes
      of them, and perhaps one beside it, which then answers otherwise.
    """

    delta: str
    kind: str
    source: str
    images: int
    accuracy: float
    scores: Mapping[str, Mapping[str, float]]
    labels: Sequence[str]
    pictures: Sequence[str]
    runs: Sequence[MapsOf]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Into the folder of the run; raises OutputError."""
        write_compact_json(folder / ATTRIBUTION, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> KeptMaps | None:
        """None if there are none, or of another delta than the run has now."""
        try:
            values: dict[str, Any] = json.loads((folder / ATTRIBUTION).read_bytes())
            kept = cls(**{**values, "runs": [MapsOf(**each) for each in values["runs"]]})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return kept if kept.format == FORMAT and kept.is_whole and kept.delta == delta_digest(folder) else None

    @property
    def is_whole(self) -> bool:
        """Whether every image that is shown has all that is said of it."""
        lists = [self.pictures, *(part for each in self.runs for part in (each.predicted, each.pictures))]
        return bool(self.runs) and all(len(part) == len(self.labels) for part in lists)


def maps(kept: KeptMaps, folder: Path) -> Child:
    """The images, the maps over them, and whether they are evidence."""
    own, *others = kept.runs
    of_two = f", on which {own.run} and {others[0].run} differ" if others else ""
    said = (
        f"{own.run} is right on {percent(kept.accuracy)} of {kept.images:,} validation images of {kept.source}. "
        f"{KINDS.get(kept.kind, kept.kind)} of {len(kept.labels)} of them{of_two}; dark is little, bright is much, "
        "each map by itself."
    )
    items = [_item(kept, place) for place in range(len(kept.labels))]
    return join([tag("p", {}, said), _scores(kept, folder), tag("ol", {"class": "gallery"}, items)])


def _scores(kept: KeptMaps, folder: Path) -> Markup:
    if not kept.scores:
        command = f"promptvit analyze attribution {shlex.quote(str(folder))} --kind {kept.kind} --score"
        hint = ["A map without a score is a suggestion. To have one: ", tag("code", {}, command)]
        return tag("p", {"class": "missing"}, hint)
    lines = [
        f"{name.capitalize()} {score['maps']:.3f}, of random maps {score['random']:.3f} "
        f"({BETTER[name]} is better; p = {score['p']:.2g})"
        for name, score in kept.scores.items()
    ]
    return tag("p", {}, f"Scored on {kept.images:,} images: {'; '.join(lines)}.")


def _item(kept: KeptMaps, place: int) -> Markup:
    label = kept.labels[place]
    parts: list[Child] = [
        tag("img", {"src": kept.pictures[place], "alt": f"image of {label}"}),
        tag("p", {}, isolated(label)),
    ]
    for each in kept.runs:
        predicted = each.predicted[place]
        alt = f"{label} with the map of {each.run}"
        parts.append(tag("img", {"src": each.pictures[place], "alt": alt}))
        told = f"{each.run}: " if len(kept.runs) > 1 else ""
        parts.append(tag("p", {"class": "good" if predicted == label else "bad"}, told, isolated(predicted)))
    return tag("li", {}, parts)
