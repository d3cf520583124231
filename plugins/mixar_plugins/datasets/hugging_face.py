"""Images from whatever Hugging Face's `datasets` reads: folders, Parquet, WebDataset tars, the hub; also streams."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, min_len, optional
from torch import Tensor

from mixar_core.data.dataset import EncodedImage, ImageDataset, ImageStream, class_misfit, empty_classes
from mixar_core.data.folders import image_endings, is_hidden
from mixar_core.errors import UserError
from mixar_core.storage import is_url
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

    def __init__(self, config: HuggingFaceConfig, *, split: str, image_size: int) -> None:
        if split not in ("train", "validation"):
            raise UserError(f"split {split!r}: must be one of train, validation")
        named = config.train_split if split == "train" else config.validation_split
        rows, files = open_rows(config, named)
        self._hold(rows, label_names(rows.features, config), config, f"{config.path}, {named}", image_size)
        if not config.streaming:
            self.notes = (*self.notes, *_unread(rows, config.image_columns[0], files, self._name))

    def _hold(
        self, rows: Any, names: tuple[str, ...] | None, config: HuggingFaceConfig, name: str, image_size: int
    ) -> None:
        """Take rows with the columns that `config` names, and the classes' names (None: labels are plain numbers)."""
        self.config, self.image_size, self._name, self._rows = config, image_size, name, rows
        self._labels = [] if config.streaming else self._all_labels()
        if names is None:
            if config.streaming and config.num_classes is None:
                raise UserError(f"{name}: how many classes there are, a stream does not say; set num_classes")
            names = tuple(map(str, range(config.num_classes or max(self._labels, default=NO_CLASS) + 1)))
        self.class_names, self.num_classes = names, len(names)
        if config.streaming:
            self.stream = _Rows(rows, config, self.num_classes, name)
            return
        wrong = (row for row, label in enumerate(self._labels) if not NO_CLASS <= label < self.num_classes)
        if (row := next(wrong, None)) is not None:
            raise _wrong_label(self._labels[row], self.num_classes, self._where(row))
        self.notes = tuple(empty_classes(name, names, self._labels))

    def __len__(self) -> int:
        self._need_random_access()
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self._need_random_access()
        image = _encoded(self._rows[index], self.config, self._where(index))
        return image.pixels(self.image_size), self._labels[index]

    def labels(self) -> list[int]:
        self._need_random_access()
        return list(self._labels)

    def _all_labels(self) -> list[int]:
        column = self.config.label_column
        return [NO_CLASS] * len(self._rows) if column is None else [*map(_label, self._rows[column][:])]

    def _where(self, row: int) -> str:
        return f"{self._name}, row {row}"

    def _need_random_access(self) -> None:
        if self.config.streaming:
            raise UserError(
                f"{self._name}: a stream has no random access: run `mixar cache RECIPE --out DIR` and train with "
                "training.cache=DIR, or set data.streaming to false"
            )


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


def open_rows(
    config: HuggingFaceConfig, split: str, *, keep: Sequence[str] = (), **reading: Any
) -> tuple[Any, list[str]]:
    """The split's rows of the columns that `config` names and those to `keep`, images not decoded; and its files.

    Args:
        reading: settings of the format's reader.

    Raises:
        UserError: see HuggingFaceDataset.
    """
    datasets = import_datasets()
    asked = _asked(datasets, config) | reading
    quiet = not (sys.stderr.isatty() or datasets.utils.are_progress_bars_disabled())
    try:
        if quiet:
            datasets.disable_progress_bars()
        files = datasets.load_dataset_builder(**asked).config.data_files or {}
        used = {each.partition("[")[0] for each in (config.train_split, config.validation_split)}
        check_names([file for key in files if str(key) in used for file in files[key]], config.label_column)
        rows = datasets.load_dataset(**asked, split=split, streaming=config.streaming)
    except UserError:
        raise
    except Exception as error:  # each format has classes of its own
        raise UserError(f"{config.path}: datasets cannot read it: {_one_line(error)}") from error
    finally:
        if quiet:
            datasets.enable_progress_bars()
    return _columns(datasets, rows, config, keep), list(files.get(split, ()))


