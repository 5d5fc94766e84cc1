"""`promptvit sweep`: the settings of one method on one task, chosen on its validation images."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from promptvit.cli.options import command_line, make_parser, parse
from promptvit.cli.studies import add_study_options, run_study, study_values
from promptvit.cli.train import free_folder

if TYPE_CHECKING:
    from promptvit.search.results import Cell, Results


def run(arguments: list[str]) -> None:
    """Parse, search, print the points and what to do with the best one."""
    parser = make_parser(
        "sweep",
        "Try many settings of a method on a task and choose by validation accuracy; then train the best one, once for "
        "each of --seeds. The same command with the same --out goes on with a sweep that was stopped.",
    )
    parser.add_argument("--data", required=True, help="as in train")
    parser.add_argument("--method", default="vpt-deep", help="a name; its fields: --set method.length=20")
    parser.add_argument("--backbone", default="vit_pico", help="a name; other fields: --set backbone.image_size=64")
    parser.add_argument("--top", type=int, default=10, help="how many of the best points to print")
    add_study_options(parser, "quick")
    values = parse(parser, arguments)

    from promptvit.search.plan import StudyPlan

    name = f"{Path(values['data']).name}-{values['method']}-sweep"
    settings = study_values({**values, "seeds": values["seeds"] or "0"})
    plan = StudyPlan.from_dict(
        {
            "name": name,
            "data": values["data"],
            "backbones": [{"name": values["backbone"]}],
            "rows": {values["method"]: {"name": values["method"]}},
            **settings,
        }
    )
    folder = Path(values["out"]) if values["out"] else free_folder(name)
    results = run_study(plan, folder, values, command_line("sweep", arguments))
    print(
        json.dumps(results.to_dict(), ensure_ascii=False)
        if values["json"]
        else describe(results, values["top"], folder)
    )


def describe(results: Results, top: int, folder: Path) -> str:
    """The best points, the final runs, and the next command."""
    lines = []
    for cell in results.cells:
        scored = sorted((p for p in cell.points if p.val_top1 is not None), key=lambda p: -(p.val_top1 or 0.0))
        lines += [f"{cell.task}, {cell.method}: {count(cell)}"]
        lines += [f"  val {100 * (point.val_top1 or 0.0):5.1f} %  {shown(point.settings)}" for point in scored[:top]]
        if cell.chosen is not None:
            lines.append(f"chosen: {shown(cell.chosen)}")
        for final in cell.finals:
            test = "no test images" if final.test_top1 is None else f"test {100 * final.test_top1:.1f} %"
            lines.append(f"final run, seed {final.seed}: {test}, saved in {folder / final.folder}")
        if cell.finals:
            lines.append(f"next: promptvit predict {shlex.quote(str(folder / cell.finals[0].folder))} IMAGE...")
    return "\n".join(lines)


def count(cell: Cell) -> str:
    """How many points came to what."""
    states = [point.state for point in cell.points]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "nothing to search"


def shown(settings: dict) -> str:
    """Settings as options."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )
