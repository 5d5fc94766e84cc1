from collections import Counter

import pytest

from promptvit.study.evidence import crossing, other_cells, scale_cells


def curve(task):
    cells = sorted((cell for cell in scale_cells() if cell.task == task), key=lambda cell: cell.images)
    return [cell.images for cell in cells], [cell.gap for cell in cells]


def test_the_scale_study_is_whole():
    cells = scale_cells()
    assert len(cells) == 66
    assert Counter(cell.group for cell in cells) == {"natural": 20, "specialized": 16, "structured": 30}
    assert Counter(cell.images for cell in cells) == {400: 19, 800: 19, 5000: 14, 10000: 14}
    assert sum(cell.prompts_win for cell in cells) == 40
    (tie,) = (cell for cell in cells if cell.gap == 0)
    assert (tie.task, tie.images, tie.prompts_win) == ("clevr_dist", 400, True)


def test_the_other_backbones_are_whole():
    cells = other_cells()
    assert len(cells) == 57
    wins = Counter((cell.backbone, cell.group) for cell in cells if cell.gap > 0)
    assert wins == {
        ("swin-supervised", "natural"): 6,
        ("vit-mae", "natural"): 2,
        ("vit-mae", "specialized"): 2,
        ("vit-moco-v3", "natural"): 4,
    }
    means = {
        group: [
            sum(getattr(cell, way) for cell in cells if (cell.backbone, cell.group) == ("vit-mae", group)) / count
            for way in ("full", "prompts")
        ]
        for group, count in (("natural", 7), ("structured", 8))
    }
    assert means["natural"] == pytest.approx([59.31, 35.31], abs=0.01)
    assert means["structured"] == pytest.approx([53.82, 27.91], abs=0.02)


@pytest.mark.parametrize(
    ("task", "images"), [("smallnorb_ele", 5077), ("dsprites_loc", 4140), ("clevr_count", 2445), ("svhn", 504)]
)
def test_where_full_fine_tuning_overtakes(task, images):
    assert crossing(*curve(task)) == pytest.approx(images, rel=0.01)


def test_a_gap_of_one_sign_crosses_nowhere():
    assert crossing(*curve("clevr_dist")) is None  # a tie first, then one sign
    assert crossing([400], [1.0]) is None
    assert crossing([], []) is None
