"""What made a result: protocol, configuration, command, versions and machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptvit.report.markup import Markup, tag
from promptvit.report.numbers import MISSING, Number, plain, short
from promptvit.report.tables import as_yaml, code, facts, fold


def command(line: str) -> Markup:
    """The command as it was typed."""
    attributes = {"class": "command", "role": "group", "aria-label": "The command"}
    return (
        tag("pre", attributes, tag("code", {}, line)) if line else tag("p", {}, "Not known: it was made from Python.")
    )


def values(title: str, content: Any, *, is_open: bool = False) -> Markup:
    """Nested values as YAML, whole."""
    return fold(title, code(as_yaml(content), title), is_open=is_open)


def environment(parts: Mapping[str, Any]) -> Markup:
    """Commit, versions and machine, or whatever else is known of where a run was made; mappings in it laid flat."""
    flat: dict[str, Any] = {}
    for name, value in parts.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return facts({name: plain(value) if value not in ("", None) else MISSING for name, value in flat.items()})


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """The protocol of a run, a sentence each."""
    test, backbone, protocol = summary["result"]["test"], summary["backbone"], summary["protocol"]
    sentences = [
        f"Method {summary['method']['name']} on {backbone['name']}, of {short(backbone['parameters'])} parameters "
        f"(fingerprint {backbone['fingerprint'][:12]}).",
        _training(summary),
        _reading(protocol["preprocessing"], summary["config"]["data"]["augment"]),
        f"The weights are those of the {protocol['selection']}.",
        "There are no test images." if test is None else f"Test images, {test['images']:,}: {protocol['test']}.",
    ]
    if protocol["train_on"] == "train+val":
        sentences.append("Validation images were trained on, so their accuracy says nothing.")
    return sentences


def _training(summary: Mapping[str, Any]) -> str:
    train, images = summary["config"]["train"], summary["task"]["images"]
    accumulated = f", {train['accumulate']} for an update" if train["accumulate"] > 1 else ""
    return (
        f"Trained for {counted(train['epochs'], 'epoch')} on {counted(images['train'], 'image')} "
        f"({summary['protocol']['train_on']}) in batches of {train['batch_size']}{accumulated}: {train['optimizer']}, "
        f"learning rate at most {plain(summary['protocol']['learning_rate'])}, {train['schedule']} after "
        f"{counted(train['warmup_epochs'], 'epoch')} of warm-up, seed {train['seed']}."
    )


def _reading(read: Mapping[str, Any], augment: str) -> str:
    height, width = read["size"]
    return (
        f"Images are read as {height} by {width} pixels ({read['geometry']}, {read['interpolation']}), normalised by "
        f"the mean {plain(read['mean'])} and the deviation {plain(read['std'])}. Augmentation: {augment}."
    )


def counted(count: Number, what: str) -> str:
    """`1 epoch`, `10 epochs`, `0.5 epochs`."""
    return f"{count:,.10g} {what}{'' if count == 1 else 's'}"
