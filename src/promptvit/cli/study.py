"""`promptvit study WHAT`: studies of when prompts win, and what they teach the advice."""

from __future__ import annotations

from promptvit.cli.options import run_part

STUDIES = {
    "scale": "accuracy against the number of training images, and where one method overtakes another",
    "calibrate": "what your own studies have shown, for better advice: collect, merge, show",
}
"""Names and their help; each is a module `study_NAME` with a function `run`."""


def run(arguments: list[str]) -> None:
    """Find the study and run it."""
    run_part("study", STUDIES, arguments)
