"""One run from configuration to result: data, model, epochs, evaluation, files."""

from __future__ import annotations

import dataclasses
import math
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast

from promptvit.checkpoint import TENSORS
from promptvit.data.dataset import FeatureDataset, ImageDataset
from promptvit.data.loader import FeatureLoader, Loader, make_loader
from promptvit.data.task import Split
from promptvit.data.transforms import augment, normalise
from promptvit.errors import ConfigError, DeltaError, TrainingError
from promptvit.methods import METHODS
from promptvit.methods.base import Method
from promptvit.model import TunedModel, assemble, class_names
from promptvit.shapes import Labels, Logits
from promptvit.train.config import RunConfig, Test
from promptvit.train.device import make_accelerator, seed_all
from promptvit.train.evaluate import Metrics, loss_and_top1, measure, predict, predict_features
from promptvit.train.folder import Row, RunFolder, When
from promptvit.train.optim import learning_rate, make_loss, make_optimizer, scheduled_rate, set_learning_rate
from promptvit.train.predictions import Predictions
from promptvit.train.samples import TrainingSamples
from promptvit.train.start import Anchors, take_head
from promptvit.train.stock import SplitName, Stock

TESTED: dict[Test, str] = {
    "once": "evaluated once, after the last epoch",
    "every-epoch": "evaluated after every epoch; the result is the last one's",
}
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
    stock: Stock | None = None,
) -> dict[str, Any]:
    """Train as `config` says, into `folder`; returns what `summary.json` holds.

    Validation after every epoch, the test split once at the end, with the last epoch's weights. A run that was
    killed goes on from its last whole epoch with `resume` and gives the same numbers; a finished one is only read.
    `start` sets the first values of prompts and head in place of the method; hand it over to a resumed run too. Without
    `test` the test images are left alone. Several runs of one process can share a `stock`. Raises PromptvitError of
    every kind.
    """
    for _ in epochs(
        config, folder, resume=resume, listener=listener, command=command, start=start, test=test, stock=stock
    ):
        pass
    return RunFolder(Path(folder)).read_summary()


