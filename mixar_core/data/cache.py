"""The token cache on disk: what frozen tokenizers make of a split, read at random from memory-mapped files.

A folder of safetensors files ("shards") and an index.json. Row i of the cache is image i of the split; images that
could not be read are left out. Each shard holds, for its rows:

    latents  latents_flip    (rows, 2 C, h, w) mean and logvar of the raw posterior ("moments"), or
                             (rows, C, h, w) one draw from it ("samples"); float32, bfloat16 or float16
    codes    codes_flip      (rows, N) int16 or int32
    labels                   (rows,) int64

`_flip` is the mirrored image. Without a continuous tokenizer there are no latents, without a discrete one no codes.
Latents as they are published for LightningDiT can be read too: shards of `latents` (samples), `latents_flip` and
`labels` without an index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import torch
from attrs import frozen
from torch import Tensor

from mixar_core.data.tokens import CachedTokens
from mixar_core.errors import UserError
from mixar_core.storage import file_sha256, read_weights
from mixar_core.types import NO_CLASS, ImageSize, Posterior

INDEX = "index.json"
#: holds what a cache that is not finished yet knows of its shards
PROGRESS = "progress"
FORMAT, VERSION = "mixar token cache", 1
KEYS = ("latents", "latents_flip", "codes", "codes_flip", "labels")
#: the kinds of tokens among them
TOKENS = ("latents", "codes")

Stores = Literal["moments", "samples"]
StorageDtype = Literal["float32", "bfloat16", "float16"]


@frozen
class Shard:
    """One file: its name, rows, size in bytes and sha256."""

    file: str
    rows: int
    bytes: int
    sha256: str


@frozen
class Skipped:
    """An image that could not be read and has no row: its index in the split and the reason."""

    index: int
    reason: str


@frozen
class ChannelStatistics:
    """Mean and standard deviation of each channel over all raw samples, plain and mirrored."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@frozen
class CacheSettings:
    """All that decides what a cache's files hold; one that was begun goes on only with the same.

    Args:
        image_size: as the recipe has it. num_classes: 0: unlabelled.
        split: of the data, train or validation.
        flip: whether the mirrored images are there.
        stores: what latents are; None: there are none.
        dtype: of latents.
        seed: of samples.
        latent_shape: (C, h, w); None: no latents.
        tokens: codes of an image; None: no codes. code_dtype: of codes.
        rows_per_shard: images a shard is made of. batch: images encoded at a time.
        tokenizers: fingerprints of `continuous` and `discrete`, None where there is none.
        source: the data: type and settings, and the number of images where it is known beforehand.
    """

    image_size: ImageSize
    num_classes: int
    class_names: tuple[str, ...]
    split: str
    flip: bool
    stores: Stores | None
    dtype: StorageDtype
    seed: int
    latent_shape: tuple[int, int, int] | None
    tokens: int | None
    code_dtype: Literal["int16", "int32"] | None
    rows_per_shard: int
    batch: int
    tokenizers: dict[str, dict[str, Any] | None]
    source: dict[str, Any]

    def shards(self, images: int) -> int:
        """How many files so many images make."""
        return -(-images // self.rows_per_shard)

    def batches(self, shards: Iterable[int], images: int) -> list[range]:
        """The numbers of the images that are encoded together, for some of the shards that so many images make."""
        size = self.rows_per_shard
        return [
            range(start, min(start + self.batch, (shard + 1) * size, images))
            for shard in shards
            for start in range(shard * size, min((shard + 1) * size, images), self.batch)
        ]

    def empty(self) -> dict[str, Tensor]:
        """The tensors of a shard that has no rows: what a row is made of."""
        row = {}
        if self.latent_shape is not None:
            channels, *grid = self.latent_shape
            channels *= 2 if self.stores == "moments" else 1
            row["latents"] = torch.empty(0, channels, *grid, dtype=getattr(torch, self.dtype))
        if self.tokens is not None and self.code_dtype is not None:
            row["codes"] = torch.empty(0, self.tokens, dtype=getattr(torch, self.code_dtype))
        mirrored = {f"{key}_flip": tensor for key, tensor in row.items() if self.flip}
        return {**row, **mirrored, "labels": torch.empty(0, dtype=torch.int64)}

    @property
    def row_bytes(self) -> int:
        """Bytes of an image on disk, but for the few that a shard's header shares out."""
        return sum(prod(tensor.shape[1:]) * tensor.element_size() for tensor in self.empty().values())


@frozen
class CacheIndex:
    """What index.json says: the settings, what was left out, and the shards."""

    settings: CacheSettings
    count: int
    shards: tuple[Shard, ...]
    statistics: ChannelStatistics | None = None
    skipped: tuple[Skipped, ...] = ()

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"format": FORMAT, "version": VERSION, **attrs.asdict(self)}, indent=1) + "\n"


