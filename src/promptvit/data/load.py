"""From a configuration to a task: picks the reader for the source."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from promptvit.data.catalog import BENCHMARKS
from promptvit.data.collection import open_collection, task_folders
from promptvit.data.config import DataConfig
from promptvit.data.dataset import ImageDataset, Progress
from promptvit.data.digits import read_digits
from promptvit.data.folder import read_folder
from promptvit.data.lists import has_lists, read_lists
from promptvit.data.sources import is_foreign, local_folder
from promptvit.data.task import Split, Task, few_shots, stratified_share
from promptvit.errors import DataError
from promptvit.preprocessing import Preprocessing
from promptvit.registry import nearest

BUILT_IN = {"digits": read_digits}


def load_task(config: DataConfig) -> Task:
    """The task of `config.source`, always with a val split; without test images, `test` is None.

    With `train_on="train+val"` the training split holds the validation images as well. The val split stays
    as it is, so its accuracy is then training accuracy. `train_share` is a share of all that; `images` and `shots` make
    both splits smaller before. Raises DataError on a source that cannot be used.
    """
    task = _smaller(_read(config), config)
    train = task.train.join(task.val) if config.train_on == "train+val" else task.train
    if config.train_share < 1:
        train = stratified_share(train, config.train_share, config.seed)
    return dataclasses.replace(task, train=train)


def _smaller(task: Task, config: DataConfig) -> Task:
    """The task with as many training and validation images as `config` says; test images stay."""
    if config.shots is not None:
        train, val = (few_shots(split, config.shots, config.seed) for split in (task.train, task.val))
        return dataclasses.replace(task, train=train, val=val)
    if config.images is None:
        return task
    there = len(task.train) + len(task.val)
    if not 2 * len(task.classes) <= config.images <= there:
        raise DataError(
            f"images={config.images} of {task.name}, which has {there} to train on and validate by",
            expected=f"{2 * len(task.classes)} (two for each class) to {there}",
            where="DataConfig",
        )
    share = config.images / there
    train, val = (stratified_share(split, share, config.seed) for split in (task.train, task.val))
    return dataclasses.replace(task, train=train, val=val)


def load_tasks(source: str) -> tuple[str, tuple[Task, ...]]:
    """What `source` is called, and its tasks: one, as `load_task` reads it, or all of a collection."""
    root = Path(source).expanduser()
    if source in BENCHMARKS or (root.is_dir() and task_folders(root) not in ([], [root])):
        found = open_collection(source)
        return found.name, tuple(read_lists(task.folder) for task in found.tasks)
    task = load_task(DataConfig(source=source))
    return task.name, (task,)


def load_split(
    split: Split, preprocessing: Preprocessing, config: DataConfig, progress: Progress | None = None
) -> ImageDataset:
    """The images of `split`, read as `config` says; see `ImageDataset`."""
    cache_bytes = int(config.cache_gib * 2**30)
    return ImageDataset(split, preprocessing, broken=config.broken, cache_bytes=cache_bytes, progress=progress)


def _read(config: DataConfig) -> Task:
    if config.source in BUILT_IN:
        return BUILT_IN[config.source]()
    root = local_folder(config.source) if is_foreign(config.source) else Path(config.source).expanduser()
    if not root.is_dir():
        raise _unknown_source(config.source)
    _refuse_many_tasks(root)
    reader = read_lists if has_lists(root) else read_folder
    return reader(root, validation_fraction=config.validation_fraction, seed=config.seed)


def _refuse_many_tasks(root: Path) -> None:
    """Raise DataError on a folder of tasks, which would pass for an image folder with a class per task."""
    tasks = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and has_lists(folder))
    if tasks:
        raise DataError(
            f"{root} holds {len(tasks)} tasks: {', '.join(tasks)}",
            expected="the folder of one",
            fix=f"Give {root / tasks[0]}, for example",
        )


def _unknown_source(source: str) -> DataError:
    meant = nearest(source, BUILT_IN)
    return DataError(
        f"data source {source!r} is neither built in nor a folder",
        expected=f"{', '.join(BUILT_IN)}, a folder with CLASS/IMAGE, one with train/CLASS/IMAGE (val/ and "
        "test/ beside it), one with the lists train800.txt, val200.txt, test.txt (or train.txt and so on), "
        "hf:NAME or webdataset:PATTERN",
        fix=f"Did you mean {meant[0]}?" if meant else "Check the path",
    )
