"""Writing a token cache shard by shard: a finished one is kept, and which process writes it does not matter.

While it is written, the folder `progress` holds the settings and a note on each finished shard; at the end all of it
becomes index.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from shutil import disk_usage, rmtree
from typing import Any

import attrs
import numpy
import torch
from attrs import frozen
from torch import Tensor

from mixar_core.data.cache import (
    INDEX,
    PROGRESS,
    CacheIndex,
    CacheSettings,
    ChannelStatistics,
    Shard,
    Skipped,
    read_index,
    read_plain,
)
from mixar_core.data.cache_pieces import Piece, StreamPieces, dataset_pieces
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import check_unreadable
from mixar_core.data.streams import Stream, seed_of
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.storage import FolderLock, file_sha256, is_free, write_text, write_weights, writing
from mixar_core.tokenizer import ContinuousTokenizer

SETTINGS = "settings.json"


@frozen
class Note:
    """What progress/ holds of a finished shard; sums are over its raw samples, channel by channel."""

    shard: Shard
    skipped: tuple[Skipped, ...]
    values: int
    sums: tuple[float, ...]
    squares: tuple[float, ...]


@frozen(eq=False)
class Caching:
    """How `write_cache` ended; what was `encoded`, and in how many seconds, is of this call and all processes.

    `index` is None if it was told to stop; `shards` of `total` (None: not known, for a stream) are finished.
    """

    index: CacheIndex | None
    shards: int
    total: int | None
    encoded: int = 0
    seconds: float = 0.0


def write_cache(
    folder: Path,
    settings: CacheSettings,
    data: ImageDataset,
    tokenizers: FrozenTokenizers,
    processes: Processes,
    *,
    stop: Callable[[], bool],
    workers: int = 0,
    max_unreadable: int = 0,
    progress: Callable[[int, int | None], object] = lambda done, total: None,
) -> Caching:
    """Write the shards that are missing, each by one of the processes, and the index when all are there.

    Every process calls this with the same arguments.

    Args:
        stop: whether to end between two batches; the same call goes on.
        workers: loader processes of each process.
        progress: told how many of this process's images are encoded, and of how many (None: not known).

    Raises:
        UserError: the folder holds something else, or another call is at work in it, the disk is too small, or more
            than `max_unreadable` images cannot be read.
    """
    with closing(FolderLock(folder)) as lock:
        if (done := processes.on_main(lambda: begin(folder, settings, lock))) is not None:
            return Caching(done, len(done.shards), len(done.shards))
        rank, world, started = processes.rank, processes.world, time.perf_counter()
        mine = [number for number in noted_shards(folder) if number % world == rank]
        kept = set().union(*processes.all_gather({n for n in mine if is_finished(folder, n)}))
        pieces: Iterable[Piece]
        streamed = total = images = None
        if data.stream is not None:
            pieces = streamed = StreamPieces(
                data.stream, settings, lambda n: n % world == rank and n not in kept, stop=stop, workers=workers
            )
        else:
            total = settings.shards(len(data))
            missing = [number for number in range(total) if number not in kept]
            shards = missing[rank::world]
            rows, images = (sum(map(len, settings.batches(each, len(data)))) for each in (missing, shards))
            processes.on_main(lambda: _check_disk(folder, settings, rows))
            pieces = dataset_pieces(data, settings, shards, workers=workers)
        progress(0, images)
        ended = write_shards(
            folder,
            settings,
            tokenizers,
            pieces,
            device=processes.device,
            max_unreadable=max_unreadable,
            stop=stop,
            progress=lambda encoded: progress(encoded, images),
        )
        all_whole, all_encoded = zip(*processes.all_gather(ended), strict=True)
        encoded, seconds = sum(all_encoded), time.perf_counter() - started
        if not all(all_whole):
            return Caching(None, len(noted_shards(folder)), total, encoded, seconds)
        total = settings.shards(len(data) if streamed is None else streamed.count)
        index = processes.on_main(lambda: finish(folder, settings, total, max_unreadable=max_unreadable))
        return Caching(index, total, total, encoded, seconds)


def _check_disk(folder: Path, settings: CacheSettings, images: int) -> None:
    need, free = images * settings.row_bytes, disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: {images:,} images need {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "samples instead of moments, bfloat16 and no mirrored images take half each"
        )


def begin(folder: Path, settings: CacheSettings, lock: FolderLock) -> CacheIndex | None:
    """Prepare a folder for writing and lock it, for one process; the index, if the cache is there and finished."""
    progress = folder / PROGRESS
    if (folder / INDEX).is_file():
        index = read_index(folder / INDEX)
        _check_same(folder, index.settings, settings)
        rmtree(progress, ignore_errors=True)  # left by a process that ended between the last things it does
        with suppress(OSError):  # a cache may lie where nothing can be written
            lock.path.unlink()
        return index
    if not progress.is_dir():
        if not is_free(folder):
            raise UserError(f"{folder} is not an empty folder, and no token cache; choose a new one")
        with writing(folder):
            progress.mkdir(parents=True, exist_ok=True)
    lock.take()
    if not progress.is_dir():  # the call that had the lock has finished it
        return begin(folder, settings, lock)
    if any(progress.glob("*.safetensors.json")):
        _check_same(folder, _read(progress / SETTINGS, CacheSettings), settings)
    for unfinished in folder.glob(".*.unfinished"):
        unfinished.unlink()
    write_text(progress / SETTINGS, json.dumps(attrs.asdict(settings), indent=1) + "\n")
    return None


def noted_shards(folder: Path) -> list[int]:
    """Numbers of the shards that were finished once."""
    return sorted(int(path.name[len("tokens_") :].split(".")[0]) for path in (folder / PROGRESS).glob("tokens_*.json"))


def is_finished(folder: Path, number: int) -> bool:
    """Whether a shard is there, whole: its checksum is the one noted. One that is not is forgotten."""
    note = _note_path(folder, number)
    if not note.is_file():
        return False
    shard, file = _read(note, Note).shard, folder / file_name(number)
    if file.is_file() and file.stat().st_size == shard.bytes and file_sha256(file) == shard.sha256:
        return True
    note.unlink()
    return False


def write_shards(
    folder: Path,
    settings: CacheSettings,
    tokenizers: FrozenTokenizers,
    pieces: Iterable[Piece],
    *,
    device: torch.device,
    max_unreadable: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda images: None,
) -> tuple[bool, int]:
    """Write the shards that the pieces make up, each when its last piece is there, into a folder that `begin` prepared.

    Args:
        max_unreadable: images that this process may leave out.
        progress: is told how many images have been encoded so far.

    Returns:
        Whether all were written (or it was told to `stop` before the last one), and how many images were encoded.
    """
    held, shard, encoded, unreadable = list[dict[str, Tensor]](), -1, 0, dict[int, str]()
    for piece in pieces:
        number = piece.rows.start // settings.rows_per_shard
        if held and number != shard:
            _save(folder, settings, shard, held, unreadable)
            held = []
        if stop():
            return False, encoded
        shard, unreadable = number, unreadable | piece.loaded.unreadable
        check_unreadable(unreadable, max_unreadable)
        held.append(encode(settings, tokenizers, piece, device))
        encoded += len(piece.rows)
        progress(encoded)
    if stop():
        return False, encoded
    if held:
        _save(folder, settings, shard, held, unreadable)
    return True, encoded


def encode(
    settings: CacheSettings, tokenizers: FrozenTokenizers, piece: Piece, device: torch.device
) -> dict[str, Tensor]:
    """The tensors of a piece's images as they are stored."""
    stored, loaded = settings.empty(), piece.loaded
    read = [row for row in piece.rows if row not in loaded.unreadable]
    if not read:
        return stored
    images, noise, found = loaded.to(device), _ImageNoise(settings.seed, read), {"labels": loaded.labels_B}
    for suffix in ("", "_flip") if settings.flip else ("",):
        if suffix:
            images = attrs.evolve(images, images_B3HW=images.images_B3HW.flip(-1))
        tokens = tokenizers.encode(images)
        if (posterior := tokens.posterior) is not None:
            found[f"latents{suffix}"] = (
                torch.cat([posterior.mean_BChw, posterior.logvar_BChw], dim=1)
                if settings.stores == "moments"
                else ContinuousTokenizer.sample_posterior(posterior, noise)
            )
        if tokens.codes_BN is not None:
            found[f"codes{suffix}"] = tokens.codes_BN
    kept = {key: found[key].to("cpu", tensor.dtype) for key, tensor in stored.items()}
    for key, tensor in kept.items():
        if key.startswith("latents"):
            _check_finite(tensor, settings, read)
    return kept


