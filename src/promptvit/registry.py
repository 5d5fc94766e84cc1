"""Names for things: registries that know the nearest right name and take entries from other packages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from promptvit.errors import UnknownNameError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The `count` known names closest to `name`, best first; case does not count."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[match] for match in close]


def unknown(kind: str, name: str, known: Iterable[str], listing: str) -> UnknownNameError:
    """The error for a name that is not known: the nearest names, and where all of them are listed."""
    matches = nearest(name, known)
    hint = f"Did you mean {' or '.join(matches)}? " if matches else ""
    return UnknownNameError(f"unknown {kind} {name!r}", fix=f"{hint}{listing}")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to things of one kind; other packages add theirs through an entry-point group.

    `kind` is the word for one thing ("method"); `listing` says where a user finds all names.
    """

    def __init__(self, kind: str, listing: str, group: str = "") -> None:
        self._kind, self._listing, self._group = kind, listing, group
        self._things: dict[str, T] = {}

    def register(self, name: str, thing: T) -> T:
        """Add `thing` under `name` and return it; a name can be taken once."""
        assert name not in self._things, f"{self._kind} {name!r} is registered already"
        self._things[name] = thing
        return thing

    def _load_plugins(self) -> None:
        if not self._group:
            return
        for point in entry_points(group=self._group):
            if point.name not in self._things:
                self._things[point.name] = point.load()

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            self._load_plugins()
        if name not in self._things:
            raise unknown(self._kind, name, self._things, self._listing)
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        self._load_plugins()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(self._things)

    def __len__(self) -> int:
        self._load_plugins()
        return len(self._things)
