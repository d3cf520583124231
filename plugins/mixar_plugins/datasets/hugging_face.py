"""Images from whatever Hugging Face's `datasets` reads: folders, Parquet, WebDataset tars, the hub; also streams."""

from __future__ import annotations

import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import escape, glob, has_magic
from itertools import pairwise
from pathlib import Path
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, min_len, optional
from torch import Tensor

from mixar_core.data.dataset import (
    EncodedImage,
    ImageDataset,
    ImageStream,
    class_misfit,
    empty_classes,
    names_of_split,
)
from mixar_core.data.folders import image_endings, is_hidden
from mixar_core.errors import UserError
from mixar_core.storage import is_url
from mixar_core.types import NO_CLASS, ImageSize

_FORMATS = ("arrow", "csv", "hdf5", "imagefolder", "json", "lance", "pandas", "parquet", "text", "webdataset", "xml")


def _is_folder(text: str, path: Path) -> bool:
    """Whether a data set's name is that of a folder here. A format is none, whatever lies there."""
    return text.startswith(("/", "~", "./", "../")) or (text not in _FORMATS and path.exists())


def _file(text: str) -> str:
    """A file of this very name, whatever is in it that patterns have; else the pattern."""
    path = os.path.expanduser(text)
    return escape(path) if os.path.exists(path) else path


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
        image_column: encoded images; in WebDataset tars the files' ending (jpg, png). Of several, [jpg, png], the first
            that a row has.
        label_column: class numbers (cls in WebDataset tars). None: unlabelled.
        num_classes: where labels are plain numbers; None: the largest and one, which a stream does not know.
        streaming: read from front to back, nothing is kept on disk: for `mixar cache`, not for training.
        cache_dir: where `datasets` keeps its Arrow files; None: where it always does (HF_HOME). All encoded images lie
            there once more, but for those that are files of their own already (imagefolder).
        orient: turn photos as their EXIF entry says, as viewers do. The published systems do not.
    """

    path: str = field(metadata={"path": _is_folder})
    name: str | None = None
    revision: str | None = None
    data_dir: str | None = field(default=None, metadata={"path": True})
    data_files: dict[str, tuple[str, ...]] | None = field(default=None, metadata={"path": _is_files})
    train_split: str = "train"
    validation_split: str = "validation"
    image_column: str | tuple[str, ...] = field(default="image", validator=min_len(1))
    label_column: str | None = "label"
    num_classes: int | None = field(default=None, validator=optional(ge(1)))
    streaming: bool = False
    cache_dir: str | None = field(default=None, metadata={"path": True})
    orient: bool = False

    def needed_columns(self) -> dict[str, str]:
        """Each column that is read, and the setting that names it."""
        label = {} if self.label_column is None else {self.label_column: "label_column"}
        return dict.fromkeys(self.image_columns, "image_column") | label

    @property
    def image_columns(self) -> tuple[str, ...]:
        """`image_column` as a tuple."""
        return (self.image_column,) if isinstance(self.image_column, str) else tuple(self.image_column)


class HuggingFaceDataset(ImageDataset):
    """Images that Hugging Face's `datasets` library reads, with random access or as a stream.

    Raises:
        UserError: it is not installed or cannot read them, a column is missing or of the wrong kind, a label is outside
            of the classes, or two files name their classes differently.
    """

    def __init__(self, config: HuggingFaceConfig, *, split: str, image_size: ImageSize) -> None:
        names_of_split(split)
        named = config.train_split if split == "train" else config.validation_split
        rows, files = open_rows(config, named)
        self._hold(rows, config, f"{config.path}, {named}", image_size)
        if not config.streaming:
            self.notes = (*self.notes, *_unread(rows, config.image_columns[0], files, self._name))

    def _hold(self, rows: Any, config: HuggingFaceConfig, name: str, image_size: ImageSize) -> None:
        """Take rows with the columns that `config` names."""
        self.config, self.image_size, self._name, self._rows = config, image_size, name, rows
        names, column = label_names(rows.features, config), config.label_column
        self._all_labels: list[int] = []
        if not config.streaming:
            self._all_labels = [NO_CLASS] * len(rows) if column is None else [*map(_label, rows[column][:])]
        if names is None:
            if config.streaming and config.num_classes is None:
                raise UserError(f"{name}: how many classes there are, a stream does not say; set num_classes")
            names = tuple(map(str, range(config.num_classes or max(self._all_labels, default=NO_CLASS) + 1)))
        self.class_names, self.num_classes = names, len(names)
        if config.streaming:
            self.stream = _Rows(self)
            return
        for row, label in enumerate(self._all_labels):
            self._check_label(label, row)
        self.notes = tuple(empty_classes(name, names, self._all_labels))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self._labels[index]
        return self.encoded(index).pixels(self.image_size), label

    def encoded(self, index: int) -> EncodedImage:
        """A row's image file and label."""
        return self._encoded(self._rows[index], index)

    def labels(self) -> list[int]:
        return list(self._labels)

    @property
    def _labels(self) -> list[int]:
        if self.stream is not None:
            raise UserError(
                f"{self._name}: a stream has no random access: run `mixar cache RECIPE --out DIR` and train with "
                "training.cache=DIR, or set data.streaming to false"
            )
        return self._all_labels

    def _where(self, row: int) -> str:
        return f"{self._name}, row {row}"

    def _check_label(self, label: int, row: int) -> None:
        if not NO_CLASS <= label < self.num_classes:
            shown = "none" if label < NO_CLASS else str(label)
            allowed = f"must be 0 to {self.num_classes - 1}, or {NO_CLASS} for no class"
            raise UserError(f"{self._where(row)}: label {shown}: {allowed}")

    def _encoded(self, values: Mapping[str, Any], row: int) -> EncodedImage:
        """A row's image file and label."""
        names, where, problem = self.config.image_columns, self._where(row), ""
        data: Any = next((values[name] for name in names if values[name] is not None), None)
        path = None
        if isinstance(data, Mapping):
            data, path = data.get("bytes"), data.get("path")
        if path is not None:
            where = f"{where} ({path})"
            if data is None:
                data, problem = _read(path)
        elif data is None:
            problem = f"no {' or '.join(names)}{_instead(values)}"
        label = NO_CLASS if self.config.label_column is None else _label(values[self.config.label_column])
        return EncodedImage(data or b"", label, where, problem=problem, orient=self.config.orient)


