"""`promptvit study calibrate`: the file from which advice learns what your own studies have shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.cli.advise import CALIBRATION
from promptvit.cli.options import make_parser, note, parse
from promptvit.errors import ConfigError
from promptvit.search.results import RESULTS

if TYPE_CHECKING:
    from promptvit.study.calibration import Record


def run(arguments: list[str]) -> None:
    """Parse, collect, merge, write, show."""
    parser = make_parser(
        "study calibrate",
        "Show the records of calibration files, and write them merged into one: of two about the same task, backbone "
        "and size the later's. `promptvit advise --verify` adds records to a file, and studies with finished runs of "
        "vpt-deep and full have some in them: of these the images are looked at, as by advise.",
        "[FILE|STUDY...] ",
    )
    parser.add_argument(
        "sources", nargs="*", metavar="FILE|STUDY", help=f"files, and folders of studies (default: {CALIBRATION})"
    )
    parser.add_argument("--out", type=str | None, default=None, help="where the merged records go")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)

    from promptvit.study.calibration import merged, read_records, write_records
    from promptvit.study.collect import records_of

    sources = [Path(name) for name in values["sources"]] or [CALIBRATION]
    missing = [str(source) for source in sources if not (source.is_file() or (source / RESULTS).is_file())]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} does not exist, or is no study",
            expected="calibration files, or folders of studies",
            fix="promptvit advise --verify makes a file",
        )
    records = merged(*(records_of(source) if source.is_dir() else read_records(source) for source in sources))
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
