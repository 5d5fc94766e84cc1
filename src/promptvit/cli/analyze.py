"""`promptvit analyze WHAT`: what tuned models and their runs look like from inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptvit.analysis.figures import check_format
from promptvit.cli.options import add_fields, flatten, make_parser, option_value, parse, run_part
from promptvit.cli.runs import delta_folder, run_config
from promptvit.data.config import DataConfig
from promptvit.errors import ConfigError
from promptvit.search.results import RESULTS, Results
from promptvit.train.config import Device

if TYPE_CHECKING:
    import jsonargparse

ANALYSES = {
    "nmi": "NMI of prompts and patches, by block and by epoch",
    "embedding": "features before and after tuning as points in the plane, and how well classes separate",
    "curves": "whether runs overfit, the gap between training and validation, how fast they learn",
    "preservation": "what is left of the pretrained features and weights: probes, CKA, drift on other images",
    "pruning": "which prompts and segments of a pruned run are kept",
    "attention": "how much attention goes to prompts, by block",
    "attribution": "which parts of an image the answer rests on, as maps and their scores",
}
"""Names and their help; each is a module `analyze_NAME` with a function `run`."""
UNUSED = (
    *("geometry", "crop_fraction", "interpolation", "normalisation"),
    *("augment", "train_share", "train_on", "workers"),
)
"""Fields of `DataConfig` that validation images, read as the tuned model wants them, do not depend on."""


def run(arguments: list[str]) -> None:
    """Find the analysis and run it."""
    run_part("analyze", ANALYSES, arguments, "RUN...")


def make_analysis_parser(name: str, description: str, figure: str) -> jsonargparse.ArgumentParser:
    """The options that analyses share; `figure` says what is drawn."""
    parser = make_parser(f"analyze {name}", description, "RUN... ")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders, or a study's, for its final runs")
    parser.add_argument("--figure", type=str | None, default=None, help=f"{figure}: a .png or .svg file")
    parser.add_argument("--device", type=Device, default="auto", help="where to compute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_fields(parser, "data", DataConfig, fixed=UNUSED)
    return parser


def figure_path(values: dict[str, Any]) -> Path | None:
    """What `--figure` says; raises ConfigError for an ending that is no format."""
    path = None if values["figure"] is None else Path(values["figure"])
    if path is not None:
        check_format(path)
    return path


def labelled(runs: Sequence[str]) -> dict[str, Path]:
    """Folders by their names, or by all that was typed where two have the same name; of a study, its final runs."""
    found = [run for each in runs for run in _runs_of(each)]
    count = Counter(short for short, _, _ in found)
    return {short if count[short] == 1 else long: folder for short, long, folder in found}


def _runs_of(typed: str) -> list[tuple[str, str, Path]]:
    """A short and a long name and the folder of a run, or of each final run of a study; raises ConfigError for a study
    without."""
    folder = Path(typed)
    if not (folder / RESULTS).is_file():
        return [(folder.resolve().name, typed, folder)]
    results = Results.read(folder)
    several = len({cell.backbone for cell in results.cells}) > 1
    runs = {
        f"{cell.task}, {cell.method}{f', {cell.backbone}' if several else ''}, seed {final.seed}": folder / final.folder
        for cell in results.cells
        for final in cell.finals
    }
    if not runs:
        raise ConfigError(
            f"{folder} is a study without final runs", expected="a run, or a study with some that are done"
        )
    return [(name, f"{typed}: {name}", run) for name, run in runs.items()]


def opened(
    folders: Mapping[str, Path], parser: jsonargparse.ArgumentParser, expanded: Sequence[str]
) -> tuple[dict[str, Path], dict[str, DataConfig]]:
    """The deltas and the data of all runs, before the first is measured, which may take minutes."""
    deltas = {label: delta_folder(folder) for label, folder in folders.items()}
    return deltas, {label: data_of(folder, parser, expanded) for label, folder in folders.items()}


def data_of(folder: Path, parser: jsonargparse.ArgumentParser, expanded: Sequence[str]) -> DataConfig:
    """The data of the run in `folder` with what was typed on top, or all typed."""
    typed = option_value(expanded, "--data.source") is not None
    own = {} if typed else run_config(folder).to_dict()["data"]
    used = {name: value for name, value in own.items() if name not in UNUSED}
    return DataConfig(**parse(parser, [*flatten("--data", used), *expanded])["data"])