def read_index(path: Path) -> CacheIndex:
    """Read an index.json, of a version that is known."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        found = (plain.pop("format"), plain.pop("version"))
        if found == (FORMAT, VERSION):
            index: CacheIndex = read_plain(plain, CacheIndex)
            return index
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not the index of a token cache: {error}") from error
    raise UserError(f"{path} is a {found[0]} of version {found[1]}, read here: {FORMAT} of version {VERSION}")


def read_plain(value: Any, kind: Any, path: str = "") -> Any:
    """A value that JSON gave as one of the type `kind`: an attrs class, a tuple, a literal ...; nothing is converted.

    Raises:
        ValueError: it is none; says where in it.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType or origin is Union:
        if value is None and NoneType in inner:
            return None
        # a list is that of two types which is a tuple
        of_list = [member for member in inner if (get_origin(member) is tuple) == isinstance(value, list)]
        return read_plain(value, (of_list or inner)[0], path)
    if origin is tuple and isinstance(value, list) and (inner[-1] is ... or len(inner) == len(value)):
        return tuple(read_plain(each, inner[0], f"{path}[{number}]") for number, each in enumerate(value))
    if attrs.has(kind) and isinstance(value, dict):
        fields = attrs.fields_dict(attrs.resolve_types(kind))
        missing, unknown = sorted(fields.keys() - value.keys()), sorted(value.keys() - fields.keys())
        if missing or unknown:
            what = "required field missing" if missing else "unknown field"
            raise ValueError(f"{what}: {', '.join(missing or unknown)} {path}".rstrip())
        return kind(**{k: read_plain(each, fields[k].type, f"{path}.{k}".lstrip(".")) for k, each in value.items()})
    if kind is float and type(value) is int:
        return float(value)
    if value in inner if origin is Literal else type(value) is (origin or kind):
        return value
    raise ValueError(f"{value!r} at {path} is not {kind if origin else kind.__name__}")


