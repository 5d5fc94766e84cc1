"""What a run will cost on this machine: trained parameters, delta size, peak memory and time, from a short probe.

The probe is a real run on a few images, in a process of its own: the same code reads, trains, evaluates and saves (see
`promptvit.analysis.cost_probe`). What the whole run has more of, images in memory and full batches, is added at the
rate that the probe measured. Imports no torch.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from promptvit.errors import ConfigError, PromptvitError, TrainingError
from promptvit.train.config import RunConfig

ANSWER = "answer"
"""The file that a probe leaves in its folder."""


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """How large a task is; raises ConfigError for one that cannot be trained.

    - `classes`: at least 2.
    - `train`: training images, at least 1.
    - `val`: validation images, at least 1.
    - `test`: test images; 0 is a task without.
    """

    classes: int = 10
    train: int = 800
    val: int = 200
    test: int = 0

    def __post_init__(self) -> None:
        least = {"classes": 2, "train": 1, "val": 1, "test": 0}
        problems = [
            f"{name}={getattr(self, name)}: expected at least {number}"
            for name, number in least.items()
            if getattr(self, name) < number
        ]
        ConfigError.collect(problems, "TaskSize")

    @property
    def splits(self) -> tuple[int, int, int]:
        """Training, validation and test images."""
        return self.train, self.val, self.test

    @property
    def images(self) -> int:
        """All of them."""
        return sum(self.splits)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a short run took, in bytes and seconds.

    - `device`, `trained_parameters`, `trained_percent`, `delta_bytes`, `peak_memory_bytes`: as its summary has them.
    - `whole`: the size of the task. `part`: what the probe had of it.
    - `image_bytes`: a decoded image. `cached`: whether the probe kept them in memory.
    - `feature_bytes`: the features of an image, where only a head is trained on them; else 0.
    - `setup_seconds`: from the start of the process to the first step. `image_seconds`: of that, for each image.
    - `epoch_seconds`: an epoch, with validation. `step_seconds`: of that, a full batch of training.
    - `batch_seconds`: a full batch of evaluation.
    - `state_seconds`: writing the state of an epoch. `finish_seconds`: from the last epoch to the summary.
    """

    device: str
    trained_parameters: int
    trained_percent: float
    delta_bytes: int
    peak_memory_bytes: int | None
    whole: TaskSize
    part: TaskSize
    image_bytes: int
    cached: bool
    feature_bytes: int
    setup_seconds: float
    image_seconds: float
    epoch_seconds: float
    step_seconds: float
    batch_seconds: float
    state_seconds: float
    finish_seconds: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run will cost.

    - `trained_parameters`, `trained_percent`: head included, of all parameters of the tuned model. Exact.
    - `delta_bytes`: of `delta.safetensors`. Exact: the probe writes the file, whose size does not depend on its values.
    - `peak_memory_bytes`: of the process, or on CUDA what its allocator hands out; None where the system does not
      tell. The probe's, and in the process the images and features that the run holds beside those of the probe.
    - `epoch_seconds`: training and validation, as `metrics.jsonl` has it. The probe's median, and the further batches.
    - `run_seconds`: from the command to the summary, with imports, reading, features, all epochs, test and saving. What
      a method computes from training images before the first step counts as for the images of the probe.
    - `probe`: what all this comes from.
    """

    trained_parameters: int
    trained_percent: float
    delta_bytes: int
    peak_memory_bytes: int | None
    epoch_seconds: float
    run_seconds: float
    probe: Probe


def estimate_cost(config: RunConfig, *, size: TaskSize | None = None, steps: int = 4) -> Cost:
    """What the run of `config` will cost, on the machine, device and number of threads that this process has.

    `size`: of a hypothetical task; its images are noise, and reading them costs next to nothing. None reads the task of
    `config.data`. `steps`: full batches in each epoch of the probe, at least 2. Raises what the run would refuse, as it
    would; and TrainingError if the probe dies, as it does where memory does not suffice.
    """
    if steps < 2:
        raise ConfigError(f"steps={steps}", expected="at least 2", where="estimate_cost")
    return extrapolate(run_probe(config, size, steps), config)


def run_probe(config: RunConfig, size: TaskSize | None, steps: int) -> Probe:
    """The probe in a fresh process: what this one holds in memory is not to count."""
    with tempfile.TemporaryDirectory(prefix="promptvit-cost-") as folder:
        request = pickle.dumps((config, size, steps, Path(folder), time.time()))
        done = subprocess.run([sys.executable, "-P", "-m", f"{__name__}_probe"], input=request, check=False)
        answer = Path(folder, ANSWER)
        if not answer.exists():
            raise TrainingError(
                f"the probe of {config.method['name']} ended with exit code {done.returncode}",
                where="estimate_cost",
                fix="What it said stands above; -9 is what a system that is out of memory does. Try a smaller "
                "--train.batch_size",
            )
        outcome = pickle.loads(answer.read_bytes())
    if isinstance(outcome, PromptvitError):
        raise outcome
    return outcome


def extrapolate(probe: Probe, config: RunConfig) -> Cost:
    """From the probe to the whole run: what it has more of, at the probe's rates."""
    batch, epochs = config.train.batch_size, config.train.epochs
    train, val, test = (
        whole // batch - part // batch for whole, part in zip(probe.whole.splits, probe.part.splits, strict=True)
    )
    val_seconds, test_seconds = val * probe.batch_seconds, test * probe.batch_seconds
    epoch = probe.epoch_seconds + train * probe.step_seconds + val_seconds
    if config.train.test == "every-epoch":
        epoch += test_seconds
    setup = probe.setup_seconds + (probe.whole.images - probe.part.images) * probe.image_seconds
    finish = probe.finish_seconds + val_seconds + test_seconds
    return Cost(
        trained_parameters=probe.trained_parameters,
        trained_percent=probe.trained_percent,
        delta_bytes=probe.delta_bytes,
        peak_memory_bytes=peak_memory(probe, cache_bytes(config)),
        epoch_seconds=epoch,
        run_seconds=setup + epochs * (epoch + probe.state_seconds) + finish,
        probe=probe,
    )


def peak_memory(probe: Probe, cache: int) -> int | None:
    """The peak of the whole run, which keeps decoded splits of at most `cache` bytes; a GPU holds none of them."""
    if probe.peak_memory_bytes is None or probe.device.startswith("cuda"):
        return probe.peak_memory_bytes
    kept = sum(images * probe.image_bytes for images in probe.whole.splits if images * probe.image_bytes <= cache)
    kept_by_probe = probe.part.images * probe.image_bytes if probe.cached else 0
    features = (probe.whole.images - probe.part.images) * probe.feature_bytes
    return probe.peak_memory_bytes + kept - kept_by_probe + features


def cache_bytes(config: RunConfig) -> int:
    """The largest split that is kept decoded."""
    return int(config.data.cache_gib * 2**30)