def _asked(datasets: Any, config: HuggingFaceConfig) -> dict[str, Any]:
    """The words of `load_dataset`."""
    asked: dict[str, Any] = {key: getattr(config, key) for key in ("name", "revision")}
    asked |= {key: _at_home(getattr(config, key)) for key in ("path", "data_dir", "cache_dir")}
    if config.data_files is not None:
        asked["data_files"] = {key: [*map(_at_home, files)] for key, files in config.data_files.items()}
    images, label = config.image_columns, config.label_column
    if config.path == "webdataset" and len(images) > 1:  # it looks at five rows only to find out which there are
        columns = dict.fromkeys(("__key__", "__url__"), datasets.Value("string"))
        columns |= dict.fromkeys(images, datasets.Image()) | ({} if label is None else {label: datasets.Value("int64")})
        asked["features"] = datasets.Features(columns)
    return asked


def _columns(datasets: Any, rows: Any, config: HuggingFaceConfig, keep: Sequence[str]) -> Any:
    """The rows with the columns that are needed, and images as they are stored."""
    features, images, label = rows.features, config.image_columns, config.label_column
    if features is None:
        raise UserError(f"{config.path}: datasets does not know its columns")
    for column in images:
        check_column(column, "image_column", list(features), config.path)
    if label is not None:
        check_column(label, "label_column", list(features), config.path)
    wanted = dict.fromkeys([*images, *([] if label is None else [label]), *keep])
    rows = rows.select_columns([*wanted, *(name for name in ("__key__", "__url__") if name in features)])
    for column in images:
        kind = features[column]
        if isinstance(kind, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        elif not (isinstance(kind, Mapping) and "bytes" in kind) and "binary" not in getattr(kind, "dtype", ""):
            raise UserError(f"{config.path}: column {column!r} (image_column) holds no images: {kind}")
    return rows


def _at_home(path: str | None) -> str | None:
    return None if path is None else os.path.expanduser(path)


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


def check_column(column: str, key: str, columns: Sequence[str], where: str) -> None:
    """Raise a UserError if `column`, which the setting `key` names, is not there."""
    if column not in columns:
        hint = "" if key == "image_column" else f"; {key}: null does without"
        raise UserError(f"{where}: no column {column!r} ({key}); columns: {', '.join(columns)}{hint}")


def read_schema(file: str) -> Any:
    """The Arrow schema of a Parquet or Arrow file.

    Raises:
        UserError: it is neither.
    """
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


def noted_names(schema: Any, label_column: str | None) -> tuple[str, ...]:
    """Class names as `datasets` notes them in the metadata of an Arrow schema, or ()."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = ((noted.get("info") or {}).get("features") or {}).get(label_column)
    return tuple(feature.get("names") or ()) if isinstance(feature, dict) else ()


def check_names(files: Iterable[str], label_column: str | None) -> None:
    """See that local Parquet and Arrow files name their classes alike: `datasets` takes the first one's names for all.

    Raises:
        UserError: they do not, or one is unreadable.
    """
    local = [file for file in files if file.endswith((".parquet", ".arrow")) and not is_url(file)]
    names = [(file, noted_names(read_schema(file), label_column)) for file in local]
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


def _encoded(row: Mapping[str, Any], config: HuggingFaceConfig, where: str) -> EncodedImage:
    """A row's image file and label."""
    value = next((row[name] for name in config.image_columns if row[name] is not None), None)
    data, path, problem = value, None, ""
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
    if path is not None:
        where = f"{where} ({path})"
        if data is None:
            data, problem = _read(path)
    if data is None and path is None:
        problem = f"no {' or '.join(config.image_columns)}{_instead(row)}"
    label = NO_CLASS if config.label_column is None else _label(row[config.label_column])
    return EncodedImage(data or b"", label, where, problem=problem, orient=config.orient)


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


def _wrong_label(label: int, num_classes: int, where: str) -> UserError:
    shown = "none" if label < NO_CLASS else str(label)
    return UserError(f"{where}: label {shown}: must be 0 to {num_classes - 1}, or {NO_CLASS} for no class")


def _one_line(error: BaseException) -> str:
    """An error, or what caused it: `datasets` wraps it in one that says nothing."""
    while type(error).__name__.startswith("DatasetGeneration") and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
