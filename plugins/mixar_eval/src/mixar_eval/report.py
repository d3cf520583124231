"""A report of figures with all that they depend on: a value, shown as Markdown and JSON, saved with its pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen
from PIL import Image

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.pictures import write_png
from mixar_core.storage import user_path, write_text, writing

REPORT = "report"


@frozen
class Section:
    """A heading (may be empty), a table, whose columns are the keys of its rows, and lines above and below it."""

    heading: str = ""
    rows: Sequence[Mapping[str, object]] = ()
    lines: Sequence[str] = ()
    below: Sequence[str] = ()

    def to_markdown(self) -> str:
        """The section as Markdown."""
        heading = [f"## {self.heading}\n"] if self.heading else []
        rows = [table(self.rows)] if self.rows else []
        return "\n".join(
            [*heading, *(f"{line}\n" for line in self.lines), *rows, *(f"{line}\n" for line in self.below)]
        )


@frozen(eq=False, kw_only=True)
class Report:
    """What was measured, and all that it depends on.

    Args:
        title: of the report. protocol: whose figures these might compare with.
        reasons: why they do not compare; empty where they do.
        figures: the scores by name; None is what could not be measured.
        plain: everything, as values that JSON knows.
        sections: everything, to be read; the first has the figures. notes: what a reader must know, a line each.
        made: by what, when, on what. pictures: by file name. rows: of the CSV file, if there is one, and its name.
    """

    title: str
    protocol: str
    reasons: Sequence[str]
    figures: Mapping[str, float | None]
    plain: Mapping[str, Any]
    sections: Sequence[Section]
    made: Mapping[str, Any]
    notes: Sequence[str] = ()
    pictures: Mapping[str, Image.Image] = field(factory=dict)
    rows: tuple[str, Sequence[Mapping[str, Any]]] | None = None

    @property
    def comparable(self) -> str:
        """`yes`, or `no, because` of the reasons."""
        return f"no, because {'; '.join(self.reasons)}" if self.reasons else "yes"

    def to_json(self) -> dict[str, Any]:
        """Everything, as values that JSON knows."""
        head = {f"comparable with {self.protocol}": self.comparable, "notes": list(self.notes)}
        return {**head, **self.plain, "made": dict(self.made)}

    def to_markdown(self) -> str:
        """The whole report; its pictures are files beside it."""
        head = f"# {self.title}\n\n**Comparable with {self.protocol}: {self.comparable}**\n"
        first, *others = (section.to_markdown() for section in self.sections)
        notes = ["".join(f"- Note: {note}.\n" for note in self.notes)] if self.notes else []
        made = Section("Made by", facts(self.made)).to_markdown()
        pictures = [f"![{Path(name).stem}]({name})\n" for name in self.pictures]
        return "\n".join([head, first, *notes, *others, made, *pictures])

    def brief(self) -> str:
        """The figures, whether they compare, and the notes: what fits on a screen."""
        lines = [f"{self.title}\n", self.sections[0].to_markdown()]
        lines += [f"comparable with {self.protocol}: {self.comparable}", *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)

    __repr__ = brief

    def _repr_markdown_(self) -> str:
        return self.to_markdown().partition("\n![")[0]

    def save(self, folder: str | Path) -> None:
        """Write report.json, report.md, the pictures and the table into a folder.

        Raises:
            UserError: they cannot be written.
        """
        folder = user_path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            write_png(folder / name, picture)
        if self.rows is not None:
            write_text(folder / self.rows[0], csv_text(self.rows[1]))
        write_text(folder / f"{REPORT}.json", json.dumps(self.to_json(), indent=2) + "\n")
        write_text(folder / f"{REPORT}.md", self.to_markdown())


def check_folder(folder: Path, *known: str) -> None:
    """Refuse a folder that holds something else than an earlier report of the same kind, and what is `known`."""
    names = (*known, f"{REPORT}.json", f"{REPORT}.md")
    if folder.is_dir():
        strange = sorted(e.name for e in folder.iterdir() if e.name not in names and not e.name.endswith(".unfinished"))
        if strange:
            raise UserError(f"--out {folder}: holds something else ({strange[0]}); give another folder")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows with equal keys; columns behind the first are aligned right, if more than one."""
    columns = list(rows[0])
    rule = ["---", *["---:" if len(columns) > 2 else "---"] * (len(columns) - 1)]
    lines = [columns, rule, *([_cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(number(value) if isinstance(value, float) else value)


def number(value: float | None, digits: int = 4) -> str | None:
    """A figure with so many significant digits, without an exponent."""
    if value is None:
        return None
    whole = f"{value:,.{digits}g}"
    return f"{value:,.0f}" if "e+" in whole else whole


def facts(plain: Mapping[str, Any]) -> list[dict[str, object]]:
    """Rows of names and values; floats with few digits, mappings on one line."""
    rows = []
    for key, value in plain.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        rows.append({"what": key, "value": str(value) if isinstance(value, int) else value})
    return rows


def readable(row: Mapping[str, Any], gives_fid: bool) -> dict[str, Any]:
    """A row of a CSV file, its columns named for people."""
    names = dict(zip(("frechet_distance", "kernel_distance", "inception_score"), score_names(gives_fid), strict=True))
    return {names.get(key, key.replace("_", " ")): value for key, value in row.items()}


def score_names(gives_fid: bool) -> tuple[str, str, str]:
    """What the Frechet distance, the kernel distance and the Inception Score are called."""
    if gives_fid:
        return "FID", "KID", "Inception Score"
    return "Frechet distance", "kernel distance", "Inception-like score"


def described(extractor: FeatureExtractor) -> dict[str, Any]:
    """An extractor as plain values."""
    return {key: getattr(extractor, key) for key in ("identity", "feature_dim", "gives_fid")}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, whose columns may differ; None is an empty cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
