"""What can go wrong, as one tree:

    PromptvitError
    ├── ConfigError          a setting that cannot mean anything (also a ValueError)
    │   └── UnknownNameError   a name that is in no registry; says the nearest ones
    ├── BackboneError        a model that cannot be loaded or driven
    ├── DataError            images, labels or lists that cannot be used
    │   └── BrokenImageError   one image file that cannot be decoded
    ├── DeltaError           a saved delta that does not fit, or is not one
    ├── OutputError          a file that cannot be written: a full disk, no permission
    └── TrainingError        a run that cannot go on

Every message says, in this order: what was given, what was expected, where, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class PromptvitError(Exception):
    """Something a user can mend; the message says how."""

    def __init__(self, given: str, *, expected: str = "", where: str = "", fix: str = "") -> None:
        message = given
        if expected:
            message += f"; expected {expected}"
        if where:
            message += f" (in {where})"
        super().__init__(f"{message}. {fix}" if fix else message)

    def __reduce__(self):  # workers send errors as pickles; rebuild from the finished message
        return _rebuild, (type(self), str(self), self.__dict__)


def _rebuild(kind: type[PromptvitError], message: str, state: dict) -> PromptvitError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class ConfigError(PromptvitError, ValueError):
    """A setting that cannot mean anything."""

    @classmethod
    def collect(cls, problems: Sequence[str], where: str) -> None:
        """Raise one error that lists all `problems`; do nothing if there are none."""
        if problems:
            raise cls("; ".join(problems), where=where)


class UnknownNameError(ConfigError):
    """A name that is in no registry."""


class BackboneError(PromptvitError):
    """A model that cannot be loaded or driven."""


class DataError(PromptvitError):
    """Images, labels or lists that cannot be used."""


class BrokenImageError(DataError):
    """One image file that cannot be decoded."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(
            f"{path} cannot be decoded: {reason}",
            fix="Repair or remove the file; train and evaluate can leave such files out (--data.broken skip)",
        )


class DeltaError(PromptvitError):
    """A saved delta that does not fit, or is not one."""


class OutputError(PromptvitError):
    """A file that cannot be written."""

    @classmethod
    def at(cls, path: Path, error: OSError) -> OutputError:
        """The error for `path`, with the system's reason."""
        return cls(
            f"{path} cannot be written: {error.strerror or error}",
            fix="Free some space, or write elsewhere; files that were there before are unchanged",
        )


class TrainingError(PromptvitError):
    """A run that cannot go on."""
