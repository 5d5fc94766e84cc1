"""`promptvit cost`: what methods would cost here, before they are trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from promptvit.analysis.cost import Cost, TaskSize, estimate_cost
from promptvit.backbones.source import BackboneSource
from promptvit.cli.options import add_fields, expand, make_parser, note, option_value, parse, without
from promptvit.cli.studies import clock
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.train.config import RunConfig, TrainConfig

if TYPE_CHECKING:
    import jsonargparse

METHODS = "linear,vpt-deep,full"
LEGEND = """
trained: parameters, head included; tuned: share of all parameters of the tuned model; delta: file size (all exact)
memory: peak of the process, or of CUDA's allocator; epoch: training and validation; last: from the command to its end
memory and times: predicted from a short run on a few images, each method in a process of its own"""


def run(arguments: list[str]) -> None:
    """Parse, probe each method, print."""
    if mentions(arguments, "--methods") and mentions(arguments, "--method"):
        raise ConfigError("--methods with --method", expected="several by name, or one with its options")
    if mentions(arguments, "--task") and mentions(arguments, "--data", "--data.source"):
        raise ConfigError("--task with --data", expected="one of the two: the size of a task, or a task")
    expanded = expand(arguments)
    several = mentions(expanded, "--methods") or option_value(expanded, "--method.name") is None
    expanded = without(expanded, "--method.") if several else expanded
    parser = make_cost_parser(expanded)
    values = parse(parser, expanded)
    methods = [{"name": name} for name in values["methods"].split(",")] if several else [values["method"]]
    configs = {method["name"]: RunConfig.from_dict({**values, "method": method}) for method in methods}
    size = TaskSize(**values["task"]) if mentions(expanded, "--task") else None

    from promptvit.train.loop import make_method  # after parsing: help needs no torch

    for config in configs.values():
        make_method(config)  # an unknown name is refused before any is probed
    costs = {name: cost_of(config, size, values["steps"], alone=not several) for name, config in configs.items()}
    print(json.dumps(plain(costs)) if values["json"] else table(costs, values))


def cost_of(config: RunConfig, size: TaskSize | None, steps: int, *, alone: bool) -> Cost | ConfigError:
    """The cost, or why there is none; a method that is `alone` raises that."""
    note(f"probing {config.method['name']}")
    try:
        return estimate_cost(config, size=size, steps=steps)
    except ConfigError as error:
        if alone:
            raise
        return error


def make_cost_parser(expanded: Sequence[str]) -> jsonargparse.ArgumentParser:
    """The options of `cost`; a method's own are there if one is named, and need its class, and so torch."""
    parser = make_parser(
        "cost",
        "What training would cost on this machine: parameters, delta size, peak memory and time, from a short run of "
        "each method on a few images of the task (--data), or on noise (--task.train 5000 ...).",
    )
    parser.add_argument("--config", help="a YAML file with any of these options, as a run has it; later options win")
    parser.add_argument(
        "--methods", default=METHODS, help=f"names between commas, each with its defaults (default: {METHODS})"
    )
    parser.add_argument("--method.name", default=None, help="or --method; one method, with its options")
    parser.add_argument("--steps", type=int, default=4, help="full batches in each epoch of the short run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    method = option_value(expanded, "--method.name")
    if method is not None:
        from promptvit.cli.method_options import add_method

        add_method(parser, method, expanded)
    for prefix, config in (
        ("task", TaskSize),
        ("data", DataConfig),
        ("backbone", BackboneSource),
        ("train", TrainConfig),
    ):
        add_fields(parser, prefix, config)
    return parser


def mentions(arguments: Sequence[str], *options: str) -> bool:
    """Whether one of `options` is among `arguments`, or a field of it."""
    names = [argument.partition("=")[0] for argument in arguments]
    return any(name == option or name.startswith(f"{option}.") for name in names for option in options)


def plain(costs: dict[str, Cost | ConfigError]) -> dict[str, Any]:
    """Values for JSON, by method."""
    return {
        name: {"refused": str(cost)} if isinstance(cost, ConfigError) else dataclasses.asdict(cost)
        for name, cost in costs.items()
    }


def table(costs: dict[str, Cost | ConfigError], values: dict[str, Any]) -> str:
    """The costs as lines."""
    width = max(map(len, [*costs, "method"]))
    all_epochs = f"{values['train']['epochs']} epochs"
    names = f"{'trained':>11}  {'tuned':>9}  {'delta':>11}  {'memory':>10}  {'epoch':>8}  {all_epochs:>10}"
    lines = [f"{'method':<{width}}  {names}"]
    for name, cost in costs.items():
        if isinstance(cost, ConfigError):
            lines.append(f"{name:<{width}}  {str(cost).partition(' (in tune)')[0]}")
            continue
        memory = "unknown" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**20:,.0f} MiB"
        lines.append(
            f"{name:<{width}}  {cost.trained_parameters:>11,}  {cost.trained_percent:>7.3f} %  "
            f"{cost.delta_bytes / 1024:>7,.0f} KiB  {memory:>10}  {cost.epoch_seconds:>6.2f} s  "
            f"{clock(cost.run_seconds):>10}"
        )
    return "\n".join([*headline(costs, values), *lines, LEGEND])


def headline(costs: dict[str, Cost | ConfigError], values: dict[str, Any]) -> list[str]:
    """What is trained on which images, where; nothing if no method can be had."""
    for cost in costs.values():
        if isinstance(cost, Cost):
            whole = cost.probe.whole
            images = ", ".join(f"{getattr(whole, split):,} {split}" for split in ("train", "val", "test"))
            batch = values["train"]["batch_size"]
            return [
                f"{values['backbone']['name']}, {whole.classes} classes, images: {images}; "
                f"batches of {batch} on {cost.probe.device}"
            ]
    return []
