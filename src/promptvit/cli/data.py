"""`promptvit data WHAT`: get a benchmark's data, check any task, look at it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from promptvit.cli.options import run_part

ACTIONS = {
    "prepare": "bring VTAB-1k, the FGVC sets or a set of torchvision's into one layout, checked and recorded",
    "check": "say what is wrong with a task or a folder of tasks: task, file and line",
    "describe": "classes, sizes, balance, and a sheet of images",
    "stats": "features of a task in a small file, and how far they lie from others",
}
"""Names and their help; each is a module `data_NAME` with a function `run`."""


def run(arguments: list[str]) -> None:
    """Find what is to be done and do it."""
    run_part("data", ACTIONS, arguments)


class Bar:
    """A bar on stderr for one thing after another: `bar(what, done, total)`."""

    def __init__(self) -> None:
        self.what, self.bar = "", None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; a total of 0 is not known."""
        if what != self.what or self.bar is None:
            self._close()
            self.what, self.bar = what, _bar(what, total)
        self.bar.update(done - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def _bar(what: str, total: int) -> Any:
    from tqdm import tqdm

    size = {"unit": "B", "unit_scale": True, "unit_divisor": 1024} if what == "loading" else {}
    return tqdm(total=total or None, desc=what, leave=False, disable=None, **size)
