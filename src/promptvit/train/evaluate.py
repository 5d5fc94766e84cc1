"""Exact evaluation: every image of a split once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor, nn

from promptvit.data.config import DataConfig
from promptvit.data.load import load_split, load_task
from promptvit.data.loader import Loader, make_loader
from promptvit.data.task import Split
from promptvit.data.transforms import normalise
from promptvit.errors import DataError
from promptvit.model import Classifier
from promptvit.shapes import Labels, Logits
from promptvit.train.config import TrainConfig
from promptvit.train.device import make_accelerator


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How good predictions are; fractions in [0, 1].

    - `loss`: mean cross-entropy. `top1`, `top5`: share of images whose class is the first, or among the first five.
    - `balanced`: mean over classes of `per_class`, the share of a class's images that are right (None: no images).
    - `auroc`: area under the ROC curve, two classes only; None if a class has no images.
    """

    images: int
    loss: float
    top1: float
    top5: float
    balanced: float
    per_class: tuple[float | None, ...]
    auroc: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def evaluate_task(model: Classifier, data: DataConfig, split: Literal["val", "test"], config: TrainConfig) -> Metrics:
    """The metrics of `model` on a split of the task in `data`; see `predict_task`."""
    logits, labels, _ = predict_task(model, data, split, config)
    return measure(logits, labels)


def predict_task(
    model: Classifier, data: DataConfig, split: Literal["val", "test"], config: TrainConfig
) -> tuple[Logits, Labels, Split]:
    """The logits [n, C] of `model` on a split of the task in `data`, the labels [n], and the images that were read.

    On the device and in the batches of `config`. Raises DataError if the classes are not the model's, or if there is no
    such split.
    """
    task = load_task(data)
    if task.classes != model.classes:
        raise DataError(
            f"{task.name} has the classes {_some(task.classes)}",
            expected=f"those of the model: {_some(model.classes)}",
            where="evaluate",
        )
    images = task.val if split == "val" else task.test
    if images is None:
        raise DataError(f"{task.name} has no {split} split", where="evaluate", fix="Evaluate the val split")
    accelerator = make_accelerator(config)
    dataset = load_split(images, model.preprocessing, data)
    loader = make_loader(dataset, batch_size=config.batch_size, shuffle=False, seed=config.seed, workers=data.workers)
    return *predict(model.to(accelerator.device), accelerator.prepare(loader), accelerator), dataset.split


def evaluate(model: Classifier, loader: Loader, accelerator: Accelerator) -> Metrics:
    """The metrics of `model` on a prepared `loader`; the model's mode is as before afterwards."""
    return measure(*predict(model, loader, accelerator))


@torch.no_grad()
def predict(model: Classifier, loader: Loader, accelerator: Accelerator) -> tuple[Logits, Labels]:
    """The logits [n, C] of `model` on a prepared `loader`, and the labels [n], on the CPU and in the loader's order.

    The model's mode is as before afterwards.
    """
    was_training = model.training
    folded = model.fold()
    predictions = _collect(lambda pixels: folded(normalise(pixels, model.preprocessing)), loader, accelerator)
    model.train(was_training)
    return predictions


@torch.no_grad()
def predict_features(head: nn.Module, loader: Loader, accelerator: Accelerator) -> tuple[Logits, Labels]:
    """`predict` for a `loader` of features in place of images."""
    was_training = head.training
    predictions = _collect(head.eval(), loader, accelerator)
    head.train(was_training)
    return predictions


def _collect(forward: Callable[[Tensor], Tensor], loader: Loader, accelerator: Accelerator) -> tuple[Logits, Labels]:
    """What `forward` makes of all batches, and their labels."""
    all_logits, all_labels = [], []
    for batch, labels in loader:
        with accelerator.autocast():
            logits = forward(batch)
        logits, labels = accelerator.gather_for_metrics((logits.float(), labels))
        all_logits.append(logits.cpu())
        all_labels.append(labels.cpu())
    return torch.cat(all_logits), torch.cat(all_labels)


def measure(logits: Logits, labels: Labels) -> Metrics:
    """The metrics of `logits` [B, C] against `labels` [B]."""
    classes = logits.shape[1]
    loss, top1 = loss_and_top1(logits, labels)
    hits = first_classes(logits) == labels[:, None]  # [B, 5]
    correct = hits[:, 0].double()
    totals = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels, weights=correct, minlength=classes)
    per_class = tuple((r / n).item() if n else None for r, n in zip(right, totals, strict=True))
    present = [share for share in per_class if share is not None]
    return Metrics(
        images=len(labels),
        loss=loss,
        top1=top1,
        top5=hits.any(dim=1).double().mean().item(),
        balanced=sum(present) / len(present),
        per_class=per_class,
        auroc=_auroc(logits, labels) if classes == 2 and len(present) == 2 and logits.isfinite().all() else None,
    )


def loss_and_top1(logits: Logits, labels: Labels) -> tuple[float, float]:
    """The first two of the metrics of `measure`."""
    right = first_classes(logits)[:, 0] == labels
    return F.cross_entropy(logits.double(), labels).item(), right.double().mean().item()


def first_classes(logits: Logits) -> Int64[Tensor, "B first"]:
    """The five classes with the largest `logits` [B, C], or all if there are fewer; the first is the predicted one."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def _auroc(logits: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import roc_auc_score  # takes seconds to import, and most tasks have more classes

    return float(roc_auc_score(labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy()))


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
