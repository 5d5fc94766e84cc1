"""`promptvit study scale`: accuracy against the number of training images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from promptvit.backbones.source import BackboneSource
from promptvit.cli.options import command_line, make_parser, note, parse
from promptvit.cli.studies import add_study_options, numbers, run_study, study_values
from promptvit.data.config import DataConfig

SIZES = "400,800,5000,10000,20000"


def run(arguments: list[str]) -> None:
    """Parse, do what is missing, print the table and what it says."""
    parser = make_parser(
        "study scale",
        "Methods at several numbers of images, each drawn several times, smaller ones inside larger ones. The same "
        "command goes on with a study that was stopped. Test images are always all.",
        "DATA ",
    )
    parser.add_argument("data", metavar="DATA", help="one task, as in train")
    parser.add_argument("--methods", default="vpt-deep,full", help="names; the gap is the first minus the second")
    parser.add_argument("--backbone", default="vit_pico", help="a name; other fields: --set backbone.image_size=64")
    parser.add_argument("--sizes", default=SIZES, help=f"training and validation images together (default: {SIZES})")
    parser.add_argument("--shots", type=str | None, default=None, help="images of each class, too: 1,5,10")
    parser.add_argument("--draws", type=int, default=3, help="of the images, at each size")
    add_study_options(parser, "quick")
    values = parse(parser, arguments)
    settings = study_values({**values, "seeds": values["seeds"] or "0"})

    from promptvit.search.plan import StudyPlan
    from promptvit.study.scale import reading, scale_of, scale_plan, scale_table

    # Read as a study file is, for its checks; then its rows are put in.
    name = f"{Path(values['data']).name}-{values['backbone']}-scale"
    like = StudyPlan.from_dict(
        {"name": name, "data": values["data"], "rows": {"linear": {"name": "linear"}}, **settings}
    )
    plan, left_out = scale_plan(
        name,
        DataConfig(source=values["data"]),
        BackboneSource(name=values["backbone"]),
        values["methods"].split(","),
        like.protocol,
        sizes=numbers("--sizes", values["sizes"]),
        shots=numbers("--shots", values["shots"]),
        draws=values["draws"],
        device=values["device"],
    )
    plan = dataclasses.replace(plan, search=like.search)
    if left_out:
        note(f"left out, for which the task is too small: {', '.join(left_out)}")
    folder = Path(values["out"] or Path("runs", plan.name))
    results = run_study(plan, folder, values, command_line("study scale", arguments))
    scale = scale_of(results)
    if values["json"]:
        print(json.dumps({"scale": scale and scale.to_dict(), "left_out": left_out}))
    else:
        print("no size is whole" if scale is None else f"{scale_table(scale)}\n\n{reading(scale)}")
