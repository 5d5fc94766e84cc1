"""`promptvit report`: a run or a study as one HTML file."""

from __future__ import annotations

import json
from pathlib import Path

from promptvit.cli.options import make_parser, parse


def run(arguments: list[str]) -> None:
    """Parse, write, print where."""
    parser = make_parser(
        "report", "Write a run or a study as one HTML file, report.html in its folder, complete in itself.", "FOLDER "
    )
    parser.add_argument("folder", metavar="FOLDER", help="of a run that is done, or of a study")
    parser.add_argument(
        "--images", type=str | None, default=None, help="where a run's images are now; its data.source by default"
    )
    parser.add_argument("--runs", action="store_true", help="of a study: also of each of its final runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values = parse(parser, arguments)

    from promptvit.report.write import write_report  # after parsing: help needs no torch

    paths = write_report(Path(values["folder"]), images=values["images"], runs=values["runs"])
    print(json.dumps({"reports": [str(path) for path in paths]}) if values["json"] else "\n".join(map(str, paths)))
