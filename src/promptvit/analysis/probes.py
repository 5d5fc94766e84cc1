"""Probes: how much of a task's classes the features at each depth know, before tuning and after.

- `linear`: logistic regression on standardised features (scikit-learn's; C = 0.01, since with 1 it overfits a few
  hundred images).
- `knn`: the majority of the 20 nearest training images under cosine distance, or of all if there are fewer.

Both learn from training images and are right for some share of the validation images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64

from promptvit.analysis.cka import is_constant
from promptvit.analysis.layers import LayerFeatures, Row, SplitLayers, split_layers
from promptvit.backbones.base import Backbone
from promptvit.data.config import DataConfig
from promptvit.data.load import load_split, load_task
from promptvit.errors import DataError
from promptvit.model import TunedModel

NEIGHBOURS, C = 20, 0.01

Moment = Literal["before", "after"]
Probe = Literal["linear", "knn"]
Accuracies = dict[Probe, list[float | None]]
"""The share of validation images that are right, at each depth; None where the row is the same for every image."""
LayerProbes = dict[Moment, dict[Row, Accuracies]]

Rows = Float[np.ndarray, "n D"]
Labels = Int64[np.ndarray, " n"]
OtherRows = Float[np.ndarray, "m D"]
OtherLabels = Int64[np.ndarray, " m"]


def layer_probes(model: TunedModel, pretrained: Backbone, data: DataConfig, images: int = 500) -> LayerProbes:
    """Accuracies at L+1 depths of the pretrained backbone and of the tuned model, on the task in `data`.

    At most `images` training images to learn from, and as many validation images. Raises ConfigError for a backbone
    without rows, and DataError for training images of a single class.
    """
    task = load_task(data)
    train, val = (
        split_layers(model, pretrained, load_split(split, model.preprocessing, data), images)
        for split in (task.train, task.val)
    )
    return probe_layers(train, val)


def probe_layers(train: SplitLayers, val: SplitLayers) -> LayerProbes:
    """The same of features that are known."""
    return {
        "before": _probe(train.before, train.labels, val.before, val.labels),
        "after": _probe(train.after, train.labels, val.after, val.labels),
    }


def _probe(train: LayerFeatures, labels: Labels, val: LayerFeatures, val_labels: OtherLabels) -> dict[Row, Accuracies]:
    def known(row: Row, probe: Probe) -> list[float | None]:
        pairs = zip(train[row], val[row], strict=True)
        return [None if is_constant(one) else PROBES[probe](one, labels, other, val_labels) for one, other in pairs]

    return {row: {"linear": known(row, "linear"), "knn": known(row, "knn")} for row in train}


def linear_probe(rows: Rows, labels: Labels, val_rows: OtherRows, val_labels: OtherLabels) -> float:
    """The share of `val_labels` that logistic regression on `rows` gets right; DataError for a single class."""
    _check_classes(labels)
    with settled():
        return float(linear_classifier().fit(rows, labels).score(val_rows, val_labels))


def linear_classifier() -> Any:
    """Logistic regression on standardised features, as scikit-learn has it."""
    from sklearn.linear_model import LogisticRegression  # takes a second: only when it is needed
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


@contextmanager
def settled() -> Iterator[None]:
    """Without its word that it could go on: by then its accuracy has settled."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def knn_probe(rows: Rows, labels: Labels, val_rows: OtherRows, val_labels: OtherLabels) -> float:
    """The share that the nearest of `rows` get right; DataError for a single class."""
    from sklearn.neighbors import KNeighborsClassifier

    _check_classes(labels)
    neighbours = min(NEIGHBOURS, len(rows))
    classifier = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
    return float(classifier.fit(rows, labels).score(val_rows, val_labels))


def _check_classes(labels: Labels) -> None:
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"{len(labels)} training images of one class",
            expected="at least two classes",
            where="layer probes",
            fix="Take more images",
        )


PROBES = {"linear": linear_probe, "knn": knn_probe}
