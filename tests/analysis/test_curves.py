import dataclasses
import json
import math

import numpy as np
import pytest

from promptvit.analysis.curves import Curves, overfitting, read_rows, reading, smoothed
from promptvit.errors import ConfigError, DataError


def rows_of(val_loss, val_top1=None):
    count = len(val_loss)
    tops = np.linspace(0.1, 0.5, count) if val_top1 is None else val_top1
    return [
        {"epoch": place + 1, "train_loss": 2 / (place + 1), "train_top1": 0.9, "val_loss": loss, "val_top1": top}
        for place, (loss, top) in enumerate(zip(val_loss, tops, strict=True))
    ]


def valley(epochs, at=0.4, rise=0.2):
    """Falls until the share `at` of the epochs, then rises to `rise` above the minimum."""
    low = round(at * epochs)
    return [*np.linspace(2, 1, low), *np.linspace(1, 1 + rise, epochs - low + 1)[1:]]


@pytest.mark.parametrize("epochs", [2, 5, 10, 20, 100])
def test_a_falling_curve_does_not_overfit(epochs):
    found = overfitting(rows_of(np.geomspace(2, 0.1, epochs)))
    assert (found.best_epoch, found.rise, found.overfits) == (epochs, 0, False)


@pytest.mark.parametrize("epochs", [5, 10, 20, 100])
def test_a_curve_that_rises_by_a_fifth_after_40_percent_overfits(epochs):
    found = overfitting(rows_of(valley(epochs)))
    assert found.best_epoch == pytest.approx(0.4 * epochs, abs=max(1, epochs // 20))
    assert 0.15 < found.rise <= 0.2 + 1e-9  # a sharp minimum is smoothed
    assert found.overfits is True


@pytest.mark.parametrize(
    ("at", "rise", "overfits"),
    [(0.4, 0.04, False), (0.4, 0.06, True), (0.7, 0.06, True), (0.8, 0.2, False), (0.9, 0.2, False)],
)
def test_both_the_place_and_the_rise_count(at, rise, overfits):
    assert overfitting(rows_of(valley(10, at, rise))).overfits is overfits


def test_noise_of_single_epochs_is_smoothed():
    losses = np.linspace(2, 1, 100)
    losses[30] = 0.5
    found = overfitting(rows_of(losses))
    assert found.best_epoch > 80
    assert not found.overfits


def test_smoothing_is_the_mean_of_the_neighbours():
    values = np.random.default_rng(0).uniform(size=45)
    expected = [np.mean([values[i] for i in range(at - 2, at + 3) if 0 <= i < 45]) for at in range(45)]
    np.testing.assert_allclose(smoothed(values), expected)
    assert np.array_equal(smoothed(values[:19]), values[:19])


def test_gaps_area_and_speed():
    found = overfitting(rows_of([1.0, 0.8, 0.7, 0.9], [0.2, 0.5, 0.58, 0.6]))
    assert (found.epochs, found.first_train_loss, found.last_train_loss) == (4, 2.0, 0.5)
    assert found.gap == pytest.approx(0.4)
    assert found.accuracy_gap == pytest.approx(0.3)
    assert found.best_top1 == 0.6
    assert found.reached == 3  # 0.57 is enough
    assert found.area == pytest.approx(0.47)
    assert Curves(**json.loads(json.dumps(found.to_dict()))) == found


def test_a_single_epoch_and_images_that_were_trained_on_say_nothing_of_overfitting():
    single = overfitting(rows_of([1.0]))
    assert (single.epochs, single.best_epoch, single.rise, single.overfits, single.reached) == (1, 1, 0, None, 1)
    assert reading(single) == "A single epoch: there is no curve to read."
    trained = overfitting(rows_of(valley(10)), held_out=False)
    assert trained.overfits is None
    assert trained == dataclasses.replace(overfitting(rows_of(valley(10))), overfits=None)
    assert reading(trained).endswith("were trained on, so their loss says nothing of overfitting.")


def test_a_loss_of_zero_is_no_division():
    found = overfitting(rows_of([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]))
    assert (found.rise, found.overfits, found.reached, found.best_top1) == (0, False, 1, 0)
    assert overfitting(rows_of([1.0, 0.0, 1e-9])).overfits is False


def test_the_reading_says_what_the_figures_say():
    text = reading(overfitting(rows_of(valley(10), [0.3] * 9 + [0.95])))
    assert text == (
        "Training loss falls from 2 to 0.2, validation loss has its minimum at epoch 4 of 10 and ends 20 % above: "
        "it overfits. 95 % of the best validation accuracy (95.0 %) is there after epoch 10; at the end validation is "
        "5.0 points above training."
    )
    assert "at epoch 3 of 3 and ends there: it does not overfit. " in reading(overfitting(rows_of([3.0, 2.0, 1.0])))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["val_loss", "train_loss", "val_top1"])
def test_values_that_are_not_finite_are_named(name, value):
    rows = rows_of([1.0, 2.0, 3.0])
    rows[1][name] = value
    with pytest.raises(DataError, match=f"{name} is {value} at epoch 2; expected numbers"):
        overfitting(rows)


def test_what_is_missing_is_refused(tmp_path):
    with pytest.raises(DataError, match="no epochs; expected at least one"):
        overfitting([])
    rows = rows_of([1.0, 2.0])
    del rows[1]["val_loss"]
    with pytest.raises(DataError, match="rows without 'val_loss'"):
        overfitting(rows)
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl; expected the folder of a run"):
        read_rows(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1')
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        read_rows(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert read_rows(tmp_path) == [{"epoch": 1}, {"epoch": 2}]
