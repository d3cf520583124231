"""Makes the zoo's two data sets, one Parquet file each, and their tally in DATA.md.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    pip install datasets mlxtend pillow
    python make_data.py emoji-datasource-google-16.0.0.tgz emoji-datasource-twitter-16.0.0.tgz

The same input gives the same pixels, rows and split; the bytes of the files also depend on the versions of Pillow
and pyarrow, so DATA.md carries a checksum of both the file and the pixels. It takes some minutes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

DATA = Path(__file__).parent / "src" / "mixar_zoo" / "data"
SPLITS = ("train", "validation")

#: Unicode's own order. `emoji.json` has a tenth category, "Component" (bare skin tones): not pictures of anything.
CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
VENDORS = ("google", "twitter")
DIGITS_PER_CLASS_IN_VALIDATION = 100

Row = dict[str, Any]


def emoji_rows(vendor: str, path: Path) -> Iterator[tuple[Row, Image.Image]]:
    """Every base emoji of a vendor, over white; skin-tone copies are nested in `emoji.json` and so left out."""
    with tarfile.open(path) as archive:

        def read(name: str) -> Any:
            return archive.extractfile(f"package/{name}")

        for entry in sorted(json.load(read("emoji.json")), key=lambda entry: entry["sort_order"]):
            if entry["category"] not in CATEGORIES or not entry[f"has_img_{vendor}"]:
                continue
            picture = Image.open(read(f"img/{vendor}/64/{entry['image']}")).convert("RGBA")
            white = Image.new("RGBA", (64, 64), "white")
            row = {
                "path": f"{vendor}/{entry['image']}",
                "label": CATEGORIES.index(entry["category"]),
                # by the emoji, not by the drawing: two drawings of one emoji never face each other across the split
                "split": SPLITS[_hash(entry["unified"].encode()) % 10 == 0],
                "name": (entry["name"] or entry["short_name"].replace("_", " ")).lower(),
                "vendor": VENDORS.index(vendor),
                "category": entry["category"],
                "subcategory": entry["subcategory"],
                "unicode": entry["unified"],
            }
            yield row, Image.alpha_composite(white, picture).convert("RGB")


def digit_rows() -> Iterator[tuple[Row, Image.Image]]:
    """mlxtend's 5,000 MNIST digits on a black 32x32 square; of each digit the 100 of lowest hash are validation."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pixels_NHW = pixels.astype(numpy.uint8).reshape(-1, 28, 28)
    rank: dict[int, list[int]] = {digit: [] for digit in range(10)}
    for index in sorted(range(len(labels)), key=lambda index: (_hash(pixels_NHW[index].tobytes()), index)):
        rank[int(labels[index])].append(index)
    validation = {index for indices in rank.values() for index in indices[:DIGITS_PER_CLASS_IN_VALIDATION]}
    for index, label in enumerate(labels):
        picture = Image.fromarray(numpy.pad(pixels_NHW[index], 2))
        yield {"path": f"{index}", "label": int(label), "split": SPLITS[index in validation]}, picture


def write(path: Path, rows: list[tuple[Row, Image.Image]], features: Features) -> str:
    """Write the Parquet file, in the smaller of two lossless formats, and return its paragraph of DATA.md."""
    rows = sorted(rows, key=lambda row: SPLITS.index(row[0]["split"]))
    options: dict[str, dict[str, Any]] = {
        "PNG": {"optimize": True},
        "WebP": {"lossless": True, "quality": 100, "method": 6},
    }
    encoded = {name: [_encode(picture, name, **settings) for _, picture in rows] for name, settings in options.items()}
    kind = min(encoded, key=lambda name: sum(map(len, encoded[name])))
    pixels = hashlib.sha256()
    for data, (row, picture) in zip(encoded[kind], rows, strict=True):
        pixels.update(raw := picture.convert("RGB").tobytes())
        if Image.open(io.BytesIO(data)).convert("RGB").tobytes() != raw:
            raise SystemExit(f"{kind} did not keep every pixel")
        name = row["path"] if "/" in row["path"] else f"{row['path']}.{kind.lower()}"
        row["image"] = {"bytes": data, "path": name}
    table = pa.table({name: [row[name] for row, _ in rows] for name in features}, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=500, compression="zstd")
    counts = Counter((row["label"], row["split"]) for row, _ in rows)
    totals = Counter(row["split"] for row, _ in rows)
    lines = [
        f"| {name} | {counts[label, 'train']} | {counts[label, 'validation']} |"
        for label, name in enumerate(features["label"].names)
    ]
    return "\n".join(
        [
            f"## {path.name}",
            "",
            f"{len(rows)} images, lossless {kind}, {path.stat().st_size / 1e6:.1f} MB.",
            f"Columns: {', '.join(features)}.",
            "",
            "| class | train | validation |",
            "|---|---:|---:|",
            *lines,
            f"| all | {totals['train']} | {totals['validation']} |",
            "",
            f"- sha256 of the file: `{hashlib.sha256(path.read_bytes()).hexdigest()}`",
            f"- sha256 of all pixels, RGB, row after row: `{pixels.hexdigest()}`",
            "",
        ]
    )


def _encode(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def main(google: Path, twitter: Path) -> None:
    """Make both files and DATA.md, of emoji-datasource-google-16.0.0.tgz and the like of Twitter's."""
    DATA.mkdir(parents=True, exist_ok=True)
    features = {"image": ImageFeature(), "label": ClassLabel(names=list(CATEGORIES)), "split": Value("string")}
    emoji = Features(
        **features,
        name=Value("string"),
        vendor=ClassLabel(names=list(VENDORS)),
        category=Value("string"),
        subcategory=Value("string"),
        unicode=Value("string"),
    )
    digits = Features(**features | {"label": ClassLabel(names=[str(digit) for digit in range(10)])})
    drawings = [*emoji_rows("google", google), *emoji_rows("twitter", twitter)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("pillow", "pyarrow", "mlxtend"))
    paragraphs = [
        "# The zoo's data\n",
        "Written by `make_data.py`, whose head gives the commands; licences and attribution are in LICENSES.md.",
        f"Made with {versions}. `datasets.load_dataset('parquet', data_files=...)` reads the files too.\n",
        write(DATA / "emoji64.parquet", drawings, emoji),
        write(DATA / "digits.parquet", list(digit_rows()), digits),
    ]
    (DATA / "DATA.md").write_text("\n".join(paragraphs), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
