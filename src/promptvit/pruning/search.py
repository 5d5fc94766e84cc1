"""From a run to a smaller one: score its prompts, measure masks, train a few of them again, choose on validation.

The folder of a search:

prune.json          the run, its delta and the settings
scores.safetensors  of prompts and segments; with `cascade` one more file for each number of pruned prompts
candidates.jsonl    what was measured without training, a row per candidate
trained/            a run's folder for every candidate that was trained again
delta/              the chosen one; config.yaml, predictions.json and summary.json are its own
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import yaml
from torch.utils.data import DataLoader

from promptvit.checkpoint import load
from promptvit.counting import flops, safetensors_bytes
from promptvit.data.dataset import ImageDataset
from promptvit.data.load import load_split, load_task
from promptvit.data.loader import make_loader
from promptvit.data.task import Split
from promptvit.delta_files import TENSORS
from promptvit.errors import ConfigError, DeltaError, TrainingError
from promptvit.files import digest, is_begun, write_bytes, write_json, write_text
from promptvit.methods.e2vpt import E2VPT
from promptvit.methods.masks import Masks
from promptvit.methods.spt import SPT
from promptvit.model import TunedModel
from promptvit.pruning.config import PruneConfig
from promptvit.pruning.scores import Scores, check_prunable, prune, score_prompts, visual_prompts
from promptvit.train.config import Device, RunConfig
from promptvit.train.device import make_accelerator
from promptvit.train.evaluate import evaluate, evaluate_task, measure, predict_task
from promptvit.train.folder import RunFolder
from promptvit.train.loop import Listener, fit
from promptvit.train.predictions import Predictions
from promptvit.train.samples import TrainingSamples

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PruneListener:
    """Who is told how a search goes on.

    `phase` (what is done, in how many steps), `step`, `training` (number, of how many): who listens to that training.
    """

    phase: Callable[[str, int], None] = lambda what, steps: None
    step: Callable[[], None] = lambda: None
    training: Callable[[int, int], Listener] = lambda number, count: Listener()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """How many prompts, and how many segments of every other prompt, are pruned."""

    tokens: int
    segments: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"tokens{self.tokens}-segments{self.segments}"


NOTHING_PRUNED = Candidate(tokens=0, segments=0)


def prune_run(
    run: str | Path,
    folder: str | Path,
    config: PruneConfig | None = None,
    *,
    resume: bool = False,
    listener: PruneListener | None = None,
    device: Device | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Prune the finished `run`, into `folder`; returns what `summary.json` there holds.

    The smallest with the best validation accuracy is chosen, of the run itself, of what masks leave of it, and of what
    was trained again; test images are looked at for the chosen one alone. A search that was killed goes on with
    `resume`: nothing is measured or trained twice. `device`: in place of the run's. Raises ConfigError for a run that
    cannot be pruned, OutputError for a folder in use, DeltaError for one that belongs to another run, or for a run
    without the values that `rewind` needs.
    """
    search = PruneSearch(Path(run), Path(folder), config or PruneConfig(), listener or PruneListener(), device)
    search.check(resume=resume)
    if not search.summary.exists():
        search.begin()
        measured = search.measured()
        chosen = search.finalists(measured)
        trained = [search.train(row, number, len(chosen)) for number, row in enumerate(chosen, start=1)]
        search.finish(measured, trained, command)
    return json.loads(search.summary.read_text())


