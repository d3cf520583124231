"""docs/gpu.md: a table a part, of the rows that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.part import Row
from mixar_eval import report

#: what names a way of training or drawing, in the rows that say what it costs, too
NAMES = ("recipe", "preset", "precision", "batch", "how")


def markdown(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The page.

    Args:
        found: what gpu.json holds. titles: a sentence over each part's table.
    """
    facts = [f"{key} {found[key]}" for key in ("memory GB", "torch", "CUDA", "driver", "date")]
    lines = ["# On a GPU\n", f"    {found['command']}\n", ", ".join([found["card"], *facts]) + ".\n"]
    lines += [
        "Written by the command above, and not by hand. Models are of full size with seeded weights, data are random: "
        "time and memory do not depend on them. *Of the peak* is model FLOP over what the card's own products of large "
        "matrices reached in this call (first table). A row that failed says why; what had no time left says so.\n"
    ]
    for name, part in found["parts"].items():
        lines += [f"## {name.replace('_', ' ')}\n", f"{titles[name]}\n"]
        lines += [table(part["rows"])] if part["rows"] else []
        lines += [f"Not finished: {part['ended']}.\n"] if part["ended"] != "well" else []
    return "\n".join(lines)


def priced(rows: Sequence[Row], costs: Sequence[Row], peak: Sequence[Row]) -> list[Row]:
    """Rows with the TFLOP/s that their images are, as a share of the card's own peak, and estimates of memory."""
    peaks = {row["format"]: row["TFLOP/s"] for row in peak if "format" in row}
    told = []
    for row in rows:
        cost = next((c for c in costs if all(row.get(key) == c[key] for key in NAMES if key in c)), {})
        added = {"GB estimated": cost["GB estimated"]} if "GB estimated" in cost else {}
        if cost.get("GFLOP") is not None and "images/s" in row:
            tflops = 1e-3 * row["images/s"] * cost["GFLOP"]
            best = peaks.get(row["precision"])
            added |= {"TFLOP/s": tflops, "of the peak": tflops / best if best else None}
        told.append({**row, **added} if "images/s" in row else row)
    return told


def table(rows: Sequence[Row]) -> str:
    """Markdown of rows whose columns may differ; what no row has is left out."""
    columns = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    return report.table([{key: cell(row.get(key), key) for key in columns} for row in rows])


def cell(value: object, column: str) -> str:
    """A value as the page shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float) and column in ("of the peak", "share", "busy"):
        return f"{value:.1%}"
    if isinstance(value, int | float):
        return str(f"{value:,}" if isinstance(value, int) else report.number(value, 3))
    return str(value)