def epochs(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    command: str = "",
    start: Callable[[TunedModel], None] | None = None,
    test: bool = True,
    stock: Stock | None = None,
    keep_seconds: float = 0.0,
    study: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """`fit`, epoch by epoch: gives the row of each as soon as it is done, first those of an earlier process.

    The summary is written after the last one. Closing it earlier stops the run, which can be resumed. Epochs are
    written to the disk no more often than every `keep_seconds`. `study` is what the summary says of the study that the
    run belongs to.
    """
    method = make_method(config)
    config = dataclasses.replace(config, method={"name": method.kind, **method.to_dict()})
    run_folder = RunFolder(Path(folder))
    run_folder.check(config.to_dict(), resume=resume)
    if run_folder.summary.exists():
        return
    try:
        with closing(
            Run(config, method, run_folder, listener or Listener(), start, test, stock or Stock(), keep_seconds)
        ) as run:
            run.take_up()
            yield from run.rows
            for epoch in range(len(run.rows), config.train.epochs):
                run.train_epoch(epoch)
                yield run.rows[-1]
            run.finish(command, study)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at batch_size={config.train.batch_size}: {str(error).splitlines()[0]}",
            fix="Try a smaller --train.batch_size with --train.accumulate, or --train.checkpointing true",
        ) from error


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
        start: Callable[[TunedModel], None] | None,
        test: bool,
        stock: Stock,
        keep_seconds: float,
    ) -> None:
        self.config, self.folder, self.listener, self.stock = config, folder, listener, stock
        self.keep_seconds, self.kept_at = keep_seconds, time.monotonic()
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        settings = config.train
        self.accelerator = make_accelerator(settings)
        self.task = stock.task(config.data)
        if settings.test == "every-epoch" and self.task.test is None:
            raise ConfigError("test=every-epoch: the task has no test images", expected="once", where="TrainConfig")
        backbone = stock.backbone(config.backbone)
        backbone.set_checkpointing(settings.checkpointing)
        seed_all(settings.seed, self.accelerator.device)
        self.preprocessing = config.data.preprocessing(backbone.preprocessing)
        self.splits: dict[str, Split] = {}
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
                if settings.head_from is not None:
                    take_head(self.model, settings.head_from)
        self.model.preprocessing = self.preprocessing
        self.backbone_parameters = sum(weight.numel() for weight in backbone.weights().values())
        self._check_batch_norms()
        self.on_features = method.only_head and config.data.augment == "none"
        if self.on_features:
            self.model.to(self.accelerator.device)
        self.anchors = Anchors(self.model, settings.start_decay) if settings.start_decay else None
        self.loader = self._loader(self.train_set, shuffle=True)
        self.val_set = self._dataset("val", self.task.val)
        self.val_loader = self._loader(self.val_set)
        # Read here, evaluated at the end: a broken test image is to stop a run before it starts.
        test_split = self.task.test if test else None
        self.test_loader = None if test_split is None else self._loader(self._dataset("test", test_split))
        self.loss = make_loss(settings, self.train_set.labels, len(self.task.classes)).to(self.accelerator.device)
        self.optimizer = make_optimizer(self.model, settings)
        self.wrapped = self.accelerator.prepare(self.model.head if self.on_features else self.model)
        if self.accelerator.scaler is not None:  # else nothing is wrapped around the steps
            self.optimizer = self.accelerator.prepare(self.optimizer)
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
            "and one image has no statistics": settings.batch_size == 1
            or (len(self.train_set) % settings.batch_size == 1 and not settings.drop_last),
        }
        ConfigError.collect([reason for reason, holds in problems.items() if holds], "a method that trains batch norms")

    def _dataset(self, name: SplitName, split: Split) -> ImageDataset:
        def progress(done: int) -> None:
            self.listener.read(name, done, len(split))

        dataset = self.stock.images(name, split, self.preprocessing, self.config.data, progress)
        self.skipped += [f"{error.path}: {error.reason}" for error in dataset.skipped]
        self.splits[name] = dataset.split
        return dataset

    def _loader(self, dataset: ImageDataset, shuffle: bool = False) -> Loader:
        settings = self.config.train
        order = {"batch_size": settings.batch_size, "shuffle": shuffle, "seed": settings.seed}
        order["drop_last"] = shuffle and settings.drop_last
        data = self.stock.features(dataset, self.model, self.accelerator) if self.on_features else dataset
        if isinstance(data, FeatureDataset) and self.accelerator.num_processes == 1:
            prepared = FeatureLoader(data, **order, device=self.accelerator.device)
        else:
            prepared = self.accelerator.prepare(make_loader(data, **order, workers=self.config.data.workers))
        if not len(prepared):
            raise ConfigError(
                f"drop_last=True: {len(dataset)} training images fill no batch of {settings.batch_size}",
                expected="a smaller batch_size, or drop_last=False",
                where="TrainConfig",
            )
        return prepared

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
        seed_all(seed, self.accelerator.device)
        generator = torch.Generator().manual_seed(seed)
        self.loader.set_epoch(epoch)  # type: ignore[union-attr]  # accelerate's loaders have it
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
        val_loss, val_top1 = loss_and_top1(*self._predict(self.val_loader))
        if not math.isfinite(val_loss):  # the last update may be the one that broke it
            raise self._not_finite(val_loss, epoch, len(losses) - 1)
        shares = self.accelerator.reduce(sums / images, reduction="mean")
        train_loss, train_top1 = torch.as_tensor(shares).tolist()
        row = {
            "epoch": epoch + 1,
            "learning_rate": self._rate(epoch, len(self.loader) - 1),
            "train_loss": train_loss,
            "train_top1": train_top1,
            "val_loss": val_loss,
            "val_top1": val_top1,
            **self._test_figures(),
            "seconds": time.perf_counter() - started,
        }
        self.rows.append(row)
        self.listener.watch(epoch + 1, self)
        self._keep(row)

    def _predict(self, loader: Loader) -> tuple[Logits, Labels]:
        """Logits [n, C] and labels [n] of a split."""
        if self.on_features:
            return predict_features(self.model.head, loader, self.accelerator)
        return predict(self.model, loader, self.accelerator)

    def _test_figures(self) -> dict[str, float]:
        """Of an epoch's row; none unless the test images are looked at after every epoch."""
        if self.config.train.test == "once" or self.test_loader is None:
            return {}
        return {"test_top1": loss_and_top1(*self._predict(self.test_loader))[1]}

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
        is_update = (step + 1) % settings.accumulate == 0 or step + 1 == len(self.loader)
        with nullcontext() if is_update else self.accelerator.no_sync(self.wrapped):
            with self.accelerator.autocast():
                logits = self.wrapped(pixels if self.on_features else normalise(pixels, self.preprocessing))
            loss = self.loss(logits.float(), labels)
            self.accelerator.backward(loss)
        if is_update:
            self._update(self._rate(epoch, step))
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def _update(self, rate: float) -> None:
        """One step of the optimiser at the learning rate `rate`."""
        if self.config.train.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        if self.anchors is not None:
            self.anchors.pull(rate * self.model.method.backbone_share)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _rate(self, epoch: int, step: int) -> float:
        settings = self.config.train
        if settings.schedule_steps == "epoch":
            return scheduled_rate(epoch, settings.epochs, settings.warmup_epochs, self._peak, settings)
        update = epoch * self.updates_per_epoch + step // settings.accumulate
        return scheduled_rate(update, self.updates, self.warmup, self._peak, settings)

    @property
    def _peak(self) -> float:
        return learning_rate(self.model, self.config.train, self.accelerator.num_processes)

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
            if time.monotonic() - self.kept_at >= self.keep_seconds or row["epoch"] == self.config.train.epochs:
                self._write_state()
        if self.tensorboard is not None:
            for name, value in row.items():
                self.tensorboard.add_scalar(name, value, row["epoch"])
        self.listener.epoch(row)

    def _write_state(self) -> None:
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
        self.kept_at = time.monotonic()

    def finish(self, command: str, study: dict[str, Any] | None = None) -> None:
        """Evaluate the last epoch's weights on validation and test, and write delta, predictions and summary."""
        kept, loader = ("val", self.val_loader) if self.test_loader is None else ("test", self.test_loader)
        logits, labels = self._predict(loader)
        test = None if self.test_loader is None else measure(logits, labels)
        val = measure(logits, labels) if test is None else measure(*self._predict(self.val_loader))
        if self.accelerator.is_main_process:
            images, source = self.splits[kept], self.config.data.source
            self.model.save(self.folder.delta)
            self.folder.write_predictions(Predictions.of(logits, labels, images, source=source, split=kept))
            self.folder.write_summary(self._summary(val, test, command, study))
        self.accelerator.wait_for_everyone()

    def _summary(
        self, val: Metrics, test: Metrics | None, command: str, study: dict[str, Any] | None
    ) -> dict[str, Any]:
        backbone = self.model.backbone
        trained = self.model.trained_parameters()
        images = {name: len(split) for name, split in self.splits.items()}
        return {
            "result": {"val": val.to_dict(), "test": None if test is None else test.to_dict()},
            "train_loss": self.rows[-1]["train_loss"],
            "task": {"name": self.task.name, "classes": list(self.task.classes), "images": images},
            "method": {"name": self.model.method.kind, **self.model.method.to_dict()},
            "backbone": {
                "name": backbone.source.name,
                "fingerprint": backbone.fingerprint,
                "parameters": self.backbone_parameters,
            },
            "protocol": {
                "selection": "last epoch",
                "test": TESTED[self.config.train.test],
                "train_on": self.config.data.train_on,
                "learning_rate": self._peak,
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
            **({} if study is None else {"study": study}),
        }

    def close(self) -> None:
        """Let go of writers and of the accelerator."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.accelerator.device.type != "cpu":  # there, memory comes back by itself, and this takes 0.2 seconds
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
    status = Path("/proc/self/status")  # of Linux; `ru_maxrss` counts what the parent held when it made this process
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if peak is not None:
        return int(peak[1]) * 1024
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
