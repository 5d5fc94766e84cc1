"""Parts of a method on the command line and in config files."""

import pytest
import yaml

from promptvit.cli.options import expand, option_value, parse
from promptvit.cli.train import make_train_parser
from promptvit.errors import ConfigError
from promptvit.methods.e2vpt import E2VPT, KeyValue
from promptvit.methods.spt import SPT
from promptvit.methods.vpt import VPT
from promptvit.train.config import RunConfig
from promptvit.train.loop import make_method

FILE = {"name": "e2vpt", "prompts": {"name": "vpt", "length": 7, "project": 4}, "kv": {"length": 2}, "masks": None}
EMPTY = {"name": "e2vpt", "prompts": {"name": "vpt"}, "kv": None}


def method(*arguments, config=None, folder=None):
    """What `promptvit train` makes of them."""
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"method": config}))
        arguments = ("--config", str(folder / "config.yaml"), *arguments)
    expanded = expand(arguments)
    parser = make_train_parser(option_value(expanded, "--method.name"), expanded, with_method=True)
    return make_method(RunConfig.from_dict(parse(parser, expanded)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method", "e2vpt"], E2VPT()),
        (["--method", "e2vpt", "--method.kv.length", "3"], E2VPT(kv=KeyValue(length=3))),
        (["--method", "e2vpt", "--method.kv", "null"], E2VPT(kv=None)),
        (["--method", "e2vpt", "--method.kv.length=3", "--method.kv=null"], E2VPT(kv=None)),
        (["--method", "e2vpt", "--method.kv", "null", "--method.kv.length", "3"], E2VPT(kv=KeyValue(length=3))),
        (["--method", "e2vpt", "--method.prompts", "spt-deep"], E2VPT(prompts=SPT())),
        (["--method", "e2vpt", "--method.prompts.length", "4"], E2VPT(prompts=VPT(length=4))),
        (["--method", "e2vpt", "--method.prompts", "null"], E2VPT(prompts=None)),
        (["--method", "kv", "--method.kv.values", "separate"], E2VPT(prompts=None, kv=KeyValue(values="separate"))),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_parts_are_typed(arguments, expected):
    assert method(*arguments) == expected


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        (FILE, [], E2VPT(prompts=VPT(length=7, project=4), kv=KeyValue(length=2))),
        (FILE, ["--method.kv", "null"], E2VPT(prompts=VPT(length=7, project=4), kv=None)),
        (FILE, ["--method.prompts", "spt-deep"], E2VPT(prompts=SPT(), kv=KeyValue(length=2))),
        (FILE, ["--method.prompts", "null"], E2VPT(prompts=None, kv=KeyValue(length=2))),
        (EMPTY, ["--method.kv.length", "3"], E2VPT(kv=KeyValue(length=3))),
        (EMPTY, ["--method.prompts.length=3"], E2VPT(prompts=VPT(length=3), kv=None)),
        (FILE, ["--method", "vpt-shallow"], VPT(depth="shallow")),
    ],
)
def test_what_is_typed_takes_the_place_of_what_a_file_says(config, arguments, expected, tmp_path):
    assert method(*arguments, config=config, folder=tmp_path) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method.kv.lenght", "3"], "unknown option --method.kv.lenght; did you mean --method.kv.length"),
        (["--method.kv", "5"], "kv='5': expected a KeyValue, or none"),
        (["--method.masks", "foo"], "masks='foo': expected a Masks, or none"),
        (["--method.masks.tokens", "[[1]]"], "method.masks.length"),
        (["--method.prompts", "linear"], "prompts=Linear: expected a VPT or an SPT"),
        (["--method.kv", "null", "--method.prompts", "null"], "neither prompts nor kv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_part_is_refused_in_one_line(arguments, reason, untyped):
    with pytest.raises(ConfigError, match=reason.replace("(", r"\(")):
        method("--method", "e2vpt", *arguments)
