import json
from dataclasses import asdict

import numpy as np
import pytest

from promptvit.errors import ConfigError
from promptvit.methods.masks import Masks, segment_of


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"length": 0}, "length=0, parts=16: expected at least 1"),
        ({"parts": 0}, "length=4, parts=0: expected at least 1"),
        ({"tokens": ()}, "0 sets of tokens, 0 of segments: expected as many, not none"),
        ({"scope": "block", "tokens": ((), ()), "segments": ((),)}, "2 sets of tokens, 1 of segments"),
        ({"tokens": ((), ())}, "2 sets with scope=all: expected one"),
        ({"scope": "first", "tokens": ((0,), (1,))}, "2 sets with scope=first: expected one"),
        ({"tokens": ((4,),)}, r"prompts \[4\]: expected numbers from 0 to 3"),
        ({"tokens": ((-1,),)}, r"prompts \[-1\]: expected numbers from 0 to 3"),
        ({"tokens": ((1, 1),)}, r"prompts \[1, 1\]: one stands twice"),
        ({"tokens": ((0, 1, 2, 3),)}, "all 4 prompts pruned: expected one to be kept"),
        ({"scope": "block", "tokens": ((), (0, 1, 2, 3))}, "all 4 prompts pruned"),
        ({"segments": (((), ()),)}, "segments of 2 prompts: expected none, or those of each of 4"),
        ({"segments": (((16,), (), (), ()),)}, r"segments \[16\]: expected numbers from 0 to 15"),
        ({"segments": (((), (), (), (3, 3)),)}, r"segments \[3, 3\]: one stands twice"),
        ({"segments": (((0, 1), (), (), ()),), "parts": 2}, "all 2 segments of a prompt pruned: prune the prompt"),
    ],
    ids=str,
)
def test_each_problem_has_its_own_message(fields, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        Masks(**{"length": 4} | fields)
    assert str(caught.value).endswith("(in Masks)")


def test_all_problems_are_said_at_once(untyped):
    with pytest.raises(ConfigError) as caught:
        Masks(length=2, scope="some", layout="odd", tokens=((0, 1), (2,)), segments=(((17,), ()), ((17,), ())))
    message = str(caught.value)
    for part in (
        "scope='some': expected all, block or first",
        "layout='odd': expected contiguous or interleaved",
        "2 sets with scope=some: expected one",
        "all 2 prompts pruned",
        "prompts [2]: expected numbers from 0 to 1",
        "segments [17]: expected numbers from 0 to 15",
    ):
        assert message.count(part) == 1


def test_masks_are_plain_values_that_pass_through_json():
    masks = Masks(length=3, scope="block", tokens=[[0], []], segments=[[[], [1], [0, 2]], []], parts=4)
    assert masks == Masks(**json.loads(json.dumps(asdict(masks))))
    assert hash(masks) == hash(Masks(**asdict(masks)))
    assert masks.tokens == ((0,), ())
    assert masks.segments == (((), (1,), (0, 2)), ())
    assert masks.prunes_segments
    assert not Masks(length=3, tokens=((0, 2),), segments=(((), (), ()),)).prunes_segments
    assert Masks(length=3).segments == ((),)


PRUNED = {"length": 3, "parts": 4}
KEPT, WITHOUT_1, WITHOUT_0_2 = [True, True, True], [True, False, True], [False, True, False]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [KEPT, KEPT, KEPT]),
        ({"tokens": ((1,),)}, [WITHOUT_1] * 3),
        ({"tokens": ((1,),), "scope": "first"}, [WITHOUT_1, KEPT, KEPT]),
        ({"tokens": ((1,), (), (2, 0)), "scope": "block"}, [WITHOUT_1, KEPT, WITHOUT_0_2]),
    ],
    ids=str,
)
def test_what_is_kept_of_each_block(fields, expected):
    segments = {"segments": [((0,), (), (2, 3))] * len(fields.get("tokens", ((),)))}
    for more in ({}, segments):
        masks = Masks(**PRUNED, **fields, **more)
        assert masks.kept_tokens(3).tolist() == expected
        kept = masks.kept_segments(3)
        assert kept.shape == (3, 3, 4)
        assert kept.dtype == bool
        for block, prompt, segment in np.ndindex(3, 3, 4):
            masked = (
                bool(more) and (masks.scope != "first" or block == 0) and (prompt, segment) in {(0, 0), (2, 2), (2, 3)}
            )
            assert kept[block, prompt, segment] == (expected[block][prompt] and not masked)


def test_a_set_for_each_block_needs_as_many_blocks():
    masks = Masks(length=3, scope="block", tokens=((0,), (1,)))
    for kept in (masks.kept_tokens, masks.kept_segments):
        with pytest.raises(ConfigError, match="2 sets of masks for prompts at 3 blocks; expected one per block"):
            kept(3)


@pytest.mark.parametrize(("width", "parts"), [(12, 1), (12, 3), (12, 12), (768, 16)])
def test_segments_are_stretches_or_every_nth_channel(width, parts):
    contiguous, interleaved = (segment_of(width, parts, layout) for layout in ("contiguous", "interleaved"))
    assert contiguous.tolist() == [channel * parts // width for channel in range(width)]
    assert interleaved.tolist() == [channel % parts for channel in range(width)]
    for segments in (contiguous, interleaved):
        assert np.bincount(segments).tolist() == [width // parts] * parts


@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
def test_a_width_that_is_not_divisible_is_refused(layout):
    with pytest.raises(ConfigError, match="16 segments of prompts of width 24; expected a divisor of the width"):
        segment_of(24, 16, layout)
