"""Handwritten digits that come with scikit-learn: a real task that needs no download."""

from __future__ import annotations

import numpy as np

from promptvit.data.task import Split, Task, stratified_holdout

SPLIT_SEED = 0  # part of the task's definition: changing it changes every reported number


def read_digits() -> Task:
    """1,797 digits of 8x8 pixels, 60% train, 20% val and 20% test, the same in every run.

    Source: UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), CC BY 4.0.
    """
    from sklearn.datasets import load_digits  # takes a second: only when it is needed

    grey, labels = load_digits(return_X_y=True)  # [n, 64] in 0..16
    pixels = np.round(grey.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    everything = Split(images=np.repeat(pixels, 3, axis=3), labels=np.asarray(labels, dtype=np.int64))
    rest, test = stratified_holdout(everything, 0.2, SPLIT_SEED)
    train, val = stratified_holdout(rest, 0.25, SPLIT_SEED)
    return Task(name="digits", classes=tuple("0123456789"), train=train, val=val, test=test)