def _check_finite(latents: Tensor, settings: CacheSettings, images: Sequence[int]) -> None:
    """See that latents can be trained on; a posterior of no width (logvar -inf) can."""
    assert settings.latent_shape is not None
    mean_BM, logvar_BM = (part.flatten(1) for part in latents.tensor_split([settings.latent_shape[0]], dim=1))
    sound_B = mean_BM.isfinite().all(1) & (logvar_BM < torch.inf).all(1)
    if not sound_B.all():
        where = f"image {images[int(sound_B.int().argmin())]}"
        raise UserError(f"{where}: its latents are not finite as {settings.dtype}: its range, or the tokenizer, fails")


def _save(
    folder: Path, settings: CacheSettings, number: int, held: list[dict[str, Tensor]], unreadable: Mapping[int, str]
) -> None:
    tensors = {key: torch.cat([each[key] for each in held]) for key in held[0]}
    file = folder / file_name(number)
    write_weights(file, tensors)
    shard = Shard(file.name, len(tensors["labels"]), file.stat().st_size, file_sha256(file))
    skipped = sorted((i, reason) for i, reason in unreadable.items() if i // settings.rows_per_shard == number)
    note = Note(shard, tuple(Skipped(*each) for each in skipped), *_sums(settings, tensors))
    write_text(_note_path(folder, number), json.dumps(attrs.asdict(note)) + "\n")


def _sums(settings: CacheSettings, tensors: Mapping[str, Tensor]) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """How many values a channel has, their sums, and those of their squares; for moments, the expected ones."""
    if settings.latent_shape is None:
        return 0, (), ()
    channels = settings.latent_shape[0]
    values, sums, squares = 0, numpy.zeros(channels), numpy.zeros(channels)
    for raw in (tensors[key].double().numpy() for key in ("latents", "latents_flip") if key in tensors):
        mean, variance = raw[:, :channels], numpy.exp(raw[:, channels:]) if raw.shape[1] > channels else 0.0
        values += mean[:, 0].size
        sums += mean.sum((0, 2, 3))  # numpy adds in one order, whatever the number of threads
        squares += (mean**2 + variance).sum((0, 2, 3))
    return values, tuple(sums.tolist()), tuple(squares.tolist())


def finish(folder: Path, settings: CacheSettings, shards: int, *, max_unreadable: int = 0) -> CacheIndex:
    """Write index.json over all shards, for one process, and remove what was noted on the way."""
    notes = [_read(_note_path(folder, number), Note) for number in range(shards)]
    skipped = tuple(each for note in notes for each in note.skipped)
    check_unreadable({each.index: each.reason for each in skipped}, max_unreadable)
    count, statistics = sum(note.shard.rows for note in notes), None
    if count == 0:
        raise UserError(f"{folder}: the data have no image that can be read")
    if settings.latent_shape is not None:
        values = sum(note.values for note in notes)
        mean, square = (
            numpy.sum(each, axis=0) / values for each in ([n.sums for n in notes], [n.squares for n in notes])
        )
        std = numpy.sqrt(numpy.maximum(0.0, square - mean**2))
        statistics = ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()))
    index = CacheIndex(settings, count, tuple(note.shard for note in notes), statistics, skipped)
    write_text(folder / INDEX, index.to_json())
    rmtree(folder / PROGRESS, ignore_errors=True)
    return index


