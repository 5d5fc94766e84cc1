import inspect

import pytest

import promptvit

PUBLIC = [name for name in promptvit.__all__ if name != "__version__"]


def test_all_is_sorted_complete_and_importable(run_python):
    assert sorted(promptvit.__all__) == promptvit.__all__ or sorted(promptvit.__all__, key=_ruff) == promptvit.__all__
    assert set(promptvit.__all__) <= set(dir(promptvit))
    assert set(promptvit.__all__) == set(promptvit._HOMES)
    namespace = {}
    exec("from promptvit import *", namespace)
    assert set(promptvit.__all__) <= set(namespace)


def _ruff(name):
    """The order that ruff keeps: constants, classes, then the rest."""
    return (not name.isupper(), not name[0].isupper(), name)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_lives_where_the_table_says_and_is_described(name):
    thing = getattr(promptvit, name)
    assert thing.__module__ == f"promptvit.{promptvit._HOMES[name]}"
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and inspect.isfunction(value):
                assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'promptvit' has no attribute 'VTP'"):
        promptvit.VTP  # noqa: B018
    assert promptvit.__version__.count(".") == 2


def test_importing_it_is_quick(run_python):
    heavy = "{'torch', 'timm', 'numpy', 'sklearn', 'accelerate', 'jaxtyping'}"
    assert run_python(f"import sys, promptvit; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_type_checker_and_the_program_see_the_same_names():
    source = inspect.getsource(promptvit)
    for name, home in promptvit._HOMES.items():
        line = next(line for line in source.splitlines() if line.startswith(f"    from promptvit.{home} import "))
        assert name in line.partition(" import ")[2].split(", ")
