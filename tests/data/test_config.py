import subprocess
import sys

import pytest

from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.preprocessing import Preprocessing


def test_the_defaults_are_valid():
    assert DataConfig().source == "digits"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", " "),
        ("geometry", "stretch"),
        ("crop_fraction", 0.0),
        ("crop_fraction", 1.5),
        ("crop_fraction", 0.5),
        ("interpolation", "tf2-bilinear"),
        ("normalisation", "clip"),
        ("augment", "flip+crop"),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("images", 3),
        ("shots", 0),
        ("train_share", 0.0),
        ("train_share", 1.5),
        ("train_share", float("nan")),
        ("train_on", "test"),
        ("broken", "ignore"),
        ("cache_gib", -1.0),
        ("cache_gib", float("nan")),
        ("workers", -1),
        ("seed", -1),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_meaningless_setting_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"{field}=.*expected"):
        DataConfig(**{field: value})


def test_all_problems_are_in_one_message():
    with pytest.raises(ConfigError, match=r"workers=-1.*seed=-2.*DataConfig"):
        DataConfig(workers=-1, seed=-2)


def test_the_checkpoint_decides_unless_told_otherwise():
    checkpoint = Preprocessing(size=(384, 384), mean=(0.1, 0.2, 0.3), interpolation="lanczos", crop_fraction=0.9)
    assert DataConfig().preprocessing(checkpoint) == checkpoint
    fgvc = DataConfig(geometry="crop", crop_fraction=384 / 438, normalisation="imagenet").preprocessing(checkpoint)
    assert fgvc.stored_size == (438, 438)
    assert (fgvc.mean, fgvc.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    vtab = DataConfig(geometry="crop", crop_fraction=1.0, interpolation="bicubic", normalisation="none")
    assert vtab.preprocessing(checkpoint) == Preprocessing(
        size=(384, 384),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bicubic",
        geometry="crop",
        crop_fraction=1.0,
    )


def test_importing_it_stays_light():
    code = "import sys, promptvit.data.config; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "torchvision", "PIL", "sklearn", "numpy"} & set(modules.split())
