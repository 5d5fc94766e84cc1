import dataclasses

import pytest

from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.search.results import Cell, Final, Results
from promptvit.study.scale import reading, scale_of, scale_plan, scale_table

FINAL = Final(
    seed=0,
    val_top1=0.5,
    test_top1=0.5,
    trained_parameters=1,
    trained_percent=1.0,
    delta_bytes=1,
    seconds=1.0,
    folder="",
)


def cell(method, images, draw, accuracy, done=True):
    finals = (dataclasses.replace(FINAL, test_top1=accuracy),) if done else ()
    return Cell(
        task="one",
        group="",
        backbone="b",
        method=f"{method} @ {images} images, draw {draw}",
        fields={},
        settings={"data.images": images, "data.seed": draw},
        finals=finals,
        planned_finals=1,
    )


def curve(*cells):
    return Results(name="scale", protocol={}, cells=cells)


def test_the_curve_is_the_mean_over_draws_and_crosses_between_sizes():
    found = scale_of(
        curve(
            *(cell("vpt", 100, draw, 0.6 + 0.01 * draw) for draw in range(3)),
            *(cell("full", 100, draw, 0.5) for draw in range(3)),
            *(cell("vpt", 10_000, draw, 0.6) for draw in range(3)),
            *(cell("full", 10_000, draw, 0.71) for draw in range(3)),
        )
    )
    assert found is not None
    assert found.sizes[0].gaps(found.ways) == pytest.approx((10, 11, 12))
    assert found.crosses == pytest.approx(1000)  # 11 up, 11 down: halfway in log10
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1000 < found.high
    assert found.share == 1.0
    assert scale_table(found).splitlines()[2] == "| 100 images | 61.0 ± 1.0 | 50.0 ± 0.0 | +11.0 ± 1.0 |"
    assert reading(found).startswith(
        "vpt leads by 11.0 points at 100 images and trails by 11.0 points at 10000 images, against full. "
        "The two first cross at about 1,000 images (95 % of resampled draws that cross: 896 to 1,105)"
    )


def test_one_draw_has_no_share_that_crosses():
    few, many = ((cell("vpt", size, 0, at), cell("full", size, 0, 0.5)) for size, at in ((100, 0.6), (10_000, 0.4)))
    found = scale_of(curve(*few, *many))
    assert found is not None
    assert reading(found).endswith("first cross at about 1,000 images. One draw of images says nothing of chance.")


def test_a_size_that_is_not_whole_waits():
    cells = [cell("vpt", 100, 0, 0.5), cell("full", 100, 0, 0.4), cell("vpt", 200, 0, 0.5)]
    found = scale_of(curve(*cells, cell("full", 200, 0, 0.4, done=False)))
    assert found is not None
    assert [size.images for size in found.sizes] == [100]
    assert reading(found).endswith("One draw of images says nothing of chance.")
    assert scale_of(curve(cells[0])) is None
    assert scale_of(curve(dataclasses.replace(cells[0], settings={}))) is None


def test_the_plan_leaves_out_what_the_task_lacks(digits_folder, small_protocol):
    data, backbone = DataConfig(source=str(digits_folder)), BackboneSource(name="vit_pico", image_size=16)
    plan, left_out = scale_plan(
        "scale", data, backbone, ("vpt-deep", "full"), small_protocol, sizes=(5, 20, 40, 5000), shots=(1, 90), draws=2
    )
    assert left_out == ("90-shot, 540 images", "5 images", "5,000 images")
    labels = [row.label for row in plan.rows]
    assert labels[:3] == [
        "vpt-deep @ 1-shot, 6 images, draw 0",
        "full @ 1-shot, 6 images, draw 0",
        "vpt-deep @ 1-shot, 6 images, draw 1",
    ]
    assert len(labels) == 3 * 2 * 2
    assert plan.rows[-1].settings == {"data.images": 40, "data.seed": 1}
    for cell_plan in plan.cells():
        config = cell_plan.config(cell_plan.points()[0], seed=0, final=False)
        assert (config.data.images is None) != (config.data.shots is None)
    with pytest.raises(ConfigError, match="expected sizes from 6 to 80"):
        scale_plan("scale", data, backbone, ("vpt-deep", "full"), small_protocol, sizes=(5000,))
    with pytest.raises(ConfigError, match="two methods or more"):
        scale_plan("scale", data, backbone, ("full",), small_protocol)
