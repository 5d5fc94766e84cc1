"""Numbers as people read them, intervals, and the ticks of axes."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

Number = int | float
"""Whole numbers are numbers too, to those who check types at run time."""
MISSING = "\N{EN DASH}"
Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


def percent(share: Number | None, digits: int = 1) -> str:
    """A share in [0, 1]: `56.7 %`."""
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def points(share: Number | None, digits: int = 2) -> str:
    """A share in [0, 1] in percent, without the sign, as tables have it."""
    return MISSING if share is None else f"{100 * share:z.{digits}f}"


def short(count: Number) -> str:
    """A count in at most four characters and a unit: `13.5 k`."""
    for power, unit in ((9, " G"), (6, " M"), (3, " k")):
        if count >= 0.9995 * 10**power:
            return f"{count / 10**power:.3g}{unit}"
    return f"{count:,.3g}" if count < 1000 else f"{count:.0f}"


def size(count: Number) -> str:
    """Bytes: `31.7 KiB`."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return (
                f"{count / 1024**power:.3g} {unit}"
                if count < 1000 * 1024**power
                else f"{count / 1024**power:.0f} {unit}"
            )
    return f"{count:.0f} bytes"


def duration(seconds: Number) -> str:
    """`8.4 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def plain(value: Any) -> str:
    """A setting's value: `0.001`, `null`, `[1, 2]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value) if len(repr(value)) <= 7 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {plain(inner)}' for name, inner in value.items())}}}"
    return str(value)


def wilson(share: Number, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of `count` images, in [0, 1]. Source: Wilson, JASA 22 (1927)."""
    scale = 1 + Z95**2 / count
    middle = (share + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def ticks(low: Number, high: Number, count: int = 5) -> list[Number]:
    """About `count` round values that reach from `low` or below to `high` or above."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-200):
        low, high = (low - 0.5, low + 0.5) if low else (0.0, 1.0)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def whole_ticks(low: int, high: int, count: int = 6) -> list[int]:
    """At most about `count` whole numbers from `low` to `high`, the first at `low`."""
    rough = max(1, (high - low) / count)
    power = 10 ** math.floor(math.log10(rough))
    step = max(1, next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= rough))
    return [tick for tick in range(low, high + 1) if tick == low or (tick % step == 0 and tick - low >= step / 2)]


def log_ticks(low: Number, high: Number) -> list[Number]:
    """Powers of ten that reach around `low` and `high`, both above 0; also their 2 and 5 in a narrow range."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first > 2:
        step = math.ceil((last - first) / 6)
        return [10.0**power for power in range(first, last + step, step)]
    values = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max((value for value in values if value <= low * (1 + 1e-9)), default=values[0])
    above = min((value for value in values if value >= high * (1 - 1e-9)), default=values[-1])
    if below == above:
        below, above = below / 2, above * 2
        return [below, 2 * below, above]
    return [value for value in values if below <= value <= above]


def width(text: str) -> Number:
    """About how wide a text is, in units of its font size."""
    return sum(_width(character) for character in text)


def fitted(text: str, room: Number) -> str:
    """The text, or its beginning with an ellipsis, in so many units of its font size."""
    if width(text) <= room:
        return text
    kept = ""
    for character in text:
        if width(kept + character) > room - 0.9:
            break
        kept += character
    return f"{kept.rstrip()}…"


def _width(character: str) -> Number:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn"):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.1
    return 0.72 if character.isupper() or character in "mwMW%@" else 0.33 if character in "iljtf.,:;|!'()[] " else 0.6