def file_name(number: int) -> str:
    """A shard's file."""
    return f"tokens_{number:05d}.safetensors"


def _note_path(folder: Path, number: int) -> Path:
    return folder / PROGRESS / f"{file_name(number)}.json"


class _ImageNoise(Noise):
    """Noise for samples: each image has its own stream, so that it does not matter who draws with whom."""

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        super().__init__(torch.Generator())
        self._own = [torch.Generator().manual_seed(seed_of(seed, index, Stream.CACHE)) for index in indices]

    def normal(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        return torch.stack([torch.randn(*shape[1:], generator=own) for own in self._own]).to(device)


def _check_same(folder: Path, then: CacheSettings, now: CacheSettings) -> None:
    old, new = attrs.asdict(then), attrs.asdict(now)
    before, config = (each["source"].get("config", {}) for each in (old, new))
    for key in [key for key in config if key not in before and not config[key]]:
        del config[key]  # a setting that is newer than the cache, and off
    changed = [f"{key} was {_short(old[key])}, is {_short(new[key])}" for key in new if old[key] != new[key]]
    if changed:
        raise UserError(
            f"{folder} holds a cache made otherwise: {'; '.join(changed)}; give the same settings, or another folder"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _read(path: Path, cls: type[Any]) -> Any:
    try:
        return read_plain(json.loads(path.read_text(encoding="utf-8")), cls)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; remove {path.parent} and begin anew") from error
