"""One run from configuration to result: data, model, epochs, evaluation, files."""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch.utils.data import DataLoader

from promptvit.backbones.load import load_source
from promptvit.checkpoint import TENSORS
from promptvit.data.dataset import ImageDataset
from promptvit.data.load import load_split, load_task
from promptvit.data.loader import make_loader
from promptvit.data.task import Split
from promptvit.data.transforms import augment, normalise
from promptvit.errors import ConfigError, DeltaError, TrainingError
from promptvit.methods import METHODS
from promptvit.methods.base import Method
from promptvit.model import TunedModel, assemble, class_names
from promptvit.train.config import RunConfig
from promptvit.train.device import make_accelerator
from promptvit.train.evaluate import Metrics, evaluate
from promptvit.train.folder import Row, RunFolder, When
from promptvit.train.optim import learning_rate, make_loss, make_optimizer, schedule_factor, set_learning_rate
from promptvit.train.samples import TrainingSamples

CHECK_EVERY = 25
"""Steps between two looks at the losses: each look waits for the device."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told how a run goes on.

    `read` (split, images read so far, images in all), `begin` (updates in all, and already done), `step`,
    `epoch` (its row), `watch` (epochs done, the run itself): before the first step, and after every epoch before the
    epoch is on disk. So an epoch that a killed run repeats is told twice, and none is left out.
    """

    read: Callable[[str, int, int], None] = lambda split, done, total: None
    begin: Callable[[int, int], None] = lambda total, done: None
    step: Callable[[], None] = lambda: None
    epoch: Callable[[Row], None] = lambda row: None
    watch: Callable[[int, Run], None] = lambda epoch, run: None


def fit(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    command: str = "",
    start: Callable[[TunedModel], None] | None = None,
    test: bool = True,
) -> dict[str, Any]:
    """Train as `config` says, into `folder`; returns what `summary.json` holds.

    Validation after every epoch, the test split once at the end, with the last epoch's weights. A run that was
    killed goes on from its last whole epoch with `resume` and gives the same numbers; a finished one is only read.
    `start` sets the first values of prompts and head in place of the method; hand it over to a resumed run too. Without
    `test` the test images are left alone. Raises PromptvitError of every kind.
    """
    method = make_method(config)
    config = dataclasses.replace(config, method={"name": method.kind, **method.to_dict()})
    run_folder = RunFolder(Path(folder))
    run_folder.check(config.to_dict(), resume=resume)
    if not run_folder.summary.exists():
        try:
            with closing(Run(config, method, run_folder, listener or Listener(), start, test)) as run:
                run.take_up()
                for epoch in range(len(run.rows), config.train.epochs):
                    run.train_epoch(epoch)
                run.finish(command)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory at batch_size={config.train.batch_size}: {str(error).splitlines()[0]}",
                fix="Try a smaller --train.batch_size with --train.accumulate, or --train.checkpointing true",
            ) from error
    return run_folder.read_summary()


def make_method(config: RunConfig) -> Method:
    """The method that `config.method` names, with its fields."""
    return METHODS[config.method["name"]].build(**{k: v for k, v in config.method.items() if k != "name"})


