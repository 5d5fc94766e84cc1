"""Features of a task's images as points in the plane: how classes lie before tuning, and after.

Distances between features are cosine distances. A picture keeps neighbours at best, and no distances: what it suggests
is to be held against `separation`, which is measured on the features themselves.

- `tsne`: t-SNE of scikit-learn.
- `umap`: UMAP of umap-learn (extra `analysis`).
- `poincare`: UMAP whose output lies on the hyperboloid, drawn in the Poincaré disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64

from promptvit.analysis.config import Embedding
from promptvit.analysis.finite import check_finite
from promptvit.analysis.images import batches, choose
from promptvit.backbones.base import Backbone
from promptvit.data.config import DataConfig
from promptvit.data.load import load_split, load_task
from promptvit.errors import ConfigError, DataError
from promptvit.model import TunedModel
from promptvit.shapes import Features, Images

FEWEST = 5
"""Images that a picture has at least."""
PERPLEXITY, NEIGHBOURS = 30, 15
"""How many neighbours t-SNE and UMAP look at, unless there are too few images."""

Rows = Float[np.ndarray, "n D"]
Points = Float[np.ndarray, "n 2"]


@dataclass(frozen=True, kw_only=True)
class TaskFeatures:
    """Features of the same images `before` tuning, `after` tuning, their `labels` and the names of all `classes`."""

    before: Rows
    after: Rows
    labels: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]


def task_features(model: TunedModel, pretrained: Backbone, data: DataConfig, images: int = 500) -> TaskFeatures:
    """Features of at most `images` validation images of the task in `data`, the same ones each time.

    `pretrained`: the backbone that `model` was tuned on. Alone, without prompts, it gives the features `before`, read
    as the method reads it (by its own readout if the method reads prompts). The mode of `model` is restored. Raises
    ConfigError for the backbone of a tuned model, and DataError for features that are not finite.
    """
    if pretrained.of_task:
        raise ConfigError("the backbone of a tuned model", expected="the pretrained one", where="task_features")
    task = load_task(data)
    pixels, labels = choose(load_split(task.val, model.preprocessing, data), images, "task_features")
    readout = "own" if model.method.readout == "prompt" else model.method.readout
    was_training = model.training
    model.eval()
    try:
        before, after = (
            _read(read, batches(pixels, model.preprocessing, model.device), moment)
            for moment, read in (("before", lambda images: pretrained(images, (), readout)), ("after", model.features))
        )
    finally:
        model.train(was_training)
    return TaskFeatures(before=before, after=after, labels=labels.numpy(), classes=task.classes)


@torch.no_grad()
def _read(read: Callable[[Images], Features], parts: Iterable[Images], moment: str) -> Rows:
    features = torch.cat([read(images).cpu().double() for images in parts]).numpy()
    check_finite(features, f"{moment} tuning")
    return features


def separation(features: Rows, labels: Int64[np.ndarray, " n"]) -> float | None:
    """Silhouette score of the classes under cosine distance, in [-1, 1]: 1 for classes that are points far from one
    another, 0 for classes that overlap, below 0 where the images of other classes are nearer than those of one's own.

    None for images of a single class, or no two of one. Source: Rousseeuw (1987), the mean over all images.
    """
    from sklearn.metrics import silhouette_score  # takes a second: only when it is needed

    if not 1 < len(np.unique(labels)) < len(labels):
        return None
    return float(silhouette_score(features, labels, metric="cosine"))


def embed(features: Rows, kind: Embedding = "tsne", seed: int = 0) -> Points:
    """A point for each row of `features`, the same for the same seed; inside the unit disk for `poincare`.

    All kinds start from principal components, and t-SNE draws nothing: the seed is UMAP's. Raises DataError for fewer
    than five images or features that are all equal; ConfigError for a seed that is none, or without umap-learn.
    """
    if len(features) < FEWEST:
        raise DataError(f"{len(features)} images", expected=f"at least {FEWEST}", where="embedding")
    if (features == features[0]).all():
        raise DataError("all images have the same features", expected="different ones", where="embedding")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}", expected="0 to 2**32 - 1", where="embedding")
    if kind == "tsne":
        return _tsne(features, seed)
    if kind == "umap":
        return _umap(features, seed, "euclidean")
    return to_disk(centred(_umap(features, seed, "hyperboloid")))


def _tsne(features: Rows, seed: int) -> Points:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    with threadpool_limits(1):  # threads add up in no fixed order
        return (
            TSNE(perplexity=perplexity, metric="cosine", random_state=seed).fit_transform(features).astype(np.float64)
        )


def _umap(features: Rows, seed: int, geometry: Literal["euclidean", "hyperboloid"]) -> Points:
    """Starts from principal components: a spectral start fails where classes are far apart."""
    layout = require_umap().UMAP(
        n_neighbors=min(NEIGHBOURS, len(features) - 1),
        metric="cosine",
        output_metric=geometry,
        init="pca",
        disconnection_distance=np.inf,
        random_state=seed,
        n_jobs=1,
    )
    threads = torch.get_num_threads()
    try:
        return layout.fit_transform(features).astype(np.float64)
    finally:
        torch.set_num_threads(threads)  # numba sets what the two have in common


def require_umap() -> ModuleType:
    """The package, which is slow to import; raises ConfigError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)  # nobody asked for it
            return import_module("umap")
    except ImportError:
        raise ConfigError(
            "umap and poincare need umap-learn", where="embedding", fix="pip install 'promptvit[analysis]'"
        ) from None


def centred(points: Points) -> Points:
    """Points of the hyperboloid z = sqrt(1 + x² + y²), given as (x, y), with their centroid moved to (0, 0).

    UMAP leaves them anywhere, and the disk shows well what is in its middle. The move is a Lorentz boost, so hyperbolic
    distances stay. Source: the centroid of Law et al. (ICML 2019), the mean in space brought back to the hyperboloid.
    """
    z = _height(points)
    mean, height = points.mean(axis=0), z.mean()
    centroid = mean / np.sqrt(height**2 - (mean**2).sum())  # [2]
    return points + centroid * ((points @ centroid)[:, None] / (1 + _height(centroid[None])) - z)


def to_disk(points: Points) -> Points:
    """Points of the hyperboloid, given as (x, y), in the Poincaré disk: (x, y) / (1 + z), inside the unit circle."""
    return points / (1 + _height(points))


def _height(points: Points) -> Float[np.ndarray, "n 1"]:
    return np.sqrt(1 + (points**2).sum(axis=1, keepdims=True))
