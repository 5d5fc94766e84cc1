"""`promptvit analyze pruning` as a person calls it."""

import json

import numpy as np
import pytest

import promptvit as pv
from promptvit.cli.main import main
from promptvit.methods.masks import Masks


def saved(folder, masks, **fields):
    method = pv.E2VPT(prompts=pv.VPT(length=3, **fields), masks=masks)
    return str(pv.tune(pv.load_backbone(image_size=16), method, 2).save(folder))


def test_masks_are_printed_and_drawn(tmp_path, capsys):
    segments = [[(), (0, 3), ()], *[()] * 5]
    masks = Masks(length=3, scope="block", tokens=[(2,), (0, 1), (), (), (), ()], segments=segments, parts=4)
    run, figure = saved(tmp_path / "run", masks), tmp_path / "a.svg"
    assert main(["analyze", "pruning", run, "--figure", str(figure)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run: 15 of 18 prompts kept, 58 of 72 segments",
        "  prompts by block  2 1 3 3 3 3",
    ]
    assert ">prompt pruned (17%)</text>" in figure.read_text()
    assert main(["analyze", "pruning", run, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run"], shown["first"]) == (run, 1)
    assert np.array(shown["kept"]).shape == (6, 3, 4)
    assert shown["kept"][0] == [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "first", "blocks"),
    [({"blocks": 2, "end": "last"}, 5, 2), ({"depth": "shallow"}, 1, 1), ({"shared": True}, 1, 6)],
    ids=str,
)
def test_a_row_stands_for_each_block_with_prompts(fields, first, blocks, tmp_path, capsys):
    run = saved(tmp_path / "run", Masks(length=3, tokens=[(1,)], parts=1), **fields)
    assert main(["analyze", "pruning", run, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["first"] == first
    assert shown["kept"] == [[[1], [0], [1]]] * blocks


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["RUN"], "is not pruned; expected a pruned run. promptvit prune", 2),
        (["RUN", "--figure", "a.gif"], "a figure called a.gif; expected .png or .svg", 2),
        (["missing"], "missing holds no delta", 1),
        ([], "the following arguments are required: run", 2),
    ],
)
def test_wrong_usage(arguments, message, code, tmp_path, capsys):
    run = saved(tmp_path / "run", None)
    assert main(["analyze", "pruning", *(run if word == "RUN" else word for word in arguments)]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