class Run:
    """A run in progress: what is trained, its data, and the rows of the epochs done."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        folder: RunFolder,
        listener: Listener,
        start: Callable[[TunedModel], None] | None = None,
        test: bool = True,
    ) -> None:
        self.config, self.folder, self.listener = config, folder, listener
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        settings = config.train
        self.accelerator = make_accelerator(settings)
        self.task = load_task(config.data)
        backbone = load_source(config.backbone)
        backbone.set_checkpointing(settings.checkpointing)
        torch.manual_seed(settings.seed)
        geometry = config.data.geometry or backbone.preprocessing.geometry
        self.preprocessing = dataclasses.replace(backbone.preprocessing, geometry=geometry)
        self.images: dict[str, int] = {}
        if method.needs_samples:
            backbone.to(self.accelerator.device)
        classes = class_names(self.task.classes)
        self.model = assemble(backbone, method, classes, settings.head)
        if not folder.state.exists():  # else values come from there
            if start is not None:
                start(self.model)
            else:
                samples = self._samples(method) if method.needs_samples else None
                method.start(self.model.delta, self.model.backbone, samples, len(classes))
        self.model.preprocessing = self.preprocessing
        self.backbone_parameters = sum(weight.numel() for weight in backbone.weights().values())
        self._check_batch_norms()
        self.loader = self._loader(self.train_set, shuffle=True)
        self.val_loader = self._loader(self._dataset("val", self.task.val))
        # Read here, evaluated at the end: a broken test image is to stop a run before it starts.
        test_split = self.task.test if test else None
        self.test_loader = None if test_split is None else self._loader(self._dataset("test", test_split))
        self.loss = make_loss(settings, self.train_set.labels, len(self.task.classes)).to(self.accelerator.device)
        self.optimizer = make_optimizer(self.model, settings)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.updates_per_epoch = math.ceil(len(self.loader) / settings.accumulate)
        self.updates = self.updates_per_epoch * settings.epochs
        self.warmup = min(round(settings.warmup_epochs * self.updates_per_epoch), self.updates // 2)
        self.writer = _tensorboard_writer() if settings.tensorboard else None
        self.tensorboard: Any = None

    @cached_property
    def train_set(self) -> ImageDataset:
        """Read when it is first needed: a method that the backbone cannot have is refused before."""
        return self._dataset("train", self.task.train)

    def _samples(self, method: Method) -> TrainingSamples:
        """The training images that `method` starts from."""
        settings, augmentation = self.config.train, self.config.data.augment
        if method.augments_samples and augmentation == "none":
            raise ConfigError(
                "augment=True with data.augment=none: training images are not augmented",
                expected="data.augment, or augment=False",
                where=type(method).__name__,
            )
        return TrainingSamples(
            self.train_set,
            self.preprocessing,
            device=self.accelerator.device,
            batch_size=settings.batch_size,
            augmentation=augmentation if method.augments_samples else "none",
            seed=settings.seed,
        )

    def _check_batch_norms(self) -> None:
        """Raise ConfigError for settings that batch norms cannot have if they are trained."""
        settings = self.config.train
        if not self.model.trained - self.model.backbone.weights().keys():
            return
        problems = {
            "checkpointing=True: blocks run twice, and norms would count each batch twice": settings.checkpointing,
            f"batch_size={settings.batch_size}: the last of {len(self.train_set)} training images is alone in a batch, "
            "and one image has no statistics": len(self.train_set) % settings.batch_size == 1 % settings.batch_size,
        }
        ConfigError.collect([reason for reason, holds in problems.items() if holds], "a method that trains batch norms")

    def _dataset(self, name: str, split: Split) -> ImageDataset:
        def progress(done: int) -> None:
            self.listener.read(name, done, len(split))

        dataset = load_split(split, self.preprocessing, self.config.data, progress)
        self.skipped += [f"{error.path}: {error.reason}" for error in dataset.skipped]
        self.images[name] = len(dataset)
        return dataset

    def _loader(self, dataset: ImageDataset, shuffle: bool = False) -> DataLoader:
        settings, workers = self.config.train, self.config.data.workers
        loader = make_loader(
            dataset, batch_size=settings.batch_size, shuffle=shuffle, seed=settings.seed, workers=workers
        )
        return self.accelerator.prepare(loader)

    def take_up(self) -> None:
        """Go on where an earlier process stopped, if there was one; from now on the folder holds a run."""
        state = self.folder.read_state()
        if state is not None:
            if state.get("fingerprint") != self.model.backbone.fingerprint:
                raise DeltaError(
                    f"{self.folder.root} was begun on other weights of {self.config.backbone.name}",
                    expected=f"fingerprint {str(state.get('fingerprint'))[:12]}",
                    where="resume",
                    fix="Bring them back, or start anew with another --out",
                )
            with torch.no_grad():
                for name, tensor in self.model.trained_tensors().items():
                    tensor.copy_(state["tensors"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.rows = state["rows"]
        self.listener.begin(self.updates, len(self.rows) * self.updates_per_epoch)
        if not self.rows:
            self.listener.watch(0, self)  # it may refuse the run: nothing is written yet
        if self.accelerator.is_main_process:
            self.folder.write_config(self.config.to_dict())
            if not self.rows:
                self._keep_values("start")
        if self.writer is not None:
            self.tensorboard = self.writer(str(self.folder.tensorboard))

    def train_epoch(self, epoch: int) -> None:
        """One pass over the training images, validation, and the state on disk."""
        started = time.perf_counter()
        # All chance of an epoch comes from its number, so a resumed run needs no random state.
        seed = _seed(self.config.train.seed, epoch, self.accelerator.process_index)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.loader.set_epoch(epoch)  # type: ignore[attr-defined]  # accelerate's loaders have it
        self.wrapped.train()
        losses, sums, images = [], torch.zeros(2, device=self.accelerator.device), 0
        for step, (pixels, labels) in enumerate(self.loader):
            loss, correct = self._step(epoch, step, pixels, labels, generator)
            losses.append(loss)
            sums += torch.stack([loss * len(labels), correct.to(loss.dtype)])
            images += len(labels)
            self.listener.step()
            if len(losses) % CHECK_EVERY == 0:
                self._check_finite(epoch, losses)
        self._check_finite(epoch, losses)
        self._share_statistics()
        metrics = evaluate(self.model, self.val_loader, self.accelerator)
        if not math.isfinite(metrics.loss):  # the last update may be the one that broke it
            raise self._not_finite(metrics.loss, epoch, len(losses) - 1)
        shares = self.accelerator.reduce(sums / images, reduction="mean")
        train_loss, train_top1 = torch.as_tensor(shares).tolist()
        row = {
            "epoch": epoch + 1,
            "learning_rate": self._rate(epoch, len(self.loader) - 1),
            "train_loss": train_loss,
            "train_top1": train_top1,
            "val_loss": metrics.loss,
            "val_top1": metrics.top1,
            "seconds": time.perf_counter() - started,
        }
        self.rows.append(row)
        self.listener.watch(epoch + 1, self)
        self._keep(row)

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """The running statistics of the first process for all: each has counted its own last batch."""
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                buffer.copy_(broadcast(buffer.clone()))

    def _step(
        self, epoch: int, step: int, pixels: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One batch; returns its loss and its number of right predictions, both still on the device."""
        settings = self.config.train
        if self.config.data.augment != "none":
            pixels = augment(pixels, self.config.data.augment, self.preprocessing, generator)
        set_learning_rate(self.optimizer, self._rate(epoch, step))
        with self.accelerator.accumulate(self.wrapped):
            with self.accelerator.autocast():
                logits = self.wrapped(normalise(pixels, self.preprocessing))
            loss = self.loss(logits.float(), labels)
            self.accelerator.backward(loss)
            if settings.clip_norm is not None and self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def _rate(self, epoch: int, step: int) -> float:
        update = epoch * self.updates_per_epoch + step // self.config.train.accumulate
        peak = learning_rate(self.model, self.config.train)
        return peak * schedule_factor(update, self.updates, self.warmup, self.config.train)

    def _check_finite(self, epoch: int, losses: list[torch.Tensor]) -> None:
        recent = losses[-CHECK_EVERY:]
        broken = torch.stack(recent).isfinite().logical_not().nonzero()
        if len(broken):
            step = len(losses) - len(recent) + int(broken[0])
            raise self._not_finite(losses[step].item(), epoch, step)

    def _not_finite(self, loss: float, epoch: int, step: int) -> TrainingError:
        return TrainingError(
            f"the loss is {loss} at epoch {epoch + 1}, step {step + 1}, learning rate {self._rate(epoch, step):.3g}",
            fix="Try a tenth of the learning rate (--train.learning_rate), a longer warm-up, --train.clip_norm 1, or "
            "bf16 or fp32 in place of fp16. The epochs before this one are kept",
        )

    def _keep_values(self, when: When) -> None:
        """For pruning, which leaves methods that train weights of the backbone alone."""
        if not self.model.trained:
            self.folder.write_values(when, self.model.trained_tensors())

    def _keep(self, row: Row) -> None:
        if self.accelerator.is_main_process:
            if row["epoch"] == self.config.train.keep_epoch:
                self._keep_values("early")
            scaler = self.accelerator.scaler
            self.folder.write_state(
                {
                    "tensors": self.model.trained_tensors(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "rows": self.rows,
                    "fingerprint": self.model.backbone.fingerprint,
                }
            )
        if self.tensorboard is not None:
            for name, value in row.items():
                self.tensorboard.add_scalar(name, value, row["epoch"])
        self.listener.epoch(row)

    def finish(self, command: str) -> None:
        """Evaluate the last epoch's weights on validation and test, and write delta and summary."""
        val = evaluate(self.model, self.val_loader, self.accelerator)
        test = None if self.test_loader is None else evaluate(self.model, self.test_loader, self.accelerator)
        if self.accelerator.is_main_process:
            self.model.save(self.folder.delta)
            self.folder.write_summary(self._summary(val, test, command))
        self.accelerator.wait_for_everyone()

    def _summary(self, val: Metrics, test: Metrics | None, command: str) -> dict[str, Any]:
        backbone = self.model.backbone
        trained = self.model.trained_parameters()
        return {
            "result": {"val": val.to_dict(), "test": None if test is None else test.to_dict()},
            "train_loss": self.rows[-1]["train_loss"],
            "task": {"name": self.task.name, "classes": list(self.task.classes), "images": self.images},
            "method": {"name": self.model.method.kind, **self.model.method.to_dict()},
            "backbone": {
                "name": backbone.source.name,
                "fingerprint": backbone.fingerprint,
                "parameters": self.backbone_parameters,
            },
            "protocol": {
                "selection": "last epoch",
                "test": "evaluated once, after the last epoch",
                "train_on": self.config.data.train_on,
                "learning_rate": learning_rate(self.model, self.config.train),
                "preprocessing": self.preprocessing.to_dict(),
            },
            "config": self.config.to_dict(),
            "skipped_images": list(dict.fromkeys(self.skipped)),
            "cost": {
                "trained_parameters": trained,
                "trained_percent": 100 * trained / self.model.total_parameters(),
                "delta_bytes": (self.folder.delta / TENSORS).stat().st_size,
                "seconds": sum(row["seconds"] for row in self.rows),
                "peak_memory_bytes": _peak_memory(self.accelerator.device),
            },
            "machine": {
                "device": str(self.accelerator.device),
                "processor": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "processes": self.accelerator.num_processes,
            },
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("promptvit", "torch", "timm", "accelerate")},
            },
            "command": command,
        }

    def close(self) -> None:
        """Let go of writers and of the accelerator."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        self.accelerator.free_memory()


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _tensorboard_writer() -> type:
    """The class whose objects write event files."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard=True: the package is not installed", where="TrainConfig", fix="pip install 'promptvit[track]'"
        ) from None
    return SummaryWriter


def _peak_memory(device: torch.device) -> int | None:
    """Bytes: what CUDA handed out at most, else the process's largest resident size, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
