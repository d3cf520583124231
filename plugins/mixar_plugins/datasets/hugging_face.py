"""Images from whatever Hugging Face's `datasets` reads: folders, Parquet, WebDataset tars, the hub; also streams."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, optional
from torch import Tensor

from mixar_core.data.dataset import EncodedImage, ImageDataset, ImageStream
from mixar_core.data.images import read_image
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS

_FORMATS = ("arrow", "csv", "hdf5", "imagefolder", "json", "lance", "pandas", "parquet", "text", "webdataset", "xml")


def _is_folder(text: str, path: Path) -> bool:
    """Whether a data set's name is that of a folder here. A format is none, whatever lies there."""
    return text.startswith(("/", "~", "./", "../")) or (text not in _FORMATS and path.exists())


def _is_files(text: str, path: Path) -> bool:
    """Whether a pattern finds files by itself; another one is meant as seen from data_dir."""
    return text.startswith("~") or bool(glob(str(path)))


@frozen
class HuggingFaceConfig:
    """What `datasets.load_dataset` is asked for.

    Args:
        path: a format (imagefolder, parquet, arrow, webdataset ...), a folder, or a data set's name at the hub.
        name: one of its configurations, where it has several. revision: of one at the hub.
        data_dir: the folder of a format's files.
        data_files: its files by split, for example {train: [train-*.tar], validation: [val-*.tar]}.
        train_split: what `datasets` calls the training split; a slice as train[:95%] unless it is a stream.
        validation_split: the same for validation.
        image_column: encoded images; in WebDataset tars the files' ending (jpg, png).
        label_column: class numbers (cls in WebDataset tars). None: unlabelled.
        num_classes: where labels are plain numbers; None: the largest and one, which a stream does not know.
        streaming: read from front to back, nothing is kept on disk: for `mixar cache`, not for training.
        cache_dir: where `datasets` keeps its Arrow files; None: where it always does (HF_HOME). All encoded images lie
            there once more, but for those that are files of their own already (imagefolder).
    """

    path: str = field(metadata={"path": _is_folder})
    name: str | None = None
    revision: str | None = None
    data_dir: str | None = field(default=None, metadata={"path": True})
    data_files: dict[str, tuple[str, ...]] | None = field(default=None, metadata={"path": _is_files})
    train_split: str = "train"
    validation_split: str = "validation"
    image_column: str = "image"
    label_column: str | None = "label"
    num_classes: int | None = field(default=None, validator=optional(ge(1)))
    streaming: bool = False
    cache_dir: str | None = field(default=None, metadata={"path": True})


class HuggingFaceDataset(ImageDataset):
    """Images that Hugging Face's `datasets` library reads, with random access or as a stream.

    Raises:
        UserError: it cannot read them, a column is missing or of the wrong kind, or a label is outside the classes.
    """

    def __init__(self, config: HuggingFaceConfig, *, split: str, image_size: int) -> None:
        if split not in ("train", "validation"):
            raise UserError(f"split {split!r}: must be one of train, validation")
        self.config, self.image_size = config, image_size
        named = config.train_split if split == "train" else config.validation_split
        self._name = f"{config.path}, {named}"
        self._rows = _load(config, named)
        names = _label_names(self._rows.features, config)
        self._labels = [] if config.streaming else self._all_labels()
        if names is None:
            if config.streaming and config.num_classes is None:
                raise UserError(f"{self._name}: how many classes there are, a stream does not say; set num_classes")
            names = tuple(map(str, range(config.num_classes or max(self._labels, default=NO_CLASS) + 1)))
        self.class_names, self.num_classes = names, len(names)
        if config.streaming:
            self.stream = _Rows(self._rows, config, self.num_classes, self._name)
        for row, label in enumerate(self._labels):
            if not NO_CLASS <= label < self.num_classes:
                raise _wrong_label(label, self.num_classes, f"{self._name}, row {row}")

    def __len__(self) -> int:
        self._need_random_access()
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self._need_random_access()
        image = _encoded(self._rows[index], self.config, f"{self._name}, row {index}")
        return read_image(image.data, self.image_size, where=image.where), self._labels[index]

    def labels(self) -> list[int]:
        self._need_random_access()
        return list(self._labels)

    def _need_random_access(self) -> None:
        if self.config.streaming:
            raise UserError(
                f"{self._name}: a stream has no random access: run `mixar cache RECIPE --out DIR` and train with "
                "training.cache=DIR, or set data.streaming to false"
            )

    def _all_labels(self) -> list[int]:
        column = self.config.label_column
        if column is None:
            return [NO_CLASS] * len(self._rows)
        return [NO_CLASS - 1 if label is None else int(label) for label in self._rows[column][:]]


