"""Whether plain values, of YAML or of a command line, are of the types that fields of a run have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from promptvit.backbones.source import BackboneSource
from promptvit.data.config import DataConfig
from promptvit.registry import nearest
from promptvit.search.protocol import Scalar, Settings
from promptvit.train.config import TrainConfig

PARTS: dict[str, type] = {"backbone": BackboneSource, "data": DataConfig, "train": TrainConfig}
"""Classes of the parts of a run, beside its method."""


@cache
def field_types(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    found = get_type_hints(kind)
    return {each.name: found[each.name] for each in dataclasses.fields(kind)}


def wrong_types(prefix: str, kind: type, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with names and types of fields of `kind`: dataclasses do not look, and `"False"` would be true."""
    types = field_types(kind)
    return [
        f"{prefix}{name}: no such field{_meant(prefix, name, types)}"
        if name not in types
        else f"{prefix}{name}={value!r}: expected {_type_name(types[name])}"
        for name, value in values.items()
        if name not in types or not _is_of(value, types[name])
    ]


def wrong_settings(method: type, settings: Settings) -> list[str]:
    """What is wrong with names and types of settings of a run with a `method`, by their dotted names.

    Ranges are checked by the classes that the fields belong to; names of groups by `setting_problems`.
    """
    problems = []
    for name, value in settings.items():
        part, _, path = name.partition(".")
        field, dot, _ = path.partition(".")
        if part == "method" or part in PARTS:
            problems += wrong_types(f"{part}.", PARTS.get(part, method), {field: {} if dot else value})
    return problems


def _meant(prefix: str, name: str, known: Mapping[str, Any]) -> str:
    close = nearest(name, known, count=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value of YAML or of a command line can be of a type; what is nested is not looked into."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str)  # the class says which
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return hint is Any or not isinstance(value, get_args(Scalar))


def is_integer(hint: Any) -> bool:
    """Whether an integer of this type is one, rather than a float that was written without a point."""
    return float not in (hint, *get_args(hint))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_type_name, get_args(hint)))
    return {bool: "true or false", type(None): "null"}.get(hint, getattr(hint, "__name__", str(hint)))
