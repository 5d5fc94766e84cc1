"""`promptvit study calibrate`: the file from which advice learns what your own studies have shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.cli.advise import CALIBRATION
from promptvit.cli.options import make_parser, note, parse
from promptvit.errors import ConfigError

if TYPE_CHECKING:
    from promptvit.study.calibration import Record


def run(arguments: list[str]) -> None:
    """Parse, merge, write, show."""
    parser = make_parser(
        "study calibrate",
        "Show the records of calibration files, and write them merged into one: of two about the same task, backbone "
        "and size the later file's. `promptvit advise --verify` adds records.",
        "[FILE...] ",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"later ones win (default: {CALIBRATION})")
    parser.add_argument("--out", type=str | None, default=None, help="where the merged records go")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)

    from promptvit.study.calibration import merged, read_records, write_records

    files = [Path(name) for name in values["files"]] or [CALIBRATION]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} does not exist",
            expected="calibration files",
            fix="promptvit advise --verify makes one",
        )
    records = merged(*(read_records(file) for file in files))
    if values["out"] is not None:
        write_records(values["out"], records)
        note(f"written: {values['out']}")
    if values["json"]:
        print(json.dumps({"records": [{**vars(record), "winner": record.winner} for record in records]}))
    else:
        print(describe(records))


def describe(records: tuple[Record, ...]) -> str:
    """A line for each record, and how often each way won."""
    if not records:
        return "no records"
    lines = []
    for record in records:
        shown = ", ".join(f"{way} {accuracy:.1f}" for way, accuracy in record.accuracies.items())
        lines.append(f"{record.task}, {record.backbone}, {record.images} images: {record.winner} ({shown})")
    winners = [record.winner for record in records]
    count = ", ".join(f"{way} {winners.count(way)}" for way in dict.fromkeys(winners))
    return "\n".join([*lines, f"won: {count}"])
