"""`promptvit data prepare vtab-1k|fgvc|raw`: a benchmark's data from where it is, checked and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from promptvit.cli.data import Bar
from promptvit.cli.data_check import KINDS_HELP, kinds, listing, refuse
from promptvit.cli.options import make_parser, parse
from promptvit.errors import ConfigError

if TYPE_CHECKING:
    from promptvit.data.prepare import Prepared

ONLY_RAW = ("set", "seed", "test", "download")
ONLY_BENCHMARKS = ("splits", "copy")


def run(arguments: list[str]) -> None:
    """Parse, prepare, print; raises DataError if there are problems."""
    parser = make_parser(
        "data prepare",
        "Bring the tasks of a benchmark into one layout, check them, and write a manifest. One that was killed goes on "
        "when it is called again. `raw` makes one task of our own from a set that torchvision reads.",
        "vtab-1k|fgvc|raw --from SOURCE ",
    )
    parser.add_argument("what", type=Literal["vtab-1k", "fgvc", "raw"], metavar="WHAT", help="vtab-1k, fgvc or raw")
    parser.add_argument(
        "--from",
        type=str,
        required=True,
        metavar="SOURCE",
        help="a folder, a zip, its http address, or hub; raw: a folder",
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="where to; null: where vtab-1k or fgvc is looked for"
    )
    parser.add_argument("--allow", type=str, default="", help=KINDS_HELP)
    parser.add_argument("--copy", action="store_true", help="copy the images of a folder, in place of links")
    parser.add_argument("--splits", type=str | None, default=None, help="fgvc: a folder with JSON splits, or hub")
    parser.add_argument("--set", type=str | None, default=None, help="raw: which, such as cifar100")
    parser.add_argument("--seed", type=int, default=0, help="raw: of the draw")
    parser.add_argument("--test", type=int, default=2000, help="raw: at most so many test images")
    parser.add_argument("--download", action="store_true", help="raw: let torchvision load the set")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)
    ConfigError.collect(misplaced(values, arguments), "data prepare")
    out = Path(values["out"]) if values["out"] else None
    (prepare_raw_set if values["what"] == "raw" else prepare_benchmark)(values, out)


def misplaced(values: dict[str, Any], arguments: list[str]) -> list[str]:
    """What is wrong with the options together."""
    raw = values["what"] == "raw"
    typed = {argument.partition("=")[0] for argument in arguments}
    found = [
        f"--{name}: expected only with {'vtab-1k or fgvc' if raw else 'raw'}"
        for name in (ONLY_BENCHMARKS if raw else ONLY_RAW)
        if f"--{name}" in typed
    ]
    if raw and values["set"] is None:
        found.append("raw without --set: expected the name of a set, such as cifar100")
    if values["what"] == "vtab-1k" and values["splits"]:
        found.append("--splits: expected only with fgvc")
    if values["test"] < 1:
        found.append(f"--test {values['test']}: expected at least 1")
    if values["seed"] < 0:
        found.append(f"--seed {values['seed']}: expected 0 or more")
    return found


def prepare_benchmark(values: dict[str, Any], out: Path | None) -> None:
    """`vtab-1k` and `fgvc`."""
    from promptvit.data.check import problems
    from promptvit.data.prepare import prepare  # after parsing: help needs no torch

    allowed = kinds(values["allow"])
    with Bar() as bar:
        done = prepare(
            values["what"],
            values["from"],
            out,
            copy=values["copy"],
            splits=values["splits"],
            allowed=allowed,
            progress=bar,
        )
    if values["json"]:
        findings = [finding.to_dict() for finding in done.findings]
        print(json.dumps({"state": done.state, "folder": str(done.folder), "findings": findings}))
    else:
        print(summary(done))
    if done.state == "refused":
        refuse(values["from"], problems(done.findings))


def summary(done: Prepared) -> str:
    """Findings, and what there is now."""
    lines = [listing(done.findings)] if done.findings else []
    if done.state != "refused":
        tasks = done.manifest["tasks"]
        images = sum(task["images"]["count"] for task in tasks.values())
        count = f"{len(tasks)} task{'' if len(tasks) == 1 else 's'}"
        lines.append(f"{done.folder}: {done.state}; {count}, {images:,} images, each checked")
    return "\n".join(lines)


def prepare_raw_set(values: dict[str, Any], out: Path | None) -> None:
    """A seeded subset of our own."""
    from promptvit.data.check import allow, check_task, problems
    from promptvit.data.raw import prepare_raw

    allowed = kinds(values["allow"])
    folder = prepare_raw(
        values["set"],
        Path(values["from"]).expanduser(),
        out,
        seed=values["seed"],
        test=values["test"],
        download=values["download"],
    )
    found = allow(check_task(folder, None), allowed)
    if values["json"]:
        print(json.dumps({"folder": str(folder), "findings": [each.to_dict() for each in found]}))
    else:
        lines = [listing(found)] if found else []
        print("\n".join([*lines, f"{folder}: seeded subset (seed {values['seed']}) of {values['set']}, not VTAB's"]))
    refuse(str(folder), problems(found))
