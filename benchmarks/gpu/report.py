"""docs/gpu.md: a table a part, of the rows that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.part import Row


def markdown(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The page.

    Args:
        found: what gpu.json holds. titles: a sentence over each part's table.
    """
    lines = ["# On a GPU", "", f"    {found['command']}", ""]
    facts = {key: found[key] for key in ("card", "memory GB", "torch", "CUDA", "driver", "date")}
    lines += [", ".join(f"{value}" if key == "card" else f"{key} {value}" for key, value in facts.items()) + ".", ""]
    lines += [
        "Written by the command above, and not by hand. Models are of full size with seeded weights, data are random: "
        "time and memory do not depend on them. *Of the peak* is model FLOP over what the card's own products of large "
        "matrices reached in this call (first table). A row that failed says why; what had no time left says so.",
        "",
    ]
    for name, part in found["parts"].items():
        lines += [f"## {name.replace('_', ' ')}", "", titles[name], ""]
        lines += [*table(part["rows"]), ""] if part["rows"] else []
        lines += [f"Not finished: {part['ended']}.", ""] if part["ended"] != "well" else []
    return "\n".join(lines)


#: what names a way of training or drawing in the rows that say what it costs
NAMES = ("recipe", "preset", "precision", "batch", "how")


def priced(rows: Sequence[Row], costs: Sequence[Row], peak: Sequence[Row]) -> list[Row]:
    """Rows with the TFLOP/s that their images are, as a share of the card's own peak, and estimates of memory."""
    peaks = {row["format"]: row["TFLOP/s"] for row in peak if "format" in row}
    return [_priced(row, costs, peaks) for row in rows]


def _priced(row: Row, costs: Sequence[Row], peaks: Mapping[str, float]) -> Row:
    found = [cost for cost in costs if all(row.get(key) == cost[key] for key in NAMES if key in cost)]
    if "images/s" not in row or not found:
        return row
    added: Row = {"GB estimated": found[0]["GB estimated"]} if "GB estimated" in found[0] else {}
    if found[0]["GFLOP"] is not None:
        tflops = 1e-3 * row["images/s"] * found[0]["GFLOP"]
        peak = peaks.get(row["precision"])
        added |= {"TFLOP/s": tflops, "of the peak": tflops / peak if peak else None}
    return {**row, **added}


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown of rows whose columns may differ; what no row has is left out."""
    columns = [
        key for key in dict.fromkeys(k for row in rows for k in row) if any(row.get(key) is not None for row in rows)
    ]
    numbers = [key for key in columns if any(isinstance(row.get(key), int | float) for row in rows)]
    lines = [" | ".join(columns), " | ".join("---:" if key in numbers else "---" for key in columns)]
    lines += [" | ".join(cell(row.get(key), key) for key in columns) for row in rows]
    return [f"| {line} |" for line in lines]


def cell(value: object, column: str) -> str:
    """A value as the page shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value).replace("|", "/")
    if column in ("of the peak", "share", "busy"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