class PruneSearch:
    """A search in `root`, of which every part that is done is on disk."""

    def __init__(
        self, run: Path, root: Path, config: PruneConfig, listener: PruneListener, device: Device | None
    ) -> None:
        self.run, self.root, self.config, self.listener = RunFolder(run), root, config, listener
        if not self.run.summary.exists():
            raise ConfigError(
                f"{run} holds no run that is done",
                expected="the folder of a finished `promptvit train`",
                where="prune",
                fix=f"promptvit train --config {self.run.config} --out {run} --resume"
                if self.run.config.exists()
                else "",
            )
        self.result = self.run.read_summary()
        before = self.run.read_config()
        train = before.train if device is None else dataclasses.replace(before.train, device=device)
        self.run_config = dataclasses.replace(before, train=train)
        if self.run_config.data.train_on == "train+val":
            raise ConfigError(
                f"{run} was trained on its validation images (data.train_on=train+val)",
                expected="validation images that no training has seen, to choose masks by",
                where="prune",
            )
        self.model = load(self.run.delta)
        check_prunable(self.model)
        visual = visual_prompts(self.model)
        self.length = visual.prompts[0].shape[1]
        self.blocks = sum(len(stage) for stage in visual.prompts)
        self.counts = config.token_counts(self.length), config.segment_counts()
        self.check_candidates()

    def check_candidates(self) -> None:
        """Raise for numbers, masks or a start that cannot be had: a search takes long, so this comes before it."""
        config = self.config
        if len(self.counts[0]) * len(self.counts[1]) == 1:
            raise ConfigError(
                f"nothing to try: {self.length} prompts per block, of which {config.keep_tokens} are kept",
                where="prune",
                fix="Smaller keep_tokens or keep_segments, or explicit numbers of tokens and segments",
            )
        if config.rewind in ("start", "early"):
            self.run.read_values(config.rewind)
        sets = self.blocks if config.scope == "block" else 1
        equal = np.zeros((sets, self.length, config.parts))
        scores = Scores(tokens=equal[..., 0], segments=equal, scope=config.scope, layout=config.layout)
        prune(self.model, scores.masks(self.counts[0][-1], self.counts[1][-1], compat_zero=config.compat_zero))

    @property
    def summary(self) -> Path:
        """The result; it exists if and only if the search is done."""
        return self.root / "summary.json"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a search goes on with, and nothing else."""
        return {"delta": digest((self.run.delta / TENSORS).read_bytes()), "settings": settings(self.config)}

    def check(self, *, resume: bool) -> None:
        """Raise unless the folder is free or, with `resume`, holds this search."""
        path = self.root / "prune.json"
        if not is_begun(path, "a search", resume=resume):
            return
        known = json.loads(path.read_text())
        if known["delta"] != self.identity["delta"]:
            raise DeltaError(
                f"the scores and masks in {self.root} belong to another run, or {self.run.root} was trained anew",
                expected=f"{known['run']} as it was",
                where="prune",
                fix="Choose another --out",
            )
        begun = settings(PruneConfig(**known["settings"]))  # completed: it may be older than a setting
        changed = [name for name, value in self.identity["settings"].items() if begun[name] != value]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} differ from {path}", expected="the same settings", fix="Or choose another --out"
            )

    def begin(self) -> None:
        """From now on the folder holds a search."""
        write_json(self.root / "prune.json", {"run": str(self.run.root), **self.identity})

    @cached_property
    def accelerator(self) -> Any:
        """Of the run; raises ConfigError for several processes."""
        accelerator = make_accelerator(self.run_config.train)
        if accelerator.num_processes > 1:
            raise ConfigError(f"{accelerator.num_processes} processes", expected="one", where="prune")
        self.model.to(accelerator.device)
        return accelerator

    def _read(self, name: str, split: Split) -> ImageDataset:
        self.listener.phase(f"reading {name} images", len(split))
        data = self.run_config.data
        return load_split(split, self.model.preprocessing, data, lambda done: self.listener.step())

    @cached_property
    def samples(self) -> TrainingSamples:
        """The training images, as in evaluation."""
        train = self.run_config.train
        dataset = self._read("train", load_task(self.run_config.data).train)
        device = self.accelerator.device
        return TrainingSamples(dataset, self.model.preprocessing, device=device, batch_size=train.batch_size)

    @cached_property
    def val_loader(self) -> DataLoader:
        """The validation images."""
        train = self.run_config.train
        dataset = self._read("val", load_task(self.run_config.data).val)
        loader = make_loader(dataset, batch_size=train.batch_size, shuffle=False, seed=0, workers=0)
        return self.accelerator.prepare(loader)

    @cached_property
    def scores(self) -> Scores:
        """Of all prompts and segments."""
        return self._scores("scores", self.model)

    def masks(self, candidate: Candidate) -> Masks:
        """What the candidate prunes."""
        scores = self.scores
        if self.config.cascade and candidate.tokens and candidate.segments:
            alone = scores.masks(candidate.tokens, compat_zero=self.config.compat_zero)
            again = self._scores(f"scores-tokens{candidate.tokens}", prune(self.model, alone))
            scores = dataclasses.replace(scores, segments=again.segments)
        return scores.masks(candidate.tokens, candidate.segments, compat_zero=self.config.compat_zero)

    def _scores(self, name: str, model: TunedModel) -> Scores:
        config, path = self.config, self.root / f"{name}.safetensors"
        if not path.exists():
            samples = self.samples
            self.listener.phase("scoring prompts", 1)
            found = score_prompts(
                model,
                samples,
                score=config.score,
                gate=config.gate,
                scope=config.scope,
                layout=config.layout,
                parts=config.parts,
            )
            values = {"tokens": found.tokens, "segments": found.segments}  # views, whose memory safetensors would read
            copies = {name: np.ascontiguousarray(value) for name, value in values.items()}
            write_bytes(path, safetensors.numpy.save(copies))
            self.listener.step()
        values = safetensors.numpy.load(path.read_bytes())
        return Scores(**values, scope=config.scope, layout=config.layout)

    def candidates(self) -> Iterator[Candidate]:
        """Every number of prompts with every number of segments; first of all none of either."""
        for tokens in self.counts[0]:
            for segments in self.counts[1]:
                yield Candidate(tokens=tokens, segments=segments)

    def measured(self) -> list[Row]:
        """A row for every candidate, from its masks alone."""
        path = self.root / "candidates.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        todo = list(self.candidates())[len(rows) :]
        if todo:
            _ = self.scores, self.val_loader
            self.listener.phase("measuring masks", len(todo))
        for candidate in todo:
            rows.append(self.measure(candidate))
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            self.listener.step()
        return rows

    def measure(self, candidate: Candidate) -> Row:
        """Size and validation accuracy of a candidate as it is."""
        masks = self.masks(candidate)
        pruned = self.model if candidate == NOTHING_PRUNED else prune(self.model, masks)
        metrics = evaluate(pruned, self.val_loader, self.accelerator)
        visual = visual_prompts(pruned)
        return {
            **asdict(candidate),
            "kept_tokens": masks.kept_tokens(self.blocks).sum().item() / self.blocks,
            "kept_segments": masks.kept_segments(self.blocks).sum().item() / self.blocks,
            "prompt_parameters": sum(values.numel() for values in visual.prompts),
            "trained_parameters": pruned.trained_parameters(),
            "delta_bytes": safetensors_bytes(pruned.trained_tensors()),
            "flops": flops(pruned),
            "masked": {"top1": metrics.top1, "loss": metrics.loss},
        }

    def finalists(self, rows: list[Row]) -> list[Row]:
        """What to train again: all, if there are as many trainings. Else the range of sizes is cut into one band more
        than there are trainings, the uppermost is left out, and of each other band it is the candidate with the lowest
        loss as it is."""
        others = rows[1:]
        if self.config.search == "grid" or len(others) <= self.config.budget:
            return others
        sizes = [row["prompt_parameters"] for row in others]
        step = (max(sizes) - min(sizes)) / (self.config.budget + 1) or 1.0
        bands: dict[int, Row] = {}
        for row in others:
            band = int((row["prompt_parameters"] - min(sizes)) / step)
            if band < self.config.budget and (
                band not in bands or row["masked"]["loss"] < bands[band]["masked"]["loss"]
            ):
                bands[band] = row
        return [bands[band] for band in sorted(bands, reverse=True)]

    def train(self, row: Row, number: int, count: int) -> Row:
        """The same row with the validation accuracy after training again and the run's folder; or with the reason why
        that training failed."""
        masks, name = self.masks(candidate_of(row)), candidate_of(row).name
        folder, failure = self.root / "trained" / name, self.root / "trained" / f"{name}.failed"
        if failure.exists():
            return {**row, "failed": failure.read_text()}
        try:
            summary = fit(
                self.retraining(masks),
                folder,
                resume=folder.exists(),
                listener=self.listener.training(number, count),
                command=f"training {number} of {count} of promptvit prune {self.run.root}",
                start=None if self.config.rewind == "fresh" else self.rewound(masks),
                test=False,
            )
        except TrainingError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):  # of this moment, not of the candidate
                raise
            write_text(failure, str(error))
            return {**row, "failed": str(error)}
        val = summary["result"]["val"]
        trained = {"top1": val["top1"], "loss": val["loss"], "seconds": summary["cost"]["seconds"]}
        return {**row, "trained": trained, "folder": str(folder.relative_to(self.root))}

    def retraining(self, masks: Masks) -> RunConfig:
        """The run's configuration with these masks; with `fresh` another seed."""
        own, before = self.model.method, self.run_config.train
        method = own if isinstance(own, E2VPT) else E2VPT(prompts=own, kv=None)
        seed = before.seed
        if self.config.rewind == "fresh":
            seed = (seed + 1) % 2**32
            if isinstance(method.prompts, SPT):
                again = dataclasses.replace(method.prompts, seed=(method.prompts.seed + 1) % 2**32)
                method = dataclasses.replace(method, prompts=again)
        method = dataclasses.replace(method, masks=masks)
        train = dataclasses.replace(
            before,
            epochs=self.config.epochs or before.epochs,
            learning_rate=self.result["protocol"]["learning_rate"],
            rate_batch=None,  # that is the rate of an update already
            keep_epoch=None,
            seed=seed,
        )
        return dataclasses.replace(self.run_config, method={"name": method.kind, **method.to_dict()}, train=train)

    def rewound(self, masks: Masks) -> Callable[[TunedModel], None]:
        """Sets the values that training starts from: those of the run at an earlier time, without what is pruned."""
        whole = load(self.run.delta, backbone=self.model.backbone)
        if self.config.rewind in ("start", "early"):
            values = self.run.read_values(self.config.rewind)
            with torch.no_grad():
                for name, tensor in whole.trained_tensors().items():
                    tensor.copy_(values[name])
        pruned = prune(whole, masks)

        def start(model: TunedModel) -> None:
            model.delta.load_state_dict(pruned.delta.state_dict())
            model.head.load_state_dict(pruned.head.state_dict())

        return start

    def choose(self, rows: list[Row]) -> Row:
        """The smallest row whose accuracy is within `tolerance` of the best; of equal ones the more accurate."""
        best = max(map(accuracy, rows))
        good = [row for row in rows if accuracy(row) >= best - self.config.tolerance / 100 - ROUNDING]
        return min(good, key=lambda row: (row["prompt_parameters"], -accuracy(row)))

    def finish(self, measured: list[Row], trained: list[Row], command: str) -> None:
        """Write the chosen delta with its configuration, look at the test images once, and write the result."""
        chosen = self.choose([*measured, *(row for row in trained if "trained" in row)])
        model, config, origin = self.model, self.run_config, self.result
        if "trained" in chosen:
            folder = RunFolder(self.root / chosen["folder"])
            model, origin = load(folder.delta, backbone=self.model.backbone), folder.read_summary()
        elif candidate_of(chosen) != NOTHING_PRUNED:
            model = prune(self.model, self.masks(candidate_of(chosen)))
        if candidate_of(chosen) != NOTHING_PRUNED:
            config = self.retraining(self.masks(candidate_of(chosen)))
        model.save(self.root / "delta")
        write_text(self.root / "config.yaml", yaml.safe_dump(settings(config), sort_keys=False))
        whole = self.model.total_parameters() - self.model.trained_parameters()
        cost = {
            "trained_parameters": chosen["trained_parameters"],
            "trained_percent": 100 * chosen["trained_parameters"] / (whole + chosen["trained_parameters"]),
            "delta_bytes": (self.root / "delta" / TENSORS).stat().st_size,
        }
        summary = {
            **origin,
            "result": self.results(model),
            "method": config.method,
            "config": config.to_dict(),
            "cost": {**origin["cost"], **cost},
            "pruning": {
                "run": str(self.run.root),
                **self.identity,
                "selection": "validation accuracy; the run itself and masks without training are candidates too",
                "unpruned": {**measured[0], "result": self.result["result"]},
                "trainings": len(trained),
                "seconds": sum(row["trained"]["seconds"] for row in trained if "trained" in row),
                "candidates": measured[1:],
                "trained": trained,
                "chosen": chosen,
            },
            "command": command,
        }
        write_json(self.summary, summary)

    def results(self, model: TunedModel) -> dict[str, Any]:
        """Metrics of the chosen model on the validation images, and on the test images if there are any; what it says
        of the latter, or else of the former, is kept."""
        config = self.run_config
        self.listener.phase("evaluating", 1)
        kept = "val" if load_task(config.data).test is None else "test"
        logits, labels, images = predict_task(model, config.data, kept, config.train)
        predictions = Predictions.of(logits, labels, images, source=config.data.source, split=kept)
        RunFolder(self.root).write_predictions(predictions)
        found = {"test": None, kept: measure(logits, labels).to_dict()}
        if kept == "test":
            found["val"] = evaluate_task(model, config.data, "val", config.train).to_dict()
        self.listener.step()
        return {"val": found["val"], "test": found["test"]}


ROUNDING = 1e-9
"""Accuracies are fractions; a point is not one in binary."""


def accuracy(row: Row) -> float:
    """On the validation images, after training again if there was one."""
    return row.get("trained", row["masked"])["top1"]


def candidate_of(row: Row) -> Candidate:
    """What the row is about."""
    return Candidate(tokens=row["tokens"], segments=row["segments"])


def settings(config: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return json.loads(json.dumps(asdict(config), default=list))  # a range is a sequence too
