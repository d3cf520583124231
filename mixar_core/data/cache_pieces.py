"""The images of a data set or a stream in the pieces that become shards of a token cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.data.cache import CacheSettings
from mixar_core.data.dataset import EncodedImage, ImageDataset, ImageStream
from mixar_core.data.workers import read_ahead
from mixar_core.errors import UserError


@frozen(eq=False)
class Piece:
    """Images of one shard that are encoded together: their numbers in the split, pixels uint8, labels.

    `unreadable` are the numbers of those that are left out, with the reason.
    """

    shard: int
    indices: list[int]
    pixels_B3HW: Tensor
    labels_B: Tensor
    unreadable: dict[int, str]


def dataset_pieces(
    dataset: ImageDataset, settings: CacheSettings, shards: Sequence[int], *, workers: int
) -> Iterator[Piece]:
    """The images of some shards, loaded ahead by `workers` processes."""
    wanted = []
    for shard in shards:
        first = shard * settings.rows_per_shard
        end = min(first + settings.rows_per_shard, len(dataset))
        wanted += [range(start, min(start + settings.batch, end)) for start in range(first, end, settings.batch)]
    return read_ahead(partial(_rows, dataset, settings), wanted, workers=workers)


def _rows(dataset: ImageDataset, settings: CacheSettings, rows: range) -> Piece:
    def read(row: int) -> tuple[Tensor, int] | str:
        try:
            return dataset[row]
        except UserError as error:
            return str(error)

    return _piece(settings, rows, [read(row) for row in rows])


class StreamPieces:
    """The same of a stream: it is read as a whole, and the images of shards that are `wanted` are decoded.

    Args:
        stop: whether to end before the stream does.
        threads: that decode.
    """

    #: images read so far
    count: int = 0

    def __init__(
        self,
        stream: ImageStream,
        settings: CacheSettings,
        wanted: Callable[[int], bool],
        *,
        stop: Callable[[], bool] = lambda: False,
        threads: int = 1,
    ) -> None:
        self.stream, self.settings, self.wanted, self.stop, self.threads = stream, settings, wanted, stop, threads

    def __iter__(self) -> Iterator[Piece]:
        held: list[EncodedImage] = []
        per_shard, batch = self.settings.rows_per_shard, self.settings.batch
        with ThreadPoolExecutor(max(1, self.threads), "mixar-decode") as pool:
            for image in self.stream:
                if self.stop():
                    return
                shard, row = divmod(self.count, per_shard)
                self.count += 1
                if not self.wanted(shard):
                    continue
                held.append(image)
                if (row + 1) % batch == 0 or row + 1 == per_shard:
                    yield self._decoded(held, pool)
                    held = []
            if held:
                yield self._decoded(held, pool)

    def _decoded(self, held: list[EncodedImage], pool: ThreadPoolExecutor) -> Piece:
        rows = range(self.count - len(held), self.count)
        return _piece(self.settings, rows, list(pool.map(partial(_decode, self.settings.image_size), held)))


def _decode(size: int, image: EncodedImage) -> tuple[Tensor, int] | str:
    try:
        return image.pixels(size), image.label
    except UserError as error:
        return str(error)


def _piece(settings: CacheSettings, rows: range, found: Sequence[tuple[Tensor, int] | str]) -> Piece:
    """One piece of what was found at these rows: an image and its label, or why there is none."""
    kept = {row: each for row, each in zip(rows, found, strict=True) if not isinstance(each, str)}
    size = settings.image_size
    return Piece(
        rows.start // settings.rows_per_shard,
        list(kept),
        torch.stack([image for image, _ in kept.values()])
        if kept
        else torch.empty(0, 3, size, size, dtype=torch.uint8),
        torch.tensor([label for _, label in kept.values()], dtype=torch.int64),
        {row: each for row, each in zip(rows, found, strict=True) if isinstance(each, str)},
    )
