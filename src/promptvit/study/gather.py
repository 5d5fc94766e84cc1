"""What can be known of a task on a backbone in a minute: a look at the images, without training anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promptvit.analysis.extractor import Extractor, read_features
from promptvit.analysis.feature_stats import BUNDLED, FeatureStats, pretraining_stats
from promptvit.analysis.probes import linear_classifier, settled
from promptvit.analysis.shift import GROUPS, shift
from promptvit.backbones.base import Backbone
from promptvit.backbones.load import load_source
from promptvit.backbones.source import BackboneSource
from promptvit.counting import count, outline
from promptvit.data.config import DataConfig
from promptvit.data.load import load_split, load_task
from promptvit.data.task import Task
from promptvit.errors import ConfigError, DataError
from promptvit.methods import METHODS as REGISTERED
from promptvit.study.advise import METHODS, Advice, Budget, Probe, Situation, Size, advise_on
from promptvit.study.calibration import Record
from promptvit.study.facts import BackboneFacts, Choice, Kind, Similarity, disparity, pretraining

LOOK = 1000
"""Training images that are looked at."""
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Where images begin to be unlike the pretraining images, in one feature space at one number of images.

    - `fingerprint`: of the space. `images`: on each side. `low`, `high`: of the excess; below `low` images are similar,
      above `high` dissimilar. `origin`: what it was fitted on.
    """

    fingerprint: str
    images: int
    low: float
    high: float
    origin: str


VIT_PICO = "5697fcc6a5408a205f37d2eece221f165d5ae2cad8d9212284d5d6832bc84c46"
"""The feature space of the bundled backbone of that name."""
BETWEEN = "between natural and medical tasks of mini-vtab: a heuristic of four tasks"
THRESHOLDS = tuple(
    Threshold(
        fingerprint=VIT_PICO,
        images=images,
        low=0.4 if images < 100 else 0.5,
        high=0.7 if images < 100 else 1.0,
        origin=BETWEEN,
    )
    for images in (40, 160, 800)
)
"""Of `vit_pico`, at three sizes. Of `vit_pico_mae` there are none: a natural task lies as far as a medical one."""


def advise(
    data: DataConfig | str,
    backbone: BackboneSource | str = "vit_pico",
    *,
    kind: Kind = "auto",
    budget: Budget | None = None,
    own: Sequence[Record] = (),
    reference: FeatureStats | None = None,
    look: int = LOOK,
) -> Advice:
    """Prompts, full fine-tuning, LoRA-class or linear for the task in `data` on `backbone`: see `Advice`.

    - `kind`: what labels mean; `auto` goes by the names of the classes.
    - `budget`: what a task may cost.
    - `own`: what the user's own studies have shown (`read_records`).
    - `reference`, `look`: see `gather`.

    Trains nothing but a linear probe. Raises DataError and BackboneError as loading does.
    """
    data = DataConfig(source=data) if isinstance(data, str) else data
    source = BackboneSource(name=backbone) if isinstance(backbone, str) else backbone
    return advise_on(gather(data, source, kind=kind, reference=reference, look=look), budget, own)


def gather(
    data: DataConfig,
    source: BackboneSource,
    *,
    kind: Kind = "auto",
    reference: FeatureStats | None = None,
    thresholds: Sequence[Threshold] = THRESHOLDS,
    look: int = LOOK,
) -> Situation:
    """What is known of the task in `data` on the backbone of `source`.

    - `kind`: what labels mean; `auto` goes by the names of the classes.
    - `reference`: statistics of the backbone's pretraining images; None takes those of this package, if it has them.
    - `look`: so many training images are read by the backbone, for the shift and a linear probe; 0 reads none, and
      needs no weights.

    Raises DataError and BackboneError as loading does, and for statistics of another space.
    """
    if look and look < 2:
        raise ConfigError(f"look={look}", expected="0, or at least 2 images", where="gather")
    task, skeleton = load_task(data), outline(source)
    known, why = disparity(kind, task.classes)
    seen = _look(task, data, load_source(source), source, reference, thresholds, look) if look else _Seen()
    return Situation(
        task=task.name,
        options=options(data, source),
        images=len(task.train),
        classes=len(task.classes),
        backbone=BackboneFacts(
            name=source.name,
            family=skeleton.info.family,
            pretraining=pretraining(source.name, checkpoint=source.checkpoint, has_weights=source.pretrained),
            parameters=sum(weight.numel() for weight in skeleton.weights().values()),
        ),
        fingerprint=seen.fingerprint,
        kind=kind,
        disparity=known,
        disparity_reason=why,
        similarity=seen.similarity,
        similarity_reason=seen.reason,
        distinct=seen.distinct,
        probe=seen.probe,
        sizes=sizes(skeleton, len(task.classes)),
    )