class _Rows(ImageStream):
    """The rows of an iterable data set."""

    def __init__(self, rows: Any, config: HuggingFaceConfig, num_classes: int, name: str) -> None:
        self.rows, self.config, self.num_classes, self.name = rows, config, num_classes, name

    def __iter__(self) -> Iterator[EncodedImage]:
        count = 0
        try:
            for row in self.rows:
                image = _encoded(row, self.config, f"{self.name}, row {count}")
                count += 1
                if not NO_CLASS <= image.label < self.num_classes:
                    raise _wrong_label(image.label, self.num_classes, image.where)
                yield image
        except UserError:
            raise
        except Exception as error:  # a torn archive, a lost connection: each format has classes of its own
            raise UserError(f"{self.name}: breaks off after {count} rows: {_one_line(error)}") from error


def _load(config: HuggingFaceConfig, split: str) -> Any:
    """The split's rows, images not decoded."""
    import datasets  # takes a second, and most runs do without

    files = None if config.data_files is None else {key: list(value) for key, value in config.data_files.items()}
    quiet = not (sys.stderr.isatty() or datasets.utils.are_progress_bars_disabled())
    try:
        if quiet:
            datasets.disable_progress_bars()
        rows = datasets.load_dataset(
            config.path,
            config.name,
            revision=config.revision,
            data_dir=_expanded(config.data_dir),
            data_files=files,
            split=split,
            streaming=config.streaming,
            cache_dir=_expanded(config.cache_dir),
        )
    except Exception as error:  # each format has classes of its own
        raise UserError(f"{config.path}: datasets cannot read it: {_one_line(error)}") from error
    finally:
        if quiet:
            datasets.enable_progress_bars()
    features = rows.features
    if features is None:
        raise UserError(f"{config.path}: datasets does not know its columns")
    columns = [config.image_column] + ([] if config.label_column is None else [config.label_column])
    for key, column in zip(("image_column", "label_column"), columns, strict=False):
        if column not in features:
            hint = "" if key == "image_column" else f"; {key}: null does without"
            raise UserError(f"{config.path}: no column {column!r} ({key}); columns: {', '.join(features)}{hint}")
    rows, images = rows.select_columns(columns), features[config.image_column]
    if isinstance(images, datasets.Image):
        return rows.cast_column(config.image_column, datasets.Image(decode=False))
    if not (isinstance(images, Mapping) and "bytes" in images) and getattr(images, "dtype", "") != "binary":
        raise UserError(f"{config.path}: column {config.image_column!r} (image_column) holds no images: {images}")
    return rows


def _label_names(features: Mapping[str, Any], config: HuggingFaceConfig) -> tuple[str, ...] | None:
    """Names of the classes; none where there are no labels, None where labels are plain numbers."""
    if config.label_column is None:
        return ()
    feature = features[config.label_column]
    if getattr(feature, "names", None):
        return tuple(feature.names)
    if not str(getattr(feature, "dtype", feature)).startswith(("int", "uint")):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise UserError(f"{config.path}: column {config.label_column!r} is {kind}, not class numbers")
    return None


def _encoded(row: Mapping[str, Any], config: HuggingFaceConfig, where: str) -> EncodedImage:
    """A row's image file and label."""
    value = row[config.image_column]
    data, path = value, None
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
    where = where if path is None else f"{where} ({path})"
    if data is None and path is not None:
        data = _read(path)
    label = NO_CLASS if config.label_column is None else row[config.label_column]
    # what is no image is found out where images are decoded, and counted there
    return EncodedImage(data if isinstance(data, bytes) else b"", NO_CLASS - 1 if label is None else int(label), where)


def _read(path: str) -> bytes | None:
    """A file that a row names: beside the data, at the hub, or inside an archive; None if it cannot be read."""
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        import fsspec

        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
        return data
    except OSError:
        return None


def _wrong_label(label: int, num_classes: int, where: str) -> UserError:
    shown = "none" if label < NO_CLASS else str(label)
    return UserError(f"{where}: label {shown}: must be 0 to {num_classes - 1}, or {NO_CLASS} for no class")


def _expanded(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser())


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
