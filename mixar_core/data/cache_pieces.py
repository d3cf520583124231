"""The images of a data set or a stream in the pieces that become shards of a token cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from mixar_core.types import Grid, ImageSize


@frozen(eq=False)
class Piece:
    """Images of one shard that are encoded together: `rows`, their numbers in the split, and those that can be read."""

    rows: range
    loaded: LoadedRows


def dataset_pieces(
    dataset: ImageDataset, settings: CacheSettings, shards: Sequence[int], *, workers: int
) -> Iterator[Piece]:
    """The images of some shards, loaded ahead by `workers` processes."""
    wanted = ((rows, rows) for rows in settings.batches(shards, len(dataset)))
    return read_ahead(partial(_load, dataset.__getitem__, settings.image_size), wanted, workers=workers)


@define(eq=False)
class StreamPieces:
    """The same of a stream: it is read as a whole, and the images of shards that are `wanted` are decoded.

    Args:
        stop: whether to end before the stream does.
        workers: processes that decode.
    """

    stream: ImageStream
    settings: CacheSettings
    wanted: Callable[[int], bool]
    stop: Callable[[], bool] = lambda: False
    workers: int = 0
    #: images read so far
    count: int = 0

    def __iter__(self) -> Iterator[Piece]:
        size = self.settings.image_size
        return read_ahead(partial(_load, partial(_decode, size), size), self._batches(), workers=self.workers)

    def _batches(self) -> Iterator[tuple[range, list[EncodedImage]]]:
        held: list[EncodedImage] = []
        per_shard, batch = self.settings.rows_per_shard, self.settings.batch
        for image in self.stream:
            if self.stop():
                return
            shard, row = divmod(self.count, per_shard)
            self.count += 1
            if self.wanted(shard):
                held.append(image)
                if (row + 1) % batch == 0 or row + 1 == per_shard:
                    yield range(self.count - len(held), self.count), held
                    held = []
        if held:
            yield range(self.count - len(held), self.count), held


def _decode(size: ImageSize, image: EncodedImage) -> tuple[Tensor, int]:
    return image.pixels(size), image.label


def _load(read: Callable[[Any], tuple[Tensor, int]], size: ImageSize, wanted: tuple[range, Sequence[Any]]) -> Piece:
    pixels, labels, unreadable = Grid.of_pixels(size), list[int](), dict[int, str]()
    images = [torch.empty(0, 3, pixels.height, pixels.width, dtype=torch.uint8)]
    for row, item in zip(*wanted, strict=True):
        try:
            image, label = read(item)
        except UserError as error:
            unreadable[row] = str(error)
        else:
            images.append(image[None])
            labels.append(label)
    return Piece(wanted[0], LoadedRows(torch.cat(images), torch.tensor(labels, dtype=torch.int64), unreadable))
