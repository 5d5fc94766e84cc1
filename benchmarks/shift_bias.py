"""The bias of the Fréchet distance where it is known: `python -m benchmarks.shift_bias`.

FD of N draws against the Gaussian that they come from, whose covariance has the spectrum i^-a, in % of its trace; and
what the line of FD at infinite N makes of the FDs at some N, where it should be zero. Beside values that were simulated
before, independently. Writes `docs/results/shift-bias.md` and `.json`; exits 1 if a cell is off.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.machine import ROOT, commit, machine
from promptvit.analysis.gaussian import Gaussian, gaussian_distance
from promptvit.analysis.shift import intercept

RESULTS = ROOT / "docs" / "results"
COUNTS = (100, 400, 800, 1000, 2000, 5000, 10000)
LINES = {"400 to 1,000": (400, 800, 1000), "2,000 to 10,000": (2000, 5000, 10000)}
"""The N through whose FDs a line goes, to infinity."""
KNOWN: dict[tuple[int, float], tuple[float, ...]] = {
    (768, 0.7): (98, 44, 19, 15, 7, 2.7, 1.3, -5.1, -0.1),
    (768, 1.0): (60, 24, 11, 8, 4, 1.5, 0.7, -2.8, -0.1),
    (768, 1.5): (16, 5.0, 2.3, 1.8, 0.9, 0.3, 0.2, -0.3, 0.0),
    (2048, 0.7): (123, 80, 54, 45, 20, 7, 3.4, 23.8, -1.0),
    (2048, 1.0): (76, 43, 27, 23, 10, 3.6, 1.8, 9.9, -0.5),
    (2048, 1.5): (17, 7.0, 3.9, 3.2, 1.5, 0.5, 0.3, 0.8, -0.1),
}
"""For each d and a: the FD at all `COUNTS`, then the ends of both `LINES`."""
RELATIVE, ABSOLUTE = 0.1, 0.3
"""A cell is off by more than both: a part of the known value, and points of the trace."""
DRAWS, MANY = 3, 1000
"""So many draws up to so many images; one for more, which hardly differ."""


def main() -> int:
    """Compute, write, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shift_bias", description=__doc__)
    parser.parse_args()
    started = time.perf_counter()
    with threadpool_limits(1):
        rows = [row(d, power) for d, power in KNOWN]
    record = {
        "rows": rows,
        "seconds": time.perf_counter() - started,
        "seed": 0,
        "command": "python -m benchmarks.shift_bias",
        "commit": commit(),
        "machine": {**machine(torch.device("cpu"), threads=1), "precision": "float64", "numpy": np.__version__},
    }
    (RESULTS / "shift-bias.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "shift-bias.md").write_text(page(record))
    print(page(record))
    return int(any(cell["off"] for each in rows for cell in each["cells"].values()))


def row(d: int, power: float) -> dict[str, Any]:
    """All cells of one spectrum."""
    variances = np.arange(1, d + 1) ** -power
    exact = Gaussian(mean=np.zeros(d), covariance=np.diag(variances))
    draws = {}
    for n in COUNTS:
        draws[n] = [100 * distance(n, draw, exact) / exact.trace for draw in range(DRAWS if n <= MANY else 1)]
        print(f"d = {d}, a = {power}, N = {n}: {draws[n]}", flush=True)
    found = {f"{n:,}": float(np.mean(each)) for n, each in draws.items()}
    for name, counts in LINES.items():
        found[name] = intercept(counts, [found[f"{n:,}"] for n in counts])
    known = zip(found.items(), KNOWN[d, power], strict=True)
    return {"d": d, "a": power, "cells": {name: cell(ours, value) for (name, ours), value in known}, "draws": draws}


def distance(n: int, draw: int, exact: Gaussian) -> float:
    """FD of `n` draws from `exact`."""
    d = len(exact.mean)
    rows = np.random.default_rng((0, d, n, draw)).standard_normal((n, d)) * np.sqrt(exact.covariance.diagonal())
    return gaussian_distance(Gaussian.of(rows), exact)


def cell(ours: float, known: float) -> dict[str, Any]:
    """Both values, and whether they disagree."""
    difference = ours - known
    off = abs(difference) > max(ABSOLUTE, RELATIVE * abs(known))
    return {"known": known, "ours": ours, "difference": difference, "off": off}


def page(record: dict[str, Any]) -> str:
    """The record as a page."""
    rows = record["rows"]
    columns = [f"N = {name}" if name not in LINES else f"line, {name}" for name in rows[0]["cells"]]
    lines = [*HEAD, f"| d, a | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for each in rows:
        lines.append(f"| {each['d']}, {each['a']} | {' | '.join(map(shown, each['cells'].values()))} |")
    off = [
        f"d = {each['d']}, a = {each['a']}, N = {name}"
        for each in rows
        for name, value in each["cells"].items()
        if value["off"]
    ]
    kinds = ", ".join(f"{name} {value}" for name, value in record["machine"].items() if name != "load_average")
    return "\n".join(
        [
            *lines,
            "",
            f"- More than {100 * RELATIVE:.0f} % of the known value and more than {ABSOLUTE} points apart: "
            + ("; ".join(off) or "none of these cells")
            + ".",
            *TAIL,
            f"- Command: `{record['command']}` ({record['seconds'] / 60:.0f} minutes)",
            f"- Commit: {record['commit']}, seed {record['seed']}",
            f"- Machine: {kinds}",
            "- All figures: [shift-bias.json](shift-bias.json)",
            "",
        ]
    )


def shown(value: dict[str, Any]) -> str:
    """Ours, the known value and the difference."""
    return f"{value['ours']:.2f} ({value['known']:g}, {value['difference']:+.2f})"


HEAD = f"""# The bias of the Fréchet distance

FD of N draws against the very Gaussian that they come from, in % of its trace. The covariance of the d features has
the spectrum i^-a. The truth is zero: all of it is bias. The mean of {DRAWS} draws up to N = {MANY:,}, one draw above.
Line: the end, at infinite N, of the least-squares line through FD at the N named against 1 / N.

In brackets known values (simulated before, independently) and the difference.

""".splitlines()
TAIL = """- The line is that of FD at infinite N, called by itself: `frechet_at_infinity` refuses where its smallest
  sample has fewer images than features, so all of the column from 400, and at d = 2048 that from 2,000. Where N is not
  well above d, bias does not go as 1 / N, and the line ends far from zero on either side.
""".splitlines()


if __name__ == "__main__":
    sys.exit(main())
