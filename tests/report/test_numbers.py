import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from promptvit.report import numbers


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1133, 2000), (1, 1)])
def test_intervals_are_those_of_scipy(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert numbers.wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (numbers.percent, 0.5665, "56.6 %"),
        (numbers.percent, None, numbers.MISSING),
        (numbers.short, 0, "0"),
        (numbers.short, 999, "999"),
        (numbers.short, 1_204_608, "1.2 M"),
        (numbers.short, 999_950, "1 M"),
        (numbers.short, 141_593_856, "142 M"),
        (numbers.size, 900, "900 bytes"),
        (numbers.size, 32_500, "31.7 KiB"),
        (numbers.size, 4_818_432, "4.6 MiB"),
        (numbers.size, 1000 * 1024, "1000 KiB"),
        (numbers.duration, 0.123, "0.12 s"),
        (numbers.duration, 59.7, "1 min 0 s"),
        (numbers.duration, 7500, "2 h 5 min"),
        (numbers.plain, None, "null"),
        (numbers.plain, True, "true"),
        (numbers.plain, 0.1 + 0.2, "0.3"),
        (numbers.plain, 1e-08, "1e-08"),
        (numbers.plain, [1, "a"], "[1, a]"),
        (numbers.plain, {"a": 0.5}, "{a: 0.5}"),
    ],
)
def test_numbers_are_short(show, value, expected):
    assert show(value) == expected


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_reach_around_the_values(low, span):
    found = numbers.ticks(low, low + span)
    assert 2 <= len(found) <= 8
    assert found == sorted(found)
    assert found[0] <= low + 1e-6 * (abs(low) + span)
    assert found[-1] >= low + span - 1e-6 * (abs(low) + span)


@given(st.floats(1e-9, 1e9), st.floats(1, 1e9))
def test_logarithmic_ticks_reach_around_the_values(low, factor):
    found = numbers.log_ticks(low, low * factor)
    assert 2 <= len(found) <= 12
    assert found == sorted(found)
    assert found[0] <= low * 1.001
    assert found[-1] >= low * factor * 0.999


@given(st.integers(0, 50), st.integers(0, 400))
def test_whole_ticks_begin_at_the_first(low, span):
    found = numbers.whole_ticks(low, low + span)
    assert found[0] == low
    assert found[-1] <= low + span
    assert len(found) <= 9
    assert all(isinstance(tick, int) for tick in found)


@given(st.text(), st.floats(1, 30))
def test_what_is_too_long_ends_with_an_ellipsis(name, room):
    shown = numbers.fitted(name, room)
    assert shown == name or (shown.endswith("…") and name.startswith(shown[:-1]))
    assert numbers.width(shown) <= max(room, 1.0) + 1e-9
    assert math.isfinite(numbers.width(name))