class _Rows(ImageStream):
    """The rows of an iterable data set."""

    def __init__(self, data: HuggingFaceDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[EncodedImage]:
        count = 0
        try:
            for values in self.data._rows:
                image = self.data._encoded(values, count)
                self.data._check_label(image.label, count)
                count += 1
                yield image
        except UserError:
            raise
        except Exception as error:  # a torn archive, a lost connection: each format has classes of its own
            raise UserError(f"{self.data._name}: breaks off after {count} rows: {_one_line(error)}") from error


def open_rows(
    config: HuggingFaceConfig, split: str, *, keep: Sequence[str] = (), **reading: Any
) -> tuple[Any, list[str]]:
    """The split's rows of the columns that `config` names and those to `keep`, images not decoded; and its files.

    `reading` are settings of the format's reader.
    """
    datasets, home = import_datasets(), os.path.expanduser
    asked = {key: getattr(config, key) for key in ("path", "name", "revision", "data_dir", "cache_dir")} | reading
    for key in ("path", "data_dir", "cache_dir"):
        asked[key] = asked[key] and home(asked[key])
    if config.data_files is not None:
        asked["data_files"] = {key: [*map(_file, files)] for key, files in config.data_files.items()}
    for folder in (asked["path"], asked["data_dir"]):
        if folder and has_magic(folder) and os.path.isdir(folder):  # it would read others whose names fit, too
            raise UserError(f"{folder}: datasets takes *, ? and [ in a folder's name for a pattern; rename it")
    images, label = config.image_columns, config.label_column
    if config.path == "webdataset" and len(images) > 1:  # it looks at five rows only to find out which there are
        columns = dict.fromkeys(("__key__", "__url__"), datasets.Value("string"))
        columns |= dict.fromkeys(images, datasets.Image()) | ({} if label is None else {label: datasets.Value("int64")})
        asked["features"] = datasets.Features(columns)
    quiet = not (sys.stderr.isatty() or datasets.utils.are_progress_bars_disabled())
    try:
        if quiet:
            datasets.disable_progress_bars()
        found = datasets.load_dataset_builder(**asked).config.data_files or {}
        used = {each.partition("[")[0] for each in (config.train_split, config.validation_split)}
        read = {str(key): [*map(str, files)] for key, files in found.items() if str(key) in used}
        if twice := [file for files in read.values() for file, times in Counter(files).items() if times > 1]:
            raise UserError(f"{config.path}: {twice[0]} is named twice by data_files, and would be read twice")
        check_names([file for files in read.values() for file in files], label)
        rows = datasets.load_dataset(**asked, split=split, streaming=config.streaming)
    except UserError:
        raise
    except Exception as error:  # each format has classes of its own
        raise UserError(f"{config.path}: datasets cannot read it: {_one_line(error)}") from error
    finally:
        if quiet:
            datasets.enable_progress_bars()
    return _columns(datasets, rows, config, keep), list(found.get(split, ()))


def _columns(datasets: Any, rows: Any, config: HuggingFaceConfig, keep: Sequence[str]) -> Any:
    """The rows with the columns that are needed, and images as they are stored."""
    features, needed = rows.features or {}, config.needed_columns()
    check_columns(needed, list(features), config.path)
    extra = (name for name in ("__key__", "__url__") if name in features)
    rows = rows.select_columns([*dict.fromkeys([*needed, *keep, *extra])])
    for column in config.image_columns:
        kind = features[column]
        if isinstance(kind, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        elif not (isinstance(kind, Mapping) and "bytes" in kind) and "binary" not in getattr(kind, "dtype", ""):
            raise UserError(f"{config.path}: column {column!r} (image_column) holds no images: {kind}")
    return rows


def _unread(rows: Any, column: str, files: Sequence[str], where: str) -> list[str]:
    """A note where a split has more image files than rows: `datasets` takes those whose endings it knows."""
    there = [os.path.realpath(file) for file in files if os.path.splitext(file)[1].lower() in image_endings()]
    if len(rows) >= len(there):
        return []
    images = (image for image in rows[column][:] if isinstance(image, Mapping))
    read = {os.path.realpath(image["path"]) for image in images if image.get("path")}
    left = [file for file in there if file not in read]
    return [f"{where}: datasets leaves out {len(left):,} of {len(there):,} images ({left[0]})"] if left else []


def import_datasets() -> Any:
    """The package, which takes a second to import, and which most runs do without."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data of this type need another package ({error}): pip install 'mixar[datasets]'") from error
    return datasets


def check_columns(needed: Mapping[str, str], columns: Sequence[str], where: str) -> None:
    """Raise a UserError if a column is not there; `needed` says which setting names it."""
    for column, key in needed.items():
        if column not in columns:
            hint = "" if key == "image_column" else f"; {key}: null does without"
            raise UserError(f"{where}: no column {column!r} ({key}); columns: {', '.join(columns)}{hint}")


def read_schema(file: str) -> Any:
    """The Arrow schema of a Parquet or Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_arrow = file.endswith(".arrow")
    try:
        if not is_arrow:
            return pq.read_schema(file)
        with pa.ipc.open_stream(file) as stream:
            return stream.schema
    except (OSError, pa.ArrowException) as error:
        kind = "Arrow" if is_arrow else "Parquet"
        raise UserError(f"{file}: not a readable {kind} file: {str(error).splitlines()[0]}") from error


def check_names(files: Iterable[str], label_column: str | None) -> None:
    """See that local Parquet and Arrow files name their classes alike: `datasets` takes the first names for all."""
    read = import_datasets().Features.from_arrow_schema
    local = [file for file in files if file.endswith((".parquet", ".arrow")) and not is_url(file)]
    names = [(file, getattr(read(read_schema(file)).get(label_column), "names", ())) for file in local]
    for (first, ours), (file, theirs) in pairwise(each for each in names if each[1]):
        if problem := class_misfit(theirs, ours):
            raise UserError(f"{file} and {first} name their classes differently: {problem}")


def label_names(features: Mapping[str, Any], config: HuggingFaceConfig) -> tuple[str, ...] | None:
    """Names of the classes; none where there are no labels, None where labels are plain numbers."""
    if config.label_column is None:
        return ()
    feature = features[config.label_column]
    if names := tuple(getattr(feature, "names", None) or ()):
        if hidden := [name for name in names if is_hidden(name)]:  # it makes a class of every folder
            raise UserError(f"{config.path}: class {hidden[0]!r} is a folder that systems leave; remove it")
        return names
    if not str(getattr(feature, "dtype", feature)).startswith(("int", "uint")):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise UserError(f"{config.path}: column {config.label_column!r} is {kind}, not class numbers")
    return None


def _instead(row: Mapping[str, Any]) -> str:
    """What a WebDataset tar has of a row."""
    key = f"{row.get('__key__')}."
    try:
        with tarfile.open(row.get("__url__") or "") as tar:
            endings = [name[len(key) :] for name in tar.getnames() if name.startswith(key)]
    except (OSError, tarfile.TarError):
        return ""
    return f"; it has {', '.join(endings)}"


def _read(path: str) -> tuple[bytes | None, str]:
    """A file that a row names, beside the data, at the hub, or inside an archive; or why it cannot be read."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return file.read(), ""
    except OSError as error:
        return None, f"the file cannot be read: {error.strerror or error}"


def _label(value: int | None) -> int:
    return NO_CLASS - 1 if value is None else int(value)


def _one_line(error: BaseException) -> str:
    """An error, or what caused it: `datasets` wraps it in one that says nothing."""
    while type(error).__name__.startswith("DatasetGeneration") and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
