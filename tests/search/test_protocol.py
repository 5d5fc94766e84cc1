import json

import pytest

from promptvit.errors import ConfigError
from promptvit.methods import METHODS
from promptvit.search.protocol import Protocol, Recipe
from promptvit.search.protocols import PROTOCOLS

VIT, SWIN, MAE, RESNET = "vit_base_patch16_224.orig_in21k", "swin_base_patch4_window7_224", "vit_base.mae", "resnet50"


def points_of(protocol, method, backbone, own_rate=1.0):
    return protocol.recipe(method, backbone).points(own_rate)


def rates_and_decays(points):
    return {(point["train.learning_rate"], point.get("train.weight_decay")) for point in points}


@pytest.mark.parametrize(
    ("protocol", "method", "backbone", "count"),
    [
        ("vpt", "full", VIT, 16),
        ("vpt", "partial-1", VIT, 16),
        ("vpt", "linear", VIT, 40),
        ("vpt", "linear", MAE, 52),
        ("vpt", "vpt-deep", VIT, 40),
        ("vpt", "vpt-shallow", VIT, 56),
        ("vpt", "full", RESNET, 32),
        ("vpt", "pixel-pad", RESNET, 36),
        ("vpt-fgvc", "full", RESNET, 16),
        ("vpt-fgvc", "vpt-deep", VIT, 36),
        ("vpt-fgvc", "linear", VIT, 40),
        ("e2vpt", "e2vpt", VIT, 40),
        ("e2vpt-fgvc", "e2vpt", VIT, 36),
    ],
)
def test_the_grids_of_rates_and_decays_are_as_large_as_the_papers(protocol, method, backbone, count):
    points = points_of(PROTOCOLS[protocol], method, backbone)
    assert len(rates_and_decays(points)) == count


def test_prompt_lengths_decide_the_batch_size_and_depend_on_the_backbone():
    points = points_of(PROTOCOLS["vpt"], "vpt-deep", VIT)
    assert len(points) == 6 * 40
    assert {(p["method.length"], p["train.batch_size"]) for p in points} == {
        *((length, 128) for length in (1, 5, 10, 50)),
        *((length, 64) for length in (100, 200)),
    }
    assert {p["method.length"] for p in points_of(PROTOCOLS["vpt"], "vpt-deep", SWIN)} == {1, 5, 10, 50}


def test_full_fine_tuning_of_the_fourth_paper_has_two_settings_for_each_rate():
    points = points_of(PROTOCOLS["vpt-or-ft"], "full", VIT)
    assert len(points) == 8
    assert {(p["train.optimizer"], p["train.weight_decay"]) for p in points} == {("adamw", 0.01), ("sgd", 0.0)}


def test_factors_are_of_the_methods_own_rate():
    points = points_of(PROTOCOLS["quick"], "vpt-deep", VIT, own_rate=0.005)
    assert [point["train.learning_rate"] for point in points] == [0.005 * (1 / 3), 0.005, 0.005 * 3.0]


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("full", {"train.weight_decay", "method.drop_path"}, 16),
        ("vpt-deep", {"train.weight_decay", "train.delta_weight_decay", "method.length"}, 24),
        ("vpt-fixed", {"train.weight_decay", "train.delta_weight_decay", "method.length"}, 24),
        ("mixed", {"train.weight_decay", "train.delta_weight_decay", "method.length"}, 24),
        ("lora", {"train.weight_decay", "method.rank"}, 24),
        ("linear", {"train.weight_decay"}, 8),
    ],
)
def test_the_fair_protocol_searches_what_each_strategy_has(method, settings, count):
    points = points_of(PROTOCOLS["fair"], method, VIT)
    assert set(points[0]) == {"train.learning_rate", *settings}
    assert len(points) == count
    assert len({point["train.learning_rate"] for point in points}) == 4


def test_the_fair_rates_of_mixed_weights_are_those_of_full():
    mixed = METHODS["mixed"].build()
    prompts = {
        point["train.learning_rate"] for point in points_of(PROTOCOLS["fair"], "mixed", VIT, mixed.learning_rate)
    }
    weights = sorted(rate * mixed.backbone_share for rate in prompts)
    full = sorted({point["train.learning_rate"] for point in points_of(PROTOCOLS["fair"], "full", VIT)})
    assert weights == pytest.approx(full, rel=0.11)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_protocol_survives_json(name):
    protocol = PROTOCOLS[name]
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert protocol.fgvc is None or protocol.fgvc in PROTOCOLS


