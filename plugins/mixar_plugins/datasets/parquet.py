"""Images in Parquet files, found by a split column or by their names; read by `datasets`, as the part of that name."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from attrs import field, frozen

from mixar_core.data.dataset import SPLIT_NAMES, names_of_split
from mixar_core.data.folders import is_hidden
from mixar_core.errors import UserError
from mixar_core.storage import user_path
from mixar_core.types import ImageSize
from mixar_plugins.datasets.hugging_face import (
    HuggingFaceConfig,
    HuggingFaceDataset,
    check_columns,
    check_names,
    import_datasets,
    open_rows,
    read_schema,
)


@frozen
class ParquetConfig:
    """Where the images are.

    Args:
        path: a Parquet file, or a folder of them.
        image_column: encoded images: bytes, or the `datasets` library's struct of bytes and path.
        label_column: integers from 0; class names are read from the schema where it has them. None: unlabelled.
        split_column: "train", or "validation" (also "val", "valid"), a row. None: the files' names begin so instead.
        cache_dir, orient: as of the part `datasets`.
        memory_mb: of no effect; recipes of before may say it.
    """

    path: str = field(metadata={"path": True})
    image_column: str | tuple[str, ...] = "image"
    label_column: str | None = "label"
    split_column: str | None = "split"
    cache_dir: str | None = field(default=None, metadata={"path": True})
    orient: bool = False
    memory_mb: int = 512


class ParquetDataset(HuggingFaceDataset):
    """Images with labels from Parquet files, by a split column or by file name.

    Raises:
        UserError: a file, column or split is missing, a label is outside of the classes, or two files name their
            classes differently.
    """

    def __init__(self, config: ParquetConfig, *, split: str, image_size: ImageSize) -> None:
        ours, known = names_of_split(split), tuple(name for names in SPLIT_NAMES.values() for name in names)
        import_datasets()
        import pyarrow.parquet as pq

        path, by_name = user_path(config.path), config.split_column is None
        every = _files(path)
        files = [file for file in every if not by_name or file.name.startswith(ours)]
        if not files:
            raise UserError(
                f"{path}: no file named {split}*.parquet for the {split} split (found {every[0].name}); or name a "
                "split_column"
            )
        check_names(map(str, every), config.label_column)
        counts = {file: pq.read_metadata(file).num_rows for file in files}
        files = [file for file in files if counts[file]]  # `datasets` fails on one without rows
        if not files:
            raise UserError(f"{path}: no rows in the files of the {split} split")
        asked = HuggingFaceConfig(
            "parquet",
            data_files={"train": tuple(map(str, files))},
            image_column=config.image_column,
            label_column=config.label_column,
            cache_dir=config.cache_dir,
            orient=config.orient,
        )
        needed = asked.needed_columns() | ({} if config.split_column is None else {config.split_column: "split_column"})
        check_columns(needed, read_schema(str(files[0])).names, str(files[0]))
        rows, _ = open_rows(asked, "train", keep=[*needed], columns=[*needed])
        self._files, self._starts = files, [0, *accumulate(counts[file] for file in files)]
        self._chosen: Sequence[int] = range(len(rows))
        lost = [file.name for file in every if by_name and not file.name.startswith(known)]
        if config.split_column is not None:
            values = rows[config.split_column][:]
            lost = [str(value) for value in values if value not in known]
            self._chosen = [row for row, value in enumerate(values) if value in ours]
            if not self._chosen:
                found = ", ".join(sorted(set(map(str, values)))[:5])
                raise UserError(f"{path}: no row of split {split!r} in column {config.split_column!r}: {found}")
            rows = rows.select(self._chosen)
        self._hold(rows, asked, f"{path}, {split}", image_size)
        if lost:
            kind = "files" if by_name else "rows"
            self.notes = (f"{path}: left out: {len(lost):,} {kind} of no split that is read ({lost[0]})", *self.notes)

    def _where(self, row: int) -> str:
        row = self._chosen[row]
        file = bisect.bisect_right(self._starts, row) - 1
        return f"{self._files[file]}, row {row - self._starts[file]}"


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = sorted(file for file in path.glob("*.parquet") if not is_hidden(file.name)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no *.parquet file in this folder")
    return files
