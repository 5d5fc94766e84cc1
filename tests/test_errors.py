import copy
import pickle
from pathlib import Path

import pytest

from promptvit import errors
from promptvit.errors import BrokenImageError, ConfigError, OutputError, PromptvitError, UnknownNameError


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "given"),
        ({"expected": "this"}, "given; expected this"),
        ({"where": "here"}, "given (in here)"),
        ({"fix": "Do it"}, "given. Do it"),
        ({"expected": "this", "where": "here", "fix": "Do it"}, "given; expected this (in here). Do it"),
    ],
)
def test_a_message_says_given_expected_where_fix(parts, message):
    assert str(PromptvitError("given", **parts)) == message


def tree(kind):
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in tree(child))]


def test_the_tree_is_the_one_drawn():
    ours = [kind for kind in tree(PromptvitError) if kind.__module__ == "promptvit.errors"]
    drawn = [line.strip("│├└─ ").split()[0] for line in errors.__doc__.splitlines() if "Error" in line]
    assert sorted(kind.__name__ for kind in ours) == sorted(drawn)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(UnknownNameError, ConfigError)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("length=0", expected="more", where="VPT"),
        BrokenImageError("a/b.png", "too short"),
        OutputError.at(Path("file"), OSError(28, "No space left on device")),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_travel_between_processes(error, duplicate):
    twin = duplicate(error)
    assert (type(twin), str(twin), twin.__dict__) == (type(error), str(error), error.__dict__)


def test_problems_are_collected():
    ConfigError.collect([], "nowhere")
    with pytest.raises(ConfigError) as caught:
        ConfigError.collect(["a=1: too small", "b=2: too large"], "Thing")
    assert str(caught.value) == "a=1: too small; b=2: too large (in Thing)"


def test_a_broken_image_knows_its_path_and_reason():
    error = BrokenImageError("a/b.png", "too short")
    assert (error.path, error.reason) == (Path("a/b.png"), "too short")
    assert "a/b.png cannot be decoded: too short" in str(error)


def test_an_output_error_gives_the_systems_reason():
    assert "x cannot be written: No space" in str(OutputError.at(Path("x"), OSError(28, "No space")))
    assert "x cannot be written: odd" in str(OutputError.at(Path("x"), OSError("odd")))
