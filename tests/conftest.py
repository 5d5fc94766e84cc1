"""Every test runs offline, and with the shapes and types of promptvit's functions checked at each call."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}

import subprocess
import sys

import jaxtyping
import pytest

jaxtyping.install_import_hook("promptvit", "beartype.beartype")  # before anything imports promptvit

import timm  # noqa: E402
import torch  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)  # the models here are so small that threads only wait for one another


@pytest.fixture
def untyped():
    """No checks of types at run time, for a test of what our own messages say about a wrong one."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_vit():
    """A small timm ViT in float64 and eval mode with every tensor away from zero; keywords as timm's."""

    def make(name: str | None = None, **arguments) -> VisionTransformer:
        torch.manual_seed(1)
        small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
        model = VisionTransformer(**small | arguments) if name is None else timm.create_model(name, **small | arguments)
        return randomise(model).double().eval()

    return make


@pytest.fixture(scope="session")
def make_small():
    """What a constructor of a small timm model gives, in float64 and eval mode with every tensor away from zero."""

    def make(construct) -> nn.Module:
        torch.manual_seed(1)
        return randomise(construct()).double().eval()

    return make


def randomise(model: nn.Module) -> nn.Module:
    """Spread every parameter, so that layer scales, biases and prefix tokens matter to the output."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="session")
def run_python():
    """Run a program in a fresh interpreter, without type checks at run time, and return what it prints."""

    def run(program: str, *arguments: object) -> str:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