def test_a_change_keeps_the_grids_that_have_the_values_and_is_written_down():
    protocol = PROTOCOLS["vpt"].change(
        settings={"train.epochs": 2}, grid={"method.length": (1, 5), "train.learning_rate": (5.0,)}, seeds=(42,)
    )
    points = points_of(protocol, "vpt-deep", VIT)
    assert len(points) == 2 * 4
    assert {point["train.batch_size"] for point in points} == {128}
    assert protocol.settings["train.epochs"] == 2
    assert protocol.changed == {
        "settings": {"train.epochs": 2},
        "grid": {"method.length": (1, 5), "train.learning_rate": (5.0,)},
        "seeds": (42,),
    }


def test_a_change_to_values_that_no_grid_has_takes_their_place():
    protocol = PROTOCOLS["quick"].change(grid={"train.learning_rate": (0.1, 0.2)})
    assert [p["train.learning_rate"] for p in points_of(protocol, "linear", VIT)] == [0.1, 0.2]
    fixed = PROTOCOLS["quick"].change(settings={"train.learning_rate": 0.3})
    assert points_of(fixed, "linear", VIT) == [{}]


def test_peeking_is_flagged():
    assert PROTOCOLS["vpt"].flags == ()
    assert PROTOCOLS["spt"].change(epoch="best-test").flags == ("compat_peek",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"settings": {"epochs": 3}}, "setting 'epochs'"),
        ({"recipes": (Recipe(grids=({"trains.epochs": (3,)},)),)}, "setting 'trains.epochs'"),
        ({"epoch": "best"}, "epoch='best'"),
        ({"retrain": "all"}, "retrain='all'"),
        ({"seeds": ()}, "seeds="),
        ({"seeds": (1, 1)}, "seeds="),
        ({"epoch": "best-val", "retrain": "train+val"}, "validation images are training images"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_means_nothing_is_refused(fields, message):
    with pytest.raises(ConfigError, match="protocol mine") as error:
        Protocol(name="mine", source="", **fields)
    assert message in str(error.value)


def test_a_method_without_a_recipe_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="no recipe for spt-deep"):
        points_of(PROTOCOLS["vpt"], "spt-deep", VIT)


def test_a_single_name_in_yaml_is_not_its_letters():
    """`vpt-*` has a star among its letters, which would be every method."""
    values = {"methods": "vpt-*", "settings": {}, "grids": [{"train.optimizer": "adamw"}]}
    protocol = Protocol.from_dict({"name": "mine", "source": "", "recipes": [values], "seeds": 3})
    assert protocol.recipes[0].methods == ("vpt-*",)
    assert points_of(protocol, "vpt-deep", VIT) == [{"train.optimizer": "adamw"}]
    assert protocol.seeds == (3,)


def test_the_last_change_counts_and_can_be_made_again():
    rate = "train.learning_rate"
    first, second = {"grid": {rate: (1.0, 2.0)}}, {"settings": {rate: 3.0}}
    changed = PROTOCOLS["quick"].change(**first).change(**second)
    assert changed.changed == second
    assert points_of(PROTOCOLS["quick"].change(**changed.changed), "linear", VIT) == [{}]
    back = changed.change(**first)
    assert back.changed == first
    assert rate not in back.settings
    with pytest.raises(ConfigError, match="both fixed and searched"):
        PROTOCOLS["quick"].change(settings={rate: 1.0}, grid={rate: (1.0,)})


@pytest.mark.parametrize("name", ["train.seed", "data.train_on", "data.source", "train.test", "backbone.name"])
def test_what_the_study_decides_is_no_setting(name):
    with pytest.raises(ConfigError, match="it is decided by"):
        PROTOCOLS["quick"].change(settings={name: 1})


def test_batches_and_steps_are_those_of_the_spec():
    def batch(protocol, method, backbone):
        recipe = PROTOCOLS[protocol].recipe(method, backbone)
        return recipe.settings["train.batch_size"]

    assert batch("vpt", "partial-1", RESNET) == 2048
    assert batch("vpt", "full", RESNET) == 384
    assert [batch("e2vpt-fgvc", "e2vpt", name) for name in (VIT, SWIN, "vit_base.moco_v3")] == [128, 80, 64]
    assert PROTOCOLS["vpt-or-ft"].recipe("full", VIT).settings["train.adam_epsilon"] == 1e-6
