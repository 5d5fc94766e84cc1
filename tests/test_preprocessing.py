import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptvit.errors import ConfigError
from promptvit.preprocessing import Preprocessing

sizes = st.integers(1, 1024)


@given(
    size=st.tuples(sizes, sizes),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "tf1-bilinear"]),
    geometry=st.sampled_from(["squash", "crop"]),
    crop_fraction=st.floats(0.1, 1.0),
)
def test_it_survives_json_and_stores_no_less_than_it_shows(**fields):
    preprocessing = Preprocessing(**fields)
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    assert all(isinstance(v, list | str | float | int) for v in preprocessing.to_dict().values())
    assert all(stored >= shown for stored, shown in zip(preprocessing.stored_size, preprocessing.size, strict=True))


def test_the_stored_size_leaves_room_for_the_crop():
    assert Preprocessing(size=(224, 224), geometry="crop").stored_size == (256, 256)
    assert Preprocessing(size=(224, 112), geometry="crop", crop_fraction=1.0).stored_size == (224, 112)
    assert Preprocessing(size=(224, 112)).stored_size == (224, 112)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", (0, 5), "at least 1 pixel"),
        ("size", (5,), "height and width"),
        ("std", (1.0, 0.0, 1.0), "values above 0"),
        ("crop_fraction", 0.0, r"in \(0, 1\]"),
        ("crop_fraction", 1.5, r"in \(0, 1\]"),
        ("geometry", "stretch", "expected one of squash, crop"),
        ("interpolation", "cubic", "expected one of nearest, bilinear"),
    ],
)
def test_a_value_that_means_nothing_is_refused(field, value, message, untyped):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(Preprocessing(size=(8, 8)), **{field: value})


def test_all_problems_are_said_at_once(untyped):
    with pytest.raises(ConfigError, match=r"size=.*std=.*crop_fraction=.*geometry="):
        Preprocessing(size=(0, 0), std=(0.0, 1.0, 1.0), crop_fraction=2.0, geometry="stretch")


@pytest.mark.parametrize("values", [{}, {"size": [8, 8], "colour": 1}])
def test_a_dict_with_other_keys_is_refused(values):
    with pytest.raises(ConfigError, match="expected the fields of Preprocessing"):
        Preprocessing.from_dict(values)
