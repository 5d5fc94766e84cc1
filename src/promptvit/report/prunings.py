"""The search that a pruned run comes from."""

from __future__ import annotations

from typing import Any

from promptvit.report import origin
from promptvit.report.charts import Dot, figure, legend, scatter, value_axis
from promptvit.report.markup import Child, join, tag
from promptvit.report.numbers import MISSING, duration, percent, short, size
from promptvit.report.record import Row
from promptvit.report.tables import Cell, Entry, number, table


def pruning(found: dict[str, Any]) -> Child:
    """The candidates, and the chosen one."""
    before, after = found["unpruned"], found["chosen"]
    again = {_key(row): row for row in found["trained"]}
    rows = [before, *found["candidates"]]
    span = f" in {duration(found['seconds'])}" if "seconds" in found else ""
    said = (
        f"From {found['run']}: {before['prompt_parameters']:,} values in prompts became "
        f"{after['prompt_parameters']:,}, with {origin.counted(found['trainings'], 'training')}{span}. "
        f"Chosen on {found['selection']}."
    )
    head = [
        "prompts pruned",
        "segments pruned",
        "values in prompts",
        "delta",
        "FLOPs",
        "as it is",
        "trained again",
        "state",
    ]
    entries = [_entries(row, again.get(_key(row), {}), is_chosen=_key(row) == _key(after)) for row in rows]
    title = "Accuracy against the size of what is left"
    dots = [dot for row in rows for dot in _dots(row, again.get(_key(row), {}), after)]
    x = value_axis("values in prompts", [dot.x for dot in dots], short, zero=True)
    y = value_axis("validation accuracy", [dot.y for dot in dots], lambda share: f"{100 * share:.4g} %")
    key = legend(["as it is, masks alone", "trained again"], ["s1", "s2"], dots=True)
    chart = figure(title, scatter(title, dots, x, y), legend=key, note="The ring marks the chosen one.")
    return join([tag("p", {}, said), tag("div", {"class": "single"}, chart), table("Candidates", head, entries)])


def _dots(row: Row, again: Row, chosen: Row) -> list[Dot]:
    """As it is, and trained again if it was."""
    name = f"{row['tokens']} prompts and {row['segments']} segments pruned"
    tops = {"s1": row["masked"]["top1"], "s2": again.get("trained", {}).get("top1")}
    counts = "s2" if "trained" in chosen else "s1"
    return [
        Dot(
            name=name,
            x=row["prompt_parameters"],
            y=top1,
            title=f"{percent(top1)} with {row['prompt_parameters']:,} values in prompts",
            style=style,
            is_marked=_key(row) == _key(chosen) and style == counts,
        )
        for style, top1 in tops.items()
        if top1 is not None
    ]


def _entries(row: Row, again: Row, *, is_chosen: bool) -> list[Entry]:
    style = "chosen" if is_chosen else ""
    values = row["prompt_parameters"]
    return [
        number(str(row["tokens"]), row["tokens"], style),
        number(str(row["segments"]), row["segments"], style),
        number(f"{values:,}", values, style),
        number(size(row["delta_bytes"]), row["delta_bytes"], style),
        number(short(row["flops"]), row["flops"], style),
        number(percent(row["masked"]["top1"]), row["masked"]["top1"], style),
        _trained_again(again, style),
        Cell(content=style, style=style),
    ]


def _trained_again(row: Row, style: str) -> Cell:
    if "failed" in row:
        return Cell(content=f"failed: {row['failed']}", style=style)
    top1 = row.get("trained", {}).get("top1")
    return number(MISSING if top1 is None else percent(top1), top1, style)


def _key(row: Row) -> tuple[int, int]:
    return row["tokens"], row["segments"]
