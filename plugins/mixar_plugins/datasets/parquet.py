"""Images in Parquet files, as the `datasets` library and the Hugging Face hub lay them out."""

from __future__ import annotations

import bisect
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
from attrs import field, frozen
from torch import Tensor

from mixar_core.data.dataset import ImageDataset
from mixar_core.data.images import read_image
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS

#: How a split may be called in a column or at the beginning of a file's name.
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid")}


@frozen
class ParquetConfig:
    """Where the images are.

    Args:
        path: a Parquet file, or a folder of them.
        image_column: encoded images: bytes, or the `datasets` library's struct of bytes and path.
        label_column: integers from 0; class names are read from the schema where it has them. None: unlabelled.
        split_column: "train", or "validation" (also "val", "valid"), a row. None: the files' names begin so instead.
        memory_mb: how much encoded data each process keeps. Row groups beyond that are read again, one per image in a
            shuffled order: train on a larger set from a cache of its latents, or from a folder of images.
    """

    path: str = field(metadata={"path": True})
    image_column: str = "image"
    label_column: str | None = "label"
    split_column: str | None = "split"
    memory_mb: int = 512


class ParquetDataset(ImageDataset):
    """Images with labels from Parquet files, by a split column or by file name.

    Raises:
        UserError: a file, column or split is missing, or a label is outside the classes.
    """

    def __init__(self, config: ParquetConfig, *, split: str, image_size: int) -> None:
        if split not in SPLIT_NAMES:
            raise UserError(f"split {split!r}: must be one of {', '.join(SPLIT_NAMES)}")
        self.config, self.split, self.image_size = config, split, image_size
        self._groups: list[tuple[Path, int, int]] = []  # each row group: file, number in it, rows of it before
        self._starts = [0]  # rows before each row group, counting through all files; and their total
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        tables = [self._index(path) for path in self._paths()]
        names = _class_names(tables[0].schema, config.label_column)
        try:
            table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{config.path}: its files do not have the same columns: {error}".splitlines()[0]
            ) from error
        chosen = numpy.arange(self._starts[-1])
        if config.split_column is not None:
            values = numpy.array(table[config.split_column].to_pylist(), dtype=object)
            chosen = numpy.flatnonzero(numpy.isin(values, SPLIT_NAMES[split]))
            if len(chosen) == 0:
                found = ", ".join(sorted({str(value) for value in values})[:5])
                raise UserError(f"{config.path}: no row of split {split!r} in column {config.split_column!r}: {found}")
        self._rows = chosen
        self._labels = numpy.full(self._starts[-1], NO_CLASS)
        if config.label_column is not None:
            self._labels = self._checked_labels(table[config.label_column], names)
            names = names or tuple(str(label) for label in range(int(self._labels.max()) + 1))
        self.class_names = names
        self.num_classes = len(names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = int(self._rows[index])
        group = self._group_of(row)
        value = self._images(group)[row - self._starts[group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(f"{self._where(row)}: column {self.config.image_column!r} holds no image bytes")
        return read_image(data, self.image_size, where=self._where(row)), int(self._labels[row])

    def labels(self) -> list[int]:
        return self._labels[self._rows].tolist()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}  # a loader's worker reads for itself

    def _paths(self) -> list[Path]:
        path = Path(self.config.path).expanduser()
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not paths:
            raise UserError(f"{path}: no *.parquet file in this folder")
        if self.config.split_column is None:
            found, paths = paths, [path for path in paths if path.name.startswith(SPLIT_NAMES[self.split])]
            if not paths:
                raise UserError(
                    f"{path}: no file named {self.split}*.parquet for the {self.split} split "
                    f"(found {found[0].name}); or name a split_column"
                )
        return paths

    def _index(self, path: Path) -> pa.Table:
        """Note the file's row groups, and read its labels and splits."""
        config = self.config
        try:
            with pq.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                for key in ("image_column", "label_column", "split_column"):
                    name = getattr(config, key)
                    if name is not None and name not in columns:
                        hint = "" if key == "image_column" else f"; {key}: null does without"
                        raise UserError(f"{path}: no column {name!r} ({key}); columns: {', '.join(columns)}{hint}")
                first = self._starts[-1]
                for group in range(file.num_row_groups):
                    self._groups.append((path, group, self._starts[-1] - first))
                    self._starts.append(self._starts[-1] + file.metadata.row_group(group).num_rows)
                return file.read([name for name in (config.label_column, config.split_column) if name is not None])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error

    def _checked_labels(self, column: pa.ChunkedArray, names: tuple[str, ...]) -> numpy.ndarray:
        if not pa.types.is_integer(column.type):
            raise UserError(f"{self.config.path}: column {self.config.label_column!r} is {column.type}, not integer")
        labels = column.cast(pa.int64()).fill_null(NO_CLASS - 1).to_numpy()
        highest = len(names) - 1 if names else numpy.iinfo(numpy.int64).max
        wrong = numpy.flatnonzero((labels < NO_CLASS) | (labels > highest))
        if len(wrong):
            row = int(wrong[0])
            allowed = f"0 to {highest}" if names else "0 or more"
            raise UserError(f"{self._where(row)}: label {column[row]}: must be {allowed}, or {NO_CLASS} for no class")
        return labels

    def _images(self, group: int) -> pa.ChunkedArray:
        """A row group's encoded images; opened anew each time, so that no file is shared between processes."""
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        path, number, _ = self._groups[group]
        try:
            with pq.ParquetFile(path) as file:
                images = file.read_row_group(number, [self.config.image_column], use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: row group {number} unreadable: {str(error).splitlines()[0]}") from error
        self._kept[group] = images[self.config.image_column]
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.config.memory_mb * 2**20:
            self._kept.popitem(last=False)
        return self._kept[group]

    def _group_of(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def _where(self, row: int) -> str:
        group = self._group_of(row)
        path, _, before = self._groups[group]
        return f"{path}, row {before + row - self._starts[group]}"


def _class_names(schema: pa.Schema, label_column: str | None) -> tuple[str, ...]:
    """Class names as the `datasets` library notes them in the schema's metadata, or ()."""
    noted = (schema.metadata or {}).get(b"huggingface")
    if noted is None or label_column is None:
        return ()
    feature = json.loads(noted).get("info", {}).get("features", {}).get(label_column) or {}
    return tuple(feature.get("names") or ())