def options(data: DataConfig, source: BackboneSource) -> tuple[str, ...]:
    """What verbs are told of the data and the backbone: all that is not its default."""
    found = ["--data", data.source, "--backbone", source.name]
    for prefix, config, named in (("data", data, "source"), ("backbone", source, "name")):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name != named and value != field.default:
                found.append(f"--{prefix}.{field.name}={json.dumps(value) if not isinstance(value, str) else value}")
    return tuple(found)


def sizes(skeleton: Backbone, classes: int) -> dict[Choice, Size]:
    """What each way to tune the task trains and saves; ways that the backbone cannot have are left out."""
    found: dict[Choice, Size] = {}
    for choice, name in METHODS.items():
        method = REGISTERED[name].build()
        if not method.refusal(skeleton.info):
            counted = count(skeleton, method, classes)
            found[choice] = Size(parameters=counted.trained, bytes=counted.bytes)
    return found


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a look at the images shows."""

    fingerprint: str = ""
    similarity: Similarity = "unknown"
    reason: str = "images were not looked at"
    distinct: float = 1.0
    probe: Probe | None = None


def _look(
    task: Task,
    data: DataConfig,
    backbone: Backbone,
    source: BackboneSource,
    reference: FeatureStats | None,
    thresholds: Sequence[Threshold],
    look: int,
) -> _Seen:
    extractor = Extractor.of(backbone)
    if reference is not None:
        extractor.space.check(reference.space)
    drawn = np.sort(np.random.default_rng(0).permutation(len(task.train))[:look])
    images = load_split(task.train.select(drawn), extractor.preprocessing, data)
    features, distinct = read_features(extractor, images)
    probe = linear_probe(features, images.labels.numpy())
    share = distinct / len(images)
    known = {"fingerprint": backbone.fingerprint, "distinct": share, "probe": probe}
    if reference is None and source.name not in BUNDLED:
        return _Seen(**known, reason="no statistics of its pretraining images; promptvit data stats makes them")
    if share < 0.5 or len(features) < GROUPS:
        return _Seen(**known, reason=f"{distinct} different images are too few to tell")
    stats = FeatureStats.of(features, name=task.name, space=extractor.space, distinct=distinct)
    similarity, reason = similar(stats, reference or pretraining_stats(source.name), thresholds)
    return _Seen(**known, similarity=similarity, reason=reason)


def similar(stats: FeatureStats, reference: FeatureStats, thresholds: Sequence[Threshold]) -> tuple[Similarity, str]:
    """Whether images are like those of the pretraining, by the interval of their excess, and the figures.

    A threshold of another space or number of images decides nothing.
    """
    try:
        found = shift(stats, reference)
    except DataError as error:  # of another size of image, say: then nothing is known, and that is said
        return "unknown", str(error)
    excess = found.excess
    assert excess.low is not None
    assert excess.high is not None
    figures = f"excess {excess.value:.3f}, {excess.low:.3f} to {excess.high:.3f}, on {found.n} images"
    fitting = [t for t in thresholds if t.fingerprint == found.space.fingerprint and t.images == found.n]
    if not fitting:
        return "unknown", f"{figures}; no threshold for this backbone at this number"
    limit = fitting[0]
    if excess.high < limit.low:
        return "similar", f"{figures}; below {limit.low:.3f}, {limit.origin}"
    if excess.low > limit.high:
        return "dissimilar", f"{figures}; above {limit.high:.3f}, {limit.origin}"
    return "unknown", f"{figures}; between {limit.low:.3f} and {limit.high:.3f}, {limit.origin}"


def linear_probe(features: np.ndarray, labels: np.ndarray) -> Probe | None:
    """The accuracy of a linear probe by cross-validation, with a 95 % interval (Wilson), on the classes that have an
    image for every fold; None if fewer than two have."""
    from scipy.stats import binomtest  # these take a second: only when images are looked at
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    names, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, names[counts >= FOLDS])
    if len(np.unique(labels[kept])) < 2:
        return None
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with settled():
        found = cross_val_predict(linear_classifier(), features[kept], labels[kept], cv=folds)
    right = np.asarray(found) == labels[kept]
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return Probe(accuracy=float(right.mean()), low=float(interval.low), high=float(interval.high))
