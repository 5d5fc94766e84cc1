"""Reports of folders, whatever they hold."""

from __future__ import annotations

from pathlib import Path

from promptvit.errors import ConfigError
from promptvit.report.run import write_run_report
from promptvit.report.study import write_study_report
from promptvit.search.results import RESULTS, Results


def write_report(folder: Path, *, images: str | None = None, runs: bool = False) -> list[Path]:
    """Writes the report of the run or study in `folder`; returns the paths of what is written, that of `folder` first.

    - `images`: where a run's images are now. `runs`: also of each final run of a study, but for those taken over.

    Raises ConfigError for a folder of neither, and for options that it has no use for; DataError for damaged files.
    """
    if not (folder / RESULTS).is_file():
        ConfigError.collect(
            [f"--runs: {folder} holds no study"] if runs and (folder / "summary.json").is_file() else [], "report"
        )
        return [write_run_report(folder, images)]
    if images is not None and not runs:
        raise ConfigError("--images of a study without --runs: it shows no images", where="report")
    results = Results.read(folder)
    # A run that was taken over from elsewhere has an absolute path, and its folder is not ours to write into.
    own = [final.folder for cell in results.cells for final in cell.finals if not Path(final.folder).is_absolute()]
    finals = [folder / each for each in own] if runs else []
    written = [write_run_report(each, images) for each in finals if (each / "summary.json").is_file()]
    return [write_study_report(folder, results), *written]
