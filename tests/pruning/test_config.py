import math
from typing import get_args

import pytest

from promptvit.errors import ConfigError
from promptvit.methods import masks
from promptvit.pruning import config
from promptvit.pruning.config import PruneConfig

# Numbers of pruned prompts that the official code tries (spec, section 6); ours adds 0.
GRID = {
    1: [0],
    5: range(5),
    10: range(1, 10),
    20: range(2, 20, 2),
    32: [3, 6, 9, 12, 16, 19, 22, 25, 28],
    50: range(5, 50, 5),
    100: range(10, 100, 10),
}


@pytest.mark.parametrize("length", GRID)
def test_the_grid_is_the_papers_and_nothing(length):
    config = PruneConfig(search="grid")
    assert config.token_counts(length) == sorted({0, *GRID[length]})
    assert config.segment_counts() == [0, 1, 3, 4, 6, 8, 9, 11, 12]


@pytest.mark.parametrize(("length", "trainings"), [(10, 118), (5, 86), (1, 54)])
def test_trainings_of_the_official_grid(length, trainings):
    """40 find the rates, one comes before pruning, five after it (spec, section 7)."""
    segments = PruneConfig(search="grid").segment_counts()[1:]
    assert 40 + 1 + len(GRID[length]) * len(segments) + 5 == trainings


def test_a_cheap_search_has_few_of_each():
    config = PruneConfig()
    assert config.token_counts(10) == [0, 2, 4, 6, 8]
    assert config.token_counts(1) == [0]
    assert config.segment_counts() == [0, 3, 6, 9, 12]


@pytest.mark.parametrize(
    ("fields", "tokens", "segments"),
    [
        ({"percents": [50.0]}, [0, 5], [0, 8]),
        ({"percents": [0.0, 100.0]}, [0, 9], [0, 12]),
        ({"percents": [100.0], "keep_tokens": 4, "keep_segments": 16}, [0, 6], [0]),
        ({"percents": [100.0], "keep_tokens": 99}, [0], [0, 12]),
        ({"percents": [33.3, 33.4]}, [0, 3], [0, 5]),
        ({"percents": [70.0]}, [0, 7], [0, 11]),
        ({"percents": []}, [0], [0]),
        ({"tokens": [7, 2, 7]}, [0, 2, 7], [0, 3, 6, 9, 12]),
        ({"tokens": [9], "segments": []}, [0, 9], [0]),
        ({"tokens": [], "segments": [12, 1], "parts": 16}, [0], [0, 1, 12]),
        ({"tokens": [1], "percents": [25.0]}, [0, 1], [0, 4]),
        ({"segments": [7], "parts": 8, "keep_segments": 1}, [0, 2, 4, 6, 8], [0, 7]),
        ({"tokens": range(3)}, [0, 1, 2], [0, 3, 6, 9, 12]),
    ],
    ids=str,
)
def test_percentages_and_explicit_numbers(fields, tokens, segments):
    config = PruneConfig(**fields)
    assert config.token_counts(10) == tokens
    assert config.segment_counts() == segments


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tokens": [10]}, "prompts: 10 of 10 pruned: 1 are always kept"),
        ({"tokens": [8], "keep_tokens": 3}, "prompts: 8 of 10 pruned: 3 are always kept"),
        ({"segments": [13]}, "segments: 13 of 16 pruned: 4 are always kept"),
        ({"segments": [4], "parts": 8, "keep_segments": 5}, "segments: 4 of 8 pruned: 5 are always kept"),
    ],
    ids=str,
)
def test_explicit_numbers_keep_what_is_always_kept(fields, reason):
    config = PruneConfig(**fields)
    with pytest.raises(ConfigError, match=reason):
        (config.token_counts(10), config.segment_counts())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"budget": 0}, "budget=0: expected at least 1"),
        ({"parts": 0, "keep_segments": 1}, "parts=0: expected at least 1"),
        ({"keep_tokens": 0}, "keep_tokens=0: expected at least 1"),
        ({"keep_segments": 0}, "keep_segments=0: expected at least 1"),
        ({"keep_segments": 17}, "keep_segments=17: a prompt has 16"),
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"percents": [50.0, 101.0]}, "percents: 101.0: expected 0 to 100"),
        ({"percents": [-1.0]}, "percents: -1.0: expected 0 to 100"),
        ({"percents": [math.nan]}, "percents: nan: expected 0 to 100"),
        ({"tokens": [-1]}, "tokens: -1: expected 0 or more"),
        ({"segments": [2, -3]}, "segments: -3: expected 0 or more"),
        ({"tolerance": -0.1}, "tolerance=-0.1: expected points, 0 to 100"),
        ({"tolerance": 101.0}, "tolerance=101.0: expected points, 0 to 100"),
        ({"tolerance": math.nan}, "tolerance=nan: expected points, 0 to 100"),
        ({"percents": [50.0], "tokens": [1], "segments": [1]}, "both numbers are given already"),
    ],
    ids=str,
)
def test_each_problem_has_its_own_message(fields, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        PruneConfig(**fields)
    assert str(caught.value).endswith("(in PruneConfig)")


def test_all_problems_are_said_at_once(untyped):
    wrong = {"search": "wide", "score": "signed", "gate": "g", "scope": "some", "layout": "odd", "rewind": "back"}
    with pytest.raises(ConfigError) as caught:
        PruneConfig(**wrong, budget=0, percents=[200], tokens=[-1], tolerance=-1.0)
    message = str(caught.value)
    for name in (*wrong, "budget", "tolerance"):
        assert message.count(f"{name}=") == 1
    assert "percents: 200" in message
    assert "tokens: -1" in message


def test_names_are_those_of_masks():
    """The config repeats them because it imports no torch."""
    assert get_args(config.Scope) == get_args(masks.Scope)
    assert get_args(config.Layout) == get_args(masks.Layout)
