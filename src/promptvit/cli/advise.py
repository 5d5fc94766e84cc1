"""`promptvit advise`: prompts, full fine-tuning, LoRA-class or linear for your images, and what says so."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptvit.backbones.source import BackboneSource
from promptvit.cli.options import add_fields, command_line, expand, make_parser, note, parse
from promptvit.cli.studies import numbers, pairs, run_study, scalar
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.study.facts import Kind
from promptvit.train.config import Device

if TYPE_CHECKING:
    import jsonargparse

    from promptvit.study.advise import Advice, Situation
    from promptvit.study.bakeoff import Truth

CALIBRATION = Path("runs", "calibration.jsonl")
DECIDED = ("normalisation", "augment", "train_on", "workers", "interpolation", "crop_fraction", "geometry")
"""Fields of the data that the protocol decides, or that change nothing here."""
DRAWN = ("images", "shots", "seed")
"""Fields of the data that choose images: bake-offs that differ in these are studies of their own."""


def run(arguments: list[str]) -> None:
    """Parse, look, advise, and run the bake-off if asked to."""
    parser = make_advise_parser()
    values = parse(parser, expand(arguments))
    if values["rules"]:
        print(rules_table())
        return
    data, backbone = DataConfig(**values["data"]), BackboneSource.from_dict(values["backbone"])

    from promptvit.analysis.feature_stats import FeatureStats  # after parsing: help needs no torch
    from promptvit.study.advise import Budget, advise_on
    from promptvit.study.calibration import read_records
    from promptvit.study.gather import gather

    file = Path(values["calibration"]) if values["calibration"] else CALIBRATION
    if values["calibration"] and not file.exists() and not values["verify"]:
        raise ConfigError(f"--calibration {file} does not exist", expected="a file of earlier studies")
    own = read_records(file) if file.exists() else ()
    reference = FeatureStats.read(values["reference"]) if values["reference"] else None
    situation = gather(data, backbone, kind=values["kind"], reference=reference, look=values["look"])
    advice = advise_on(situation, Budget(parameters=values["max_parameters"], bytes=values["max_bytes"]), own)
    found = (
        verify(values, data, backbone, situation, advice, command_line("advise", arguments))
        if values["verify"]
        else None
    )
    if values["json"]:
        shown = {"situation": dataclasses.asdict(situation), "advice": advice.to_dict()}
        print(json.dumps({**shown, "truth": None if found is None else found.to_dict()}))
    else:
        print(describe(situation, advice, found))


def make_advise_parser() -> jsonargparse.ArgumentParser:
    """The options of `advise`."""
    parser = make_parser(
        "advise",
        "Prompts, full fine-tuning, LoRA-class or linear: what published studies and your own say of a task like "
        "yours, how sure that is, and the command that decides it.",
    )
    parser.add_argument("--kind", type=Kind, default="auto", help="what labels mean; auto goes by the classes' names")
    parser.add_argument("--look", type=int, default=1000, help="training images that are looked at; 0: none")
    parser.add_argument("--reference", type=str | None, default=None, help="statistics of the pretraining images")
    parser.add_argument("--max_parameters", type=int | None, default=None, help="trained ones a task may have")
    parser.add_argument("--max_bytes", type=int | None, default=None, help="of a saved task")
    parser.add_argument(
        "--calibration", type=str | None, default=None, help=f"what your studies have shown (default: {CALIBRATION})"
    )
    parser.add_argument("--rules", action="store_true", help="print how often rules, and this advice, are right")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_argument_group("verify")
    group.add_argument("--verify", action="store_true", help="run all ways, and say whether the advice was right")
    group.add_argument("--protocol", default="quick", help="of the runs")
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of every run: train.epochs=10")
    group.add_argument("--seeds", default="0,1,2", help="of the final runs")
    group.add_argument("--workers", default="in-order", help="in-order, local:N or ray:...")
    group.add_argument("--adopt", action="append", default=[], metavar="DIR", help="finished runs to take over")
    group.add_argument("--device", type=Device, default="auto", help="where to compute")
    group.add_argument("--out", type=str | None, default=None, help="the study's folder; what is done there stays")
    add_fields(parser, "data", DataConfig, fixed=DECIDED)
    add_fields(parser, "backbone", BackboneSource)
    return parser


def verify(
    values: dict[str, Any],
    data: DataConfig,
    backbone: BackboneSource,
    situation: Situation,
    advice: Advice,
    command: str,
) -> Truth:
    """Run the bake-off, and keep what it shows in the calibration file."""
    from promptvit.study.bakeoff import bake_off_plan, record_of, truth
    from promptvit.study.calibration import merged, read_records, write_records

    default = DataConfig()
    drawn = [f"{getattr(data, part)}-{part}" for part in DRAWN if getattr(data, part) != getattr(default, part)]
    name = "-".join([situation.task, backbone.name, *drawn, "advice"])
    plan = bake_off_plan(
        name,
        data,
        backbone,
        protocol=values["protocol"],
        seeds=numbers("--seeds", values["seeds"]),
        settings={name: scalar(text) for name, text in pairs("--set", values["set"])},
        ways=tuple(situation.sizes),
        device=values["device"],
    )
    folder = Path(values["out"] or Path("runs", plan.name))
    results = run_study(
        plan, folder, {"adopt": values["adopt"], "storage": None, "workers": values["workers"]}, command
    )
    found = truth(advice, results)
    if not situation.fingerprint:
        note("not kept in the calibration file: with --look 0 the weights of the backbone are unknown")
    elif {"prompts", "full"} <= found.accuracies.keys():
        file = Path(values["calibration"]) if values["calibration"] else CALIBRATION
        known = read_records(file) if file.exists() else ()
        write_records(file, merged(known, [record_of(situation, found.accuracies, found.seeds, results)]))
    return found


def describe(situation: Situation, advice: Advice, found: Truth | None) -> str:
    """The advice as a person would give it."""
    from promptvit.study.advise import METHODS  # after parsing: help needs no torch

    chance = "" if advice.probability is None else f", probability of prompts {advice.probability:.2f}"
    lines = [f"{advice.choice} ({advice.method or 'run both'}{chance}, confidence {advice.confidence})", "because"]
    lines += [f"  - {reason}" for reason in advice.reasons]
    if advice.violated:
        lines += ["with care", *(f"  - {each}" for each in advice.violated)]
    if advice.needs:
        lines += ["surer with", *(f"  - {each}" for each in advice.needs)]
    if advice.evidence:
        lines += [f"nearest rows: prompts minus full, mean {advice.expected_gap:+.1f} points"]
        lines += [f"  {row.gap:+6.1f}  {row.task}, {row.images} images, {row.backbone}" for row in advice.evidence]
    if situation.sizes:
        lines += ["trained parameters and size of the saved task"]
        lines += [
            f"  {way:<8} {size.parameters:>12,}  {size.bytes / 2**20:8.2f} MiB" for way, size in situation.sizes.items()
        ]
        methods = ",".join(METHODS[way] for way in situation.sizes)
        lines += [
            f"memory and time here: {shlex.join(['promptvit', 'cost', *situation.options, '--methods', methods])}"
        ]
    if advice.also:
        lines.append(f"also worth a run: {', '.join(advice.also)}")
    lines += [f"decide it: {advice.bake_off}"] if found is None else outcome(advice, found)
    return "\n".join(lines)


def outcome(advice: Advice, found: Truth) -> list[str]:
    """What the bake-off showed."""
    from promptvit.report.origin import counted

    shown = ", ".join(f"{way} {accuracy:.1f}" for way, accuracy in found.accuracies.items())
    lines = [f"bake-off, {found.split} accuracy in percent, mean of {counted(len(found.seeds), 'seed')}: {shown}"]
    if found.regret is None:
        return [*lines, f"the advice abstained; {found.best} is best"]
    verdict = "right" if found.right else "wrong"
    place = f"{found.regret:.1f} points behind {found.best}" if found.regret else "the best"
    return [*lines, f"the advice was {verdict}: {advice.choice} is {place}"]


def rules_table() -> str:
    """How often rules, and the advisor with each task left out, are right on the published cells."""
    from promptvit.study.advise import without
    from promptvit.study.evidence import scale_cells
    from promptvit.study.rules import interval, judge, leave_one_task_out, verdicts

    cells = scale_cells()
    answers = leave_one_task_out(cells, without)
    found = {**verdicts(cells), "this advice, each task left out": judge(answers, cells)}
    low, high = interval(answers, cells)
    width = max(map(len, found))
    lines = [f"{'rule':<{width}}  right of 66  gap of a point  <= 800  >= 5,000  regret"]
    for name, verdict in found.items():
        shares = [
            f"{share:.2f}"
            for share in (verdict.large_gap, verdict.few_images, verdict.many_images)
            if share is not None
        ]
        lines.append(
            f"{name:<{width}}  {verdict.right:>4} ({verdict.accuracy:.2f})  {shares[0]:>13}  {shares[1]:>6}  "
            f"{shares[2]:>8}  {verdict.regret:>6.2f}"
        )
    return "\n".join([*lines, f"95 % interval of this advice, tasks drawn with replacement: {low:.2f} to {high:.2f}"])
