"""Whether a study can be run: every row is built and takes one step, on a small backbone and on random images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from promptvit.backbones.base import Backbone
from promptvit.backbones.source import BackboneSource
from promptvit.data.catalog import BENCHMARKS
from promptvit.errors import ConfigError, DataError
from promptvit.methods.base import Method
from promptvit.model import tune
from promptvit.search.keys import run_key
from promptvit.search.plan import CellPlan, StudyPlan, StudyTask
from promptvit.train.config import RunConfig
from promptvit.train.loop import make_method
from promptvit.train.optim import make_optimizer
from promptvit.train.stock import Stock

STAND_INS = {
    "swin*": BackboneSource(name="swin_tiny_patch4_window7_224", pretrained=False),
    "convnext*": BackboneSource(name="convnext_atto", pretrained=False, image_size=64),
    "resnet*": BackboneSource(name="resnet18", pretrained=False, image_size=64),
    "*": BackboneSource(name="vit_pico", pretrained=False),
}
"""Small backbones of the same family, by patterns of names, the first that fits."""
CLASSES = 4


def dry_run(plan: StudyPlan, stock: Stock | None = None) -> list[str]:
    """A line for every row, backbone and protocol; raises ConfigError for a row that cannot be built.

    The data need not be there: of VTAB-1k and FGVC the tasks are known, and any other has those that the plan names,
    or stands for a single one.
    """
    stock, made = stock or Stock(), set()
    return [_line(cell, stock, made) for cell in _kinds(_cells(plan))]


def _cells(plan: StudyPlan) -> list[CellPlan]:
    try:
        return plan.cells()
    except DataError:
        tasks = [task for source in plan.data for task in _known(source, plan.tasks)]
        return [
            CellPlan(study=plan, task=task, backbone=backbone, row=row, protocol=plan.protocol_of(task.group))
            for task, backbone, row in itertools.product(tasks, plan.backbones, plan.rows)
        ]


def _known(source: str, names: tuple[str, ...] | None) -> list[StudyTask]:
    """The tasks called `names`, or all, of a source that is not there; handwritten digits stand in for their images."""
    if source in BENCHMARKS:
        infos = [info for info in BENCHMARKS[source] if names is None or info.name in names]
        return [StudyTask(name=info.name, group=info.group, source="digits") for info in infos]
    return [StudyTask(name=name, group="", source="digits") for name in names or (Path(source).name,)]


def _kinds(cells: Iterable[CellPlan]) -> list[CellPlan]:
    """One cell of each kind: tasks differ in fields of the method alone, of which the first and the last are enough."""
    first: dict[tuple[str, str, str], CellPlan] = {}
    last: dict[tuple[str, str, str], CellPlan] = {}
    for cell in cells:
        kind = (cell.backbone.name, cell.row.label, cell.protocol.name)
        first.setdefault(kind, cell)
        last[kind] = cell
    return list({id(cell): cell for kind in first for cell in (first[kind], last[kind])}.values())


def _line(cell: CellPlan, stock: Stock, made: set[str]) -> str:
    """`made`: the keys of runs that rows above start from; such a run is made once, and this adds its own."""
    points = cell.points()
    configs = [cell.config(point, seed=cell.protocol.search_seed, final=False) for point in points]
    final = cell.config(points[0], seed=cell.protocol.seeds[0], final=True)
    tried = len(points) if len(points) > 1 else 0
    starts = [(seed, True) for seed in cell.protocol.seeds] + ([(cell.protocol.search_seed, False)] if tried else [])
    firsts = [cell.first(seed=seed, final=is_final) for seed, is_final in starts]
    before = {key: first for first in firsts if first is not None and (key := run_key(first)) not in made}
    made.update(before)
    trained = [step(config, cell.backbone.name, stock) for config in (*before.values(), configs[0], final)]
    runs = tried + len(cell.protocol.seeds) + len(before)
    return (
        f"{cell.row.label} on {cell.backbone.name}, {cell.task.name}, protocol {cell.protocol.name}: {runs} runs, "
        f"{trained[-1]:,} parameters trained on the stand-in"
    )


def step(config: RunConfig, backbone: str, stock: Stock) -> int:
    """One update of a small model; how many parameters it trains."""
    source = next(source for pattern, source in STAND_INS.items() if fnmatchcase(backbone, pattern))
    method = _without_downloads(make_method(config))
    torch.manual_seed(config.train.seed)
    small = stock.backbone(dataclasses.replace(source, pool=config.backbone.pool))
    model = tune(small, method, CLASSES, head=config.train.head, samples=Noise(small))
    optimizer = make_optimizer(model, dataclasses.replace(config.train, device="cpu"))
    images = Noise(small).images[:CLASSES]
    labels = torch.arange(CLASSES)
    before = F.cross_entropy(model(images), labels)
    before.backward()
    optimizer.step()
    if not before.isfinite():
        raise ConfigError(f"{config.method['name']}: the loss of the first step is {before.item()}", where="dry run")
    return model.trained_parameters()


def _without_downloads(method: Method) -> Method:
    """The side network of the paper has weights from the Hub."""
    fields = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, weights="random") if method.kind == "side" and "weights" in fields else method


class Noise(Dataset):
    """A few random images at a backbone's input size, with labels; always the same."""

    def __init__(self, backbone: Backbone, count: int = 32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, *backbone.preprocessing.size, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError(index)
        return self.images[index], index % CLASSES
