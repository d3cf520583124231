"""The images of a data set or a stream in the pieces that become shards of a token cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor

from mixar_core.data.cache import CacheSettings
from mixar_core.data.dataset import EncodedImage, ImageDataset, ImageStream
from mixar_core.data.loader import LoadedRows
from mixar_core.data.workers import read_ahead
from mixar_core.errors import UserError


@frozen(eq=False)
class Piece:
    """Images of one shard that are encoded together: `rows`, their numbers in the split, and those that can be read."""

    rows: range
    loaded: LoadedRows


def dataset_pieces(
    dataset: ImageDataset, settings: CacheSettings, shards: Sequence[int], *, workers: int
) -> Iterator[Piece]:
    """The images of some shards, loaded ahead by `workers` processes."""
    return read_ahead(partial(_read, dataset, settings), settings.batches(shards, len(dataset)), workers=workers)


def _read(dataset: ImageDataset, settings: CacheSettings, rows: range) -> Piece:
    return _piece(settings, rows, [_attempt(dataset.__getitem__, row) for row in rows])


@define(eq=False)
class StreamPieces:
    """The same of a stream: it is read as a whole, and the images of shards that are `wanted` are decoded.

    Args:
        stop: whether to end before the stream does.
        threads: that decode.
    """

    stream: ImageStream
    settings: CacheSettings
    wanted: Callable[[int], bool]
    stop: Callable[[], bool] = lambda: False
    threads: int = 1
    #: images read so far
    count: int = 0

    def __iter__(self) -> Iterator[Piece]:
        held: list[EncodedImage] = []
        per_shard, batch = self.settings.rows_per_shard, self.settings.batch
        with ThreadPoolExecutor(max(1, self.threads), "mixar-decode") as pool:
            for image in self.stream:
                if self.stop():
                    return
                shard, row = divmod(self.count, per_shard)
                self.count += 1
                if self.wanted(shard):
                    held.append(image)
                    if (row + 1) % batch == 0 or row + 1 == per_shard:
                        yield self._decoded(held, pool)
                        held = []
            if held:
                yield self._decoded(held, pool)

    def _decoded(self, held: list[EncodedImage], pool: ThreadPoolExecutor) -> Piece:
        decode = partial(_attempt, lambda image: (image.pixels(self.settings.image_size), image.label))
        return _piece(self.settings, range(self.count - len(held), self.count), pool.map(decode, held))


def _attempt(read: Callable[[Any], tuple[Tensor, int]], wanted: Any) -> tuple[Tensor, int] | str:
    """An image and its label, or why there is none."""
    try:
        return read(wanted)
    except UserError as error:
        return str(error)


def _piece(settings: CacheSettings, rows: range, found: Iterable[tuple[Tensor, int] | str]) -> Piece:
    images = [torch.empty(0, 3, settings.image_size, settings.image_size, dtype=torch.uint8)]
    labels, unreadable = list[int](), dict[int, str]()
    for row, each in zip(rows, found, strict=True):
        if isinstance(each, str):
            unreadable[row] = each
        else:
            images.append(each[0][None])
            labels.append(each[1])
    return Piece(rows, LoadedRows(torch.cat(images), torch.tensor(labels, dtype=torch.int64), unreadable))
