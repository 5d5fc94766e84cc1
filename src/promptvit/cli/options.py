"""Options from config classes: `--train.epochs 5` sets a field, its text is the field's line in the class docstring."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse
import yaml

from promptvit.errors import ConfigError
from promptvit.registry import nearest, unknown

SHORT = {
    "--data": "--data.source",
    "--backbone": "--backbone.name",
    "--method": "--method.name",
    "--method.prompts": "--method.prompts.name",
}
"""`--data X` is short for `--data.source X`, in config files too."""


def make_parser(verb: str, description: str, positional: str = "") -> jsonargparse.ArgumentParser:
    """A parser for `promptvit VERB` that raises on wrong usage."""
    return jsonargparse.ArgumentParser(
        prog=f"promptvit {verb}",
        usage=f"promptvit {verb} {positional}[OPTIONS]",
        description=description,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )


def add_fields(parser: jsonargparse.ArgumentParser, prefix: str, config: type, fixed: Sequence[str] = ()) -> None:
    """An option `--prefix.field` for every field of the dataclass `config` but the `fixed` ones; `--field` without a
    prefix."""
    group = parser.add_argument_group(prefix or "settings")
    hints, texts = get_type_hints(config), field_texts(config)
    for field in dataclasses.fields(config):
        if field.name not in fixed:
            default: Any = {} if field.default is dataclasses.MISSING else {"default": field.default}
            group.add_argument(
                f"--{prefix}.{field.name}" if prefix else f"--{field.name}",
                type=hints[field.name],
                required=not default,
                **default,
                metavar=field.name.upper(),
                help=texts.get(field.name, "").replace("%", "%%"),
            )


def field_texts(config: type) -> dict[str, str]:
    """What the bulleted lines of a class docstring say of each field."""
    texts = {}
    for bullet in re.split(r"\n- ", "\n" + (inspect.getdoc(config) or ""))[1:]:
        text = " ".join(bullet.split("\n\n")[0].split())
        name = re.match(r"`(\w+)`:? ?", text)
        if name:
            texts[name[1]] = text[name.end() :].replace("`", "")
    return texts


def parse(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """The options as nested plain values; raises ConfigError, and exits after `--help`."""
    try:
        return parser.parse_args(list(arguments)).as_dict()
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        raise ConfigError(_one_line(str(error), parser), fix=f"Options: {parser.prog} --help") from None


def _one_line(message: str, parser: jsonargparse.ArgumentParser) -> str:
    no_option = re.match(r"unrecognized arguments: (--?[\w.-]+)", message, re.IGNORECASE)
    if no_option:
        known = [option for action in parser._actions for option in action.option_strings]
        close = nearest(no_option[1], known, count=1)
        return f"unknown option {no_option[1]}" + (f"; did you mean {close[0]}?" if close else "")
    key = re.match(r'Parser key "([\w.]+)"', message)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    types = re.findall(r"Expected an? (<class '[\w.]+'>|typing\.Literal\[.*?\])", message)
    if key and value and types:
        expected = " or ".join(re.sub(r"<class '|'>|typing\.Literal|[\[\]']", "", kind) for kind in types)
        plain = expected.replace("NoneType", "null").replace("collections.abc.Sequence", "a list such as [1, 2]")
        return f"--{key[1]} {value[1]}; expected {plain}"
    return " ".join(message.split())


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments with config files and short forms written out, files first: what stands later wins.

    Another method than the file's leaves the file's method options behind.
    """
    from_files: list[str] = []
    typed: list[str] = []
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name == "--config":
            path = value if equals else rest.pop(0) if rest else ""
            from_files += _from_file(Path(path))
        else:
            typed.append(f"{SHORT.get(name, name)}{equals}{value}")
    method = option_value(typed, "--method.name")
    if method not in (None, option_value(from_files, "--method.name")):
        left = [argument for argument in from_files if argument.startswith("--method.")]
        if left:
            note(f"--method {method}: leaving out what the config file says of its method: {' '.join(left)}")
        from_files = [argument for argument in from_files if argument not in left]
    return without_replaced_parts([*from_files, *typed])


def without_replaced_parts(arguments: Sequence[str]) -> list[str]:
    """The arguments without what a later one replaces: options of a part, such as `--method.kv.length`, before
    `--method.kv null` or another `--method.prompts.name`; and that null before options of the part."""
    kept: list[str] = []
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        value = value if equals else next(iter(arguments[position + 1 :]), "")
        part = option.removesuffix(".name")
        emptied = value == "null" and option.startswith("--")
        renamed = option.endswith(".name") and option_value(kept, option) not in (None, value)
        if part.count(".") > 0 and (emptied or renamed):
            kept = without(kept, f"{part}.")
        outer = option.rpartition(".")[0]
        if outer.count(".") > 0:
            for null in (outer, f"{outer}.name"):
                kept = without(kept, null) if option != null and option_value(kept, null) == "null" else kept
        kept.append(argument)
    return kept


def without(arguments: Sequence[str], beginning: str) -> list[str]:
    """The arguments but those options, with their values, that begin so."""
    kept, skips = [], False
    for argument in arguments:
        if argument.startswith(beginning):
            skips = "=" not in argument
        elif skips and not argument.startswith("--"):
            skips = False
        else:
            kept, skips = [*kept, argument], False
    return kept


def option_value(arguments: Sequence[str], name: str) -> str | None:
    """The last value of option `name` among `arguments`, before anything is parsed."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
    return found


def _from_file(path: Path) -> list[str]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path} cannot be read: {reason}", expected="a YAML file") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} holds no mapping", expected="data:, backbone:, method: or train:")
    for key in ("config", *(key for key in ("data", "backbone", "method", "train") if values.get(key, {}) is None)):
        if key in values:
            raise ConfigError(f"--config {path}: `{key}: {values[key]}` says nothing", fix="Fill it, or leave it out")
    return [argument for key, value in values.items() for argument in flatten(f"--{key}", value)]


def flatten(name: str, value: Any) -> list[str]:
    """A value, or nested values, as options: `--train.epochs=5`."""
    if isinstance(value, dict):
        return [argument for key, inner in value.items() for argument in flatten(f"{name}.{key}", inner)]
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()
    return [f"{SHORT.get(name, name)}={text}"]


def run_part(verb: str, parts: Mapping[str, str], arguments: Sequence[str], positional: str = "...") -> None:
    """Run the part of `verb` that the first argument names, a module `VERB_PART` with a function `run`; or show what
    there is: the names of `parts` and their help."""
    name, *rest = arguments or [""]
    more = f"promptvit {verb} --help"
    if name in ("-h", "--help"):
        width = max(map(len, parts))
        lines = "\n".join(f"  {part:<{width}}  {text}" for part, text in parts.items())
        usage = f"usage: promptvit {verb} WHAT {positional} [OPTIONS]"
        print(f"{usage}\n\nwhat:\n{lines}\n\nMore: promptvit {verb} WHAT --help")
    elif not name:
        raise ConfigError("no WHAT", expected=", ".join(parts), fix=more)
    elif name not in parts:
        raise unknown("WHAT", name, parts, f"All: {more}")
    else:
        import_module(f"promptvit.cli.{verb}_{name}").run(rest)


def command_line(verb: str, arguments: Sequence[str]) -> str:
    """The command as typed, for the record."""
    return shlex.join(["promptvit", verb, *arguments])


def note(message: str) -> None:
    """A line for the person at the terminal: to stderr, so that stdout stays clean."""
    print(message, file=sys.stderr)