class TokenCache:
    """A cache to read. It may be handed to loader workers and used by several threads.

    `settings` is None for latents in the published form, which have no index.
    """

    def __init__(self, folder: Path, shards: tuple[Shard, ...], index: CacheIndex | None) -> None:
        self.folder, self.shards, self.index = folder, shards, index
        rows = torch.tensor([0, *(shard.rows for shard in shards)])
        self._starts = rows.cumsum(0)  # rows before each shard, and their total
        self._open: dict[int, dict[str, Tensor]] = {}
        first, about = self._tensors(0), None if index is None else index.settings
        self.settings, self._shapes = about, {key: tensor.shape[1:] for key, tensor in first.items()}
        self.has_codes, self.flip = "codes" in first, bool(first.keys() & {"latents_flip", "codes_flip"})
        #: what latents are, and (C, h, w) of raw ones; None: there are none
        self.stores: Stores | None = "samples" if about is None else about.stores
        self.latent_shape = tuple(self._shapes["latents"]) if about is None else about.latent_shape
        #: 0 for an unlabelled set; in the published form the largest label and one, and mere numbers as names
        self.num_classes = int(self.labels().max()) + 1 if about is None else about.num_classes
        self.class_names = tuple(map(str, range(self.num_classes))) if about is None else about.class_names

    @classmethod
    def open(cls, folder: str | Path) -> TokenCache:
        """Open a cache, or a folder of latents in the published form, of which the labels are read.

        Raises:
            UserError: it is neither, not finished, or a file is missing or has another size than the index says.
        """
        folder = Path(folder)
        if (folder / INDEX).is_file():
            index = read_index(folder / INDEX)
            for shard in index.shards:
                _check_size(folder / shard.file, shard.bytes)
            return cls(folder, index.shards, index)
        if (folder / PROGRESS).is_dir():
            raise UserError(f"{folder} is a token cache that is not finished; the mixar cache that began it goes on")
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder} is no token cache: there is no {INDEX} and no *.safetensors file")
        first = _mapped(files[0])
        return cls(folder, tuple(_published_shard(file, like=first) for file in files), None)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def labels(self) -> Tensor:
        """All labels in order, int64."""
        return torch.cat([self._tensors(shard)["labels"].long() for shard in range(len(self.shards))])

    def rows(self, indices_B: Tensor, flip_B: Tensor, kinds: Collection[str] = TOKENS) -> CachedTokens:
        """The tokens of these rows, on the CPU: raw posterior float32, codes and labels int64.

        The posterior of a cache of samples has no width: drawing from it gives the sample, and takes as many random
        numbers as any other.

        Args:
            indices_B: int64, at least one, each in [0, len).
            flip_B: bool, which of them mirrored.
            kinds: of TOKENS, those to read; the others are None, as if the cache had none.

        Raises:
            UserError: a file is unreadable, or there are no mirrored images.
        """
        if not 0 <= int(indices_B.min()) <= int(indices_B.max()) < len(self):
            raise IndexError(f"rows {int(indices_B.min())} to {int(indices_B.max())} of {len(self)}")
        if flip_B.any() and not self.flip:
            raise UserError(f"{self.folder} has no mirrored images")
        shard_B = torch.searchsorted(self._starts, indices_B, right=True) - 1
        row_B = indices_B - self._starts[shard_B]
        # rows of one tensor of one shard are gathered together
        tensor_B = 2 * shard_B + flip_B
        order_B = tensor_B.argsort()
        groups, counts = tensor_B[order_B].unique_consecutive(return_counts=True)
        found = {
            key: torch.empty(len(indices_B), *shape, dtype=torch.float32 if key == "latents" else torch.int64)
            for key, shape in self._shapes.items()
            if key in (*kinds, "labels")
        }
        for group, places in zip(groups.tolist(), order_B.split(counts.tolist()), strict=True):
            tensors, mirrored = self._tensors(group // 2), "_flip" if group % 2 else ""
            for key, rows in found.items():
                rows[places] = tensors[key if key == "labels" else key + mirrored][row_B[places]].to(rows.dtype)
        return CachedTokens(self._posterior(found.get("latents")), found.get("codes"), found["labels"])

    def _posterior(self, latents: Tensor | None) -> Posterior | None:
        if latents is None:
            return None
        if self.stores == "moments":
            mean_BChw, logvar_BChw = latents.chunk(2, dim=1)
            return Posterior(mean_BChw.contiguous(), logvar_BChw.contiguous())
        return Posterior(latents, torch.full((), -torch.inf).expand_as(latents))

    def verify(self, progress: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Compare every file with its checksum; `progress` is told how many bytes are done, and of how many.

        Raises:
            UserError: a file differs, or the cache has no index and so no checksums.
        """
        if self.index is None:
            raise UserError(f"{self.folder} has no {INDEX}, and so no checksums")
        total, done = sum(shard.bytes for shard in self.shards), 0
        for shard in self.shards:
            if file_sha256(self.folder / shard.file) != shard.sha256:
                raise UserError(f"{self.folder / shard.file} is damaged: its sha256 is not the one in {INDEX}")
            done += shard.bytes
            progress(done, total)

    def _tensors(self, shard: int) -> dict[str, Tensor]:
        """A shard's tensors, which lie in its file: mapped once by each process, read where they are touched."""
        if shard not in self._open:
            self._open[shard] = _mapped(self.folder / self.shards[shard].file)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a loader's worker maps the files itself


def _mapped(path: Path) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in read_weights(path).items() if key in KEYS}


def _published_shard(path: Path, *, like: Mapping[str, Tensor]) -> Shard:
    """A file in the published form; `like` are the tensors of the first."""
    tensors = _mapped(path)
    if "latents" not in tensors or "labels" not in tensors:
        raise UserError(f"{path} holds no latents and labels: {path.parent} is no token cache, or has lost its {INDEX}")
    rows, labels = len(tensors["labels"]), tensors["labels"]
    if any(len(tensor) != rows for tensor in tensors.values()) or rows == 0:
        sizes = ", ".join(f"{key} of {len(tensor)}" for key, tensor in tensors.items())
        raise UserError(f"{path}: rows: {sizes}; each image, of one or more, has one of each")
    row, other = ({key: tuple(tensor.shape[1:]) for key, tensor in each.items()} for each in (tensors, like))
    if row != other:
        raise UserError(f"{path} holds {row}, and the files before it {other}, an image; they must agree")
    if labels.is_floating_point() or labels.ndim > 1 or int(labels.min()) < NO_CLASS:
        raise UserError(f"{path}: labels are whole numbers, one an image, from 0, or {NO_CLASS} for none")
    return Shard(path.name, rows, path.stat().st_size, "")


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: No such file; the cache's {INDEX} names it")
    if (there := path.stat().st_size) != size:
        raise UserError(f"{path} has {there} bytes, not {size}: it is truncated or was changed; make the cache anew")
