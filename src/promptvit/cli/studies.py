"""What `bench` and `sweep` share: the options of a study, its progress, and its files."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptvit.cli.options import note
from promptvit.errors import ConfigError
from promptvit.search.protocol import SETTING_GROUPS, Epoch, Retrain, Scalar
from promptvit.search.protocols import PROTOCOLS

if TYPE_CHECKING:
    import jsonargparse

    from promptvit.search.plan import StudyPlan
    from promptvit.search.results import Results
    from promptvit.search.study import StudyState


def add_study_options(parser: jsonargparse.ArgumentParser, protocol: str) -> None:
    """How settings are chosen, who does the work, and where it goes."""
    names = ", ".join(PROTOCOLS)
    group = parser.add_argument_group("protocol")
    group.add_argument("--protocol", default=protocol, help=f"{names} (default: {protocol})")
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of every run: train.epochs=20"
    )
    group.add_argument(
        "--grid", action="append", default=[], metavar="NAME=V,V", help="the values to try: train.learning_rate=1,0.1"
    )
    group.add_argument("--seeds", type=str | None, default=None, help="of the final runs: 0,1,2")
    group.add_argument("--epoch", type=Epoch | None, default=None, help="which epoch counts; best-test is flagged")
    group.add_argument("--retrain", type=Retrain | None, default=None, help="what final runs are trained on")
    group = parser.add_argument_group("search")
    group.add_argument("--sampler", default="grid", help="grid, random or tpe")
    group.add_argument("--trials", type=int, default=20, help="points of random and tpe")
    group.add_argument(
        "--range", action="append", default=[], metavar="NAME=LOW:HIGH", help="for random and tpe, on a log scale"
    )
    group.add_argument("--pruner", default="none", help="none, median or asha: stop what is behind")
    group = parser.add_argument_group("work")
    group.add_argument("--workers", default="in-order", help="in-order, local:N, ray:auto, or ray://HOST:PORT#N")
    group.add_argument(
        "--storage", type=str | None, default=None, help="the record; postgresql+psycopg://... for a team"
    )
    group.add_argument("--adopt", action="append", default=[], metavar="DIR", help="finished runs to take over")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    group.add_argument("--out", type=str | None, default=None, help="the study's folder; what is done there stays")
    group.add_argument("--json", action="store_true", help="print the results as one JSON object")


def study_values(values: dict[str, Any]) -> dict[str, Any]:
    """What `StudyPlan.from_dict` takes of these options; raises ConfigError for what none of them can be."""
    from promptvit.search.workers import check_workers

    check_workers(values["workers"])
    change: dict[str, Any] = {
        "settings": {name: scalar(text) for name, text in pairs("--set", values["set"])},
        "grid": {name: [scalar(each) for each in text.split(",")] for name, text in pairs("--grid", values["grid"])},
        "seeds": numbers("--seeds", values["seeds"]),
        "epoch": values["epoch"],
        "retrain": values["retrain"],
    }
    ranges = {name: bounds(name, text) for name, text in pairs("--range", values["range"])}
    return {
        "protocol": values["protocol"],
        "change": {name: value for name, value in change.items() if value},
        "search": {**{name: values[name] for name in ("sampler", "trials", "pruner")}, "ranges": ranges},
        "device": values["device"],
    }


def pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """NAME=VALUE as its two parts; raises ConfigError for another form or an unknown kind of setting."""
    found = []
    for text in texts:
        name, _, value = text.partition("=")
        if not value or name.partition(".")[0] not in SETTING_GROUPS or not name.partition(".")[2]:
            raise ConfigError(
                f"{option} {text}",
                expected=f"NAME=VALUE with a NAME below {', '.join(SETTING_GROUPS)}: train.epochs=20",
            )
        found.append((name, value))
    return found


WORDS = {"true": True, "false": False, "null": None}


def scalar(text: str) -> Scalar:
    """A number, true, false, null or a word; raises ConfigError for `inf` and `nan`."""
    if text in WORDS:
        return WORDS[text]
    with suppress(ValueError):
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        raise ConfigError(f"the value {text}", expected="a finite number, true, false, null or a word")
    return value


def numbers(option: str, text: str | None) -> list[int]:
    """Integers between commas."""
    try:
        return [int(each) for each in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"{option} {text}", expected="numbers between commas: 0,1,2") from None


def bounds(name: str, text: str) -> tuple[float, float]:
    """Two numbers with a colon between."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise ConfigError(f"--range {name}={text}", expected="two numbers: train.learning_rate=1e-4:1e-1") from None


class StudyBar:
    """A progress bar over a whole study, on stderr, with what runs and the time left."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __enter__(self) -> StudyBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, state: StudyState) -> None:
        """How far the study is."""
        from tqdm import tqdm

        if self.bar is None:
            layout = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}"
            self.bar = tqdm(desc="trials", total=state.total, initial=state.done, bar_format=layout, file=sys.stderr)
        self.bar.total, self.bar.n = state.total, state.done
        left = "" if state.seconds_left is None else f"about {clock(state.seconds_left)} left; "
        self.bar.set_postfix_str(f"{left}{', '.join(state.running) or 'waiting for workers'}"[:100], refresh=True)


def clock(seconds: float) -> str:
    """Hours and minutes, or seconds."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"


def run_study(plan: StudyPlan, folder: Path, values: dict[str, Any], command: str) -> Results:
    """Run the study, or take over what is done, and write its pages, also of a study that is stopped."""
    from promptvit.search.study import Study

    adopt = [Path(name) for name in values["adopt"]]
    with (
        StudyBar() as bar,
        Study(plan, folder, storage=values["storage"], adopt=adopt, follow=bar.show, command=command) as study,
    ):
        try:
            results = study.take_over() if values.get("table") else study.run(values["workers"])
        except BaseException:
            write_pages(folder, study.results())  # of what is done; --page is for a study that is
            raise
        written = write_pages(folder, results, values.get("page"))
    note(f"written: {', '.join(str(path) for path in written)}")
    return results


READING = "## Reading\n"


def write_pages(folder: Path, results: Results, page: str | None = None) -> list[Path]:
    """The tables and the report of a study, and perhaps a page elsewhere; returns what was written."""
    from promptvit.files import write_text
    from promptvit.report.study import write_study_report
    from promptvit.search.export import csv_lines, json_text
    from promptvit.search.tables import latex_tables, markdown_page

    pages = {
        "results.md": markdown_page(results),
        "results.tex": latex_tables(results),
        "results.csv": csv_lines(results),
        "tables.json": json_text(results),
    }
    written = {folder / name: text for name, text in pages.items()}
    if page is not None:
        written |= {Path(page): with_reading(Path(page), pages["results.md"])}
        written |= {Path(page).with_suffix(".json"): pages["tables.json"]}
    for path, text in written.items():
        write_text(path, text)
    return [*written, write_study_report(folder, results)]


def with_reading(page: Path, text: str) -> str:
    """The new text of a page, with what somebody has written below `## Reading`."""
    _, mark, reading = page.read_text().partition(READING) if page.exists() else ("", "", "")
    return f"{text.rstrip()}\n\n{mark}{reading}" if mark else text
