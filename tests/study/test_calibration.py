import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from tests.study.test_advise import record

from promptvit.errors import DataError
from promptvit.study.calibration import PRIOR_DEVIATION, merged, offset, read_records, write_records


def test_records_come_back_and_merge_by_what_they_are_about(tmp_path):
    first, again, other = record(), record(accuracies={"prompts": 1.0, "full": 2.0}), record(task="other")
    write_records(tmp_path / "mine.jsonl", [first, other])
    assert read_records(tmp_path / "mine.jsonl") == (first, other)
    assert merged([first, other], [again]) == (again, other)
    assert first.winner == "full"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2"),
        ("{}", "line 2: 'format'"),
        ('{"format": 9}', "line 2: another format"),
        ("[1]", "line 2"),
        ("\x85", "line 2"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, line, message):
    path = tmp_path / "broken.jsonl"
    write_records(path, [record()])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        read_records(path)
    write_records(path, [record(accuracies={"linear": 1.0})])
    with pytest.raises(DataError, match="no accuracy of prompts or of full"):
        read_records(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "0 images of 8 classes"),
        ({"classes": "a"}, "line 1"),
        ({"logit": None}, "line 1"),
        ({"accuracies": {"prompts": "x", "full": 1.0}}, "line 1"),
        ({"accuracies": {"prompts": float("nan"), "full": 1.0}}, "not finite"),
        ({"accuracies": {"prompts": 2.0, "full": 1.0, "nope": 3.0}}, "accuracies of nope"),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path, changes, message):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps({"format": 1, **dataclasses.asdict(record()), **changes}))
    with pytest.raises(DataError, match=message):
        read_records(path)


def test_a_file_of_other_bytes_and_odd_names(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xff\xfe\xba")
    with pytest.raises(DataError, match="line 1"):
        read_records(path)
    odd = record(task="one\u2028two\x85")
    write_records(path, [odd])
    assert read_records(path) == (odd,)


def test_the_offset_is_the_most_probable_one():
    logits, wins = [1.0, 0.5, -2.0, 0.0], [0, 0, 1, 0.5]
    own = [
        dataclasses.replace(
            record(task=str(n)), logit=logit, accuracies={"prompts": 50.0 + 20 * (won - 0.5), "full": 50.0}
        )
        for n, (logit, won) in enumerate(zip(logits, wins, strict=True))
    ]

    def loss(b):
        shares = 1 / (1 + np.exp(-(np.array(logits) + b)))
        return -np.sum(np.array(wins) * np.log(shares) + (1 - np.array(wins)) * np.log(1 - shares)) + b**2 / (
            2 * PRIOR_DEVIATION**2
        )

    assert offset(own) == pytest.approx(minimize_scalar(loss).x, abs=1e-6)
    assert offset([]) == 0.0
