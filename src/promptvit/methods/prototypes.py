"""Class prototypes: what the CLS row of each class is on average, at every depth of a frozen backbone."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from promptvit.backbones.base import TokenBackbone
from promptvit.backbones.walk import walk
from promptvit.errors import DataError
from promptvit.methods.samples import Samples
from promptvit.shapes import Images


@torch.no_grad()
def class_means(backbone: TokenBackbone, samples: Samples, classes: int) -> Float64[Tensor, "depths C D"]:
    """The mean CLS row of every class at L+1 depths: as it enters the first block and after each block, no norm.

    One pass over `samples`, in memory that does not grow with their number; on the CPU. Raises DataError for a label
    outside of 0 to C-1, and for a class without images.
    """
    sums = torch.zeros(backbone.info.depth + 1, classes, backbone.info.width, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.int64)
    for images, numbers in samples.batches():
        labels = samples.labels[numbers]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise DataError(
                f"labels from {labels.min()} to {labels.max()}", expected=f"0 to {classes - 1}", where="samples"
            )
        counts += torch.bincount(labels, minlength=classes)
        sums.index_add_(1, labels, cls_rows(backbone, images.to(next(backbone.parameters()))).cpu().double())
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise DataError(
            f"no image of class {', '.join(map(str, missing[:5]))}{', ...' if len(missing) > 5 else ''}",
            expected="at least one of every class",
            where="samples",
        )
    return sums / counts[:, None]


def cls_rows(backbone: TokenBackbone, images: Images) -> Float[Tensor, "depths B D"]:
    """The CLS row of each image at L+1 depths: as it enters the first block, and after each block."""
    rows = [at.image[:, 0].clone() for at in walk(backbone, images)]  # a view would keep all other rows alive
    return torch.stack(rows)
