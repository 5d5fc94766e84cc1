from importlib.metadata import EntryPoint

import pytest

import promptvit.registry
from promptvit.errors import UnknownNameError
from promptvit.registry import Registry, nearest, unknown


@pytest.fixture
def fruits():
    registry = Registry("fruit", "All names: `promptvit fruits`", group="promptvit.fruits")
    registry.register("apple", 1)
    registry.register("pear", 2)
    return registry


@pytest.fixture
def plugins(monkeypatch):
    """Entry points of other packages; the test fills the list."""
    found = []
    monkeypatch.setattr(promptvit.registry, "entry_points", lambda group: [p for p in found if p.group == group])
    return found


def test_it_is_a_mapping_in_order_of_registration(fruits):
    assert dict(fruits) == {"apple": 1, "pear": 2}
    assert list(fruits) == ["apple", "pear"]
    assert (len(fruits), "pear" in fruits, "plum" in fruits) == (2, True, False)


def test_a_name_can_be_taken_once(fruits):
    with pytest.raises(AssertionError, match="fruit 'pear' is registered already"):
        fruits.register("pear", 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aple", "unknown fruit 'aple'. Did you mean apple or pear? All names: `promptvit fruits`"),
        ("APPLES", "unknown fruit 'APPLES'. Did you mean apple? All names: `promptvit fruits`"),
        ("zzz", "unknown fruit 'zzz'. All names: `promptvit fruits`"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(fruits, name, message):
    with pytest.raises(UnknownNameError) as caught:
        fruits[name]
    assert str(caught.value) == message


def test_the_nearest_names_come_best_first():
    known = ["vit_base_patch16", "vit_base_patch32", "resnet50", "ViT_Large"]
    assert nearest("vit_base_patch6", known)[0] == "vit_base_patch16"
    assert nearest("vit_large", known, count=1) == ["ViT_Large"]
    assert nearest("qqq", known) == []
    assert "Did you mean resnet50?" in str(unknown("model", "resnet5", known, ""))


def test_other_packages_add_names_through_entry_points(fruits, plugins):
    plugins.append(EntryPoint("pi", "math:pi", "promptvit.fruits"))
    plugins.append(EntryPoint("tau", "math:tau", "promptvit.other"))
    assert fruits["pi"] == pytest.approx(3.14159, abs=1e-5)
    assert list(fruits) == ["apple", "pear", "pi"]


def test_a_plugin_does_not_replace_a_name(fruits, plugins):
    plugins.append(EntryPoint("apple", "math:pi", "promptvit.fruits"))
    assert (fruits["apple"], dict(fruits)["apple"]) == (1, 1)


def test_what_it_lists_it_contains(fruits, plugins):
    plugins.append(EntryPoint("pi", "math:pi", "promptvit.fruits"))
    assert "pi" in fruits
    assert len(fruits) == len(list(fruits)) == 3
