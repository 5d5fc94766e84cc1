"""Options of a method: its own fields, those of its parts, and those of a method inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import jsonargparse

from promptvit.cli.options import add_fields, field_texts, option_value
from promptvit.methods import METHODS


def add_method(
    parser: jsonargparse.ArgumentParser, name: str, arguments: Sequence[str], prefix: str = "method"
) -> None:
    """An option for every field that the registered `name` leaves open; `arguments` say what parts there are."""
    preset = METHODS[name]
    parts = {field: kind for field, kind in _parts(preset.method).items() if field not in preset.fields}
    add_fields(parser, prefix, preset.method, fixed=(*preset.fields, *parts))
    defaults, texts = preset.build(), field_texts(preset.method)
    for field, kind in parts.items():
        option, default = f"--{prefix}.{field}", getattr(defaults, field)
        if field in preset.method.inner:
            typed = option_value(arguments, f"{option}.name")
            chosen = None if typed == "null" else typed or default.kind
            parser.add_argument(
                f"{option}.name", type=str | None, default=default.kind, help=texts[field].replace("%", "%%")
            )
            if chosen is not None:
                add_method(parser, chosen, arguments, f"{prefix}.{field}")
        elif _given(arguments, option, default):
            add_fields(parser, f"{prefix}.{field}", kind)
        else:
            parser.add_argument(option, type=str | None, default=None, help=texts[field].replace("%", "%%"))


def _parts(config: type) -> dict[str, Any]:
    """Fields that are dataclasses, or null."""
    hints = get_type_hints(config)
    kinds = {
        field.name: next(filter(dataclasses.is_dataclass, get_args(hints[field.name])), None)
        for field in dataclasses.fields(config)
    }
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _given(arguments: Sequence[str], option: str, default: object) -> bool:
    """Whether the part of `option` is there: by what was typed last, or by default."""
    typed = [a for a in arguments if a.partition("=")[0] == option or a.startswith(f"{option}.")]
    return default is not None if not typed else typed[-1].startswith(f"{option}.")
