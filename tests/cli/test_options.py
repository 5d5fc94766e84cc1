from dataclasses import dataclass, fields

import pytest

from promptvit.cli.options import add_fields, expand, field_texts, make_parser, option_value, parse
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.train.config import TrainConfig


@dataclass
class Config:
    """A config.

    - `size`: in pixels,
      and no more.
    - `rate`: a share, 50 % say.

    The end.
    """

    size: int = 3
    rate: float | None = None


@pytest.fixture
def parser():
    parser = make_parser("try", "A parser.")
    add_fields(parser, "config", Config)
    return parser


def test_a_fields_text_is_its_line_in_the_docstring():
    assert field_texts(Config) == {"size": "in pixels, and no more.", "rate": "a share, 50 % say."}


CONFIGS = [DataConfig, TrainConfig, *dict.fromkeys(preset.method for preset in METHODS.values())]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_of_every_config_has_a_text(config):
    assert set(field_texts(config)) == {field.name for field in fields(config)}


def test_options_have_the_fields_types(parser):
    assert parse(parser, ["--config.size", "5", "--config.rate=null"])["config"] == {"size": 5, "rate": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.size", "many"], "--config.size many; expected int"),
        (["--config.rate", "high"], "--config.rate high; expected float or null"),
        (["--config.sise", "3"], "unknown option --config.sise; did you mean --config.size?"),
        (["--config.size"], "expected one argument"),
    ],
)
def test_wrong_usage_is_one_line(parser, arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(parser, arguments)
    assert "\n" not in str(caught.value)


def test_short_forms_and_config_files_are_written_out(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: digits\nmethod: {name: vpt-deep, length: 7}\ntrain: {learning_rate: null, epochs: 3}\n")
    expanded = expand(["--config", str(path), "--train.epochs=4"])
    assert expanded == [
        "--data.source=digits", "--method.name=vpt-deep", "--method.length=7", "--train.learning_rate=null",
        "--train.epochs=3", "--train.epochs=4",
    ]  # fmt: skip
    assert option_value(expanded, "--method.name") == "vpt-deep"
    assert option_value(expanded, "--train.epochs") == "4"
    switched = expand(["--method", "linear", "--config", str(path)])
    assert [argument for argument in switched if argument.startswith("--method")] == ["--method.name"]
    assert option_value(switched, "--method.name") == "linear"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("a: [", "cannot be read"), ("- 1", "holds no mapping")]
)
def test_a_config_file_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        expand(["--config", str(path)])
