"""Images by their numbers: loaded in batches, in an order that is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial

import torch
from attrs import field, frozen
from torch import Tensor

from mixar_core.data.dataset import ImageDataset
from mixar_core.data.streams import Stream, seed_of
from mixar_core.data.workers import read_ahead
from mixar_core.errors import UserError
from mixar_core.types import ImageBatch


@frozen
class BatchShard:
    """The rows of a global batch that one process holds: `rows` of `total`, from `first` onwards."""

    first: int
    rows: int
    total: int

    @classmethod
    def of(cls, total: int, *, rank: int, world: int) -> BatchShard:
        """Rank's even share of `total` rows.

        Raises:
            UserError: `total` is no multiple of the number of processes.
        """
        if total % world:
            raise UserError(f"training.batch_size {total} does not divide evenly among {world} processes")
        return cls(rank * (total // world), total // world, total)


@frozen
class ShuffledOrder:
    """The endless order of a data set of `size` images: epoch after epoch, each a permutation by (seed, epoch).

    Batch k is positions k * batch_size up to (k + 1) * batch_size of it. Nothing is dropped and nothing is padded: a
    batch may reach into the next epoch, or, where it is larger than the data set, over several.
    """

    size: int
    batch_size: int
    seed: int = field(kw_only=True)

    def indices(self, step: int) -> Tensor:
        """Image indices (batch_size,) of batch `step`, int64."""
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        pieces = []
        while position < end:
            epoch, start = divmod(position, self.size)
            pieces.append(self.permutation(epoch)[start : start + end - position])
            position += len(pieces[-1])
        return torch.cat(pieces)

    def permutation(self, epoch: int) -> Tensor:
        """All indices in this epoch's order, (size,)."""
        return _permutation(self.size, seed_of(self.seed, epoch, Stream.ORDER))


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@frozen(eq=False)
class LoadedRows:
    """Images uint8 (B, 3, H, W), labels int64 (B,), and what could not be read: index -> the reason, one line."""

    pixels_B3HW: Tensor
    labels_B: Tensor
    unreadable: dict[int, str]

    def mirrored(self, flip_B: Tensor) -> LoadedRows:
        """The same with the rows where `flip_B` mirrored left to right."""
        pixels_B3HW = torch.where(flip_B[:, None, None, None], self.pixels_B3HW.flip(-1), self.pixels_B3HW)
        return LoadedRows(pixels_B3HW, self.labels_B, self.unreadable)

    def to(self, device: torch.device) -> ImageBatch:
        """The images on `device`, 0..255 as [-1, 1]."""
        pixels = self.pixels_B3HW.to(device, non_blocking=True)
        return ImageBatch(pixels.float() / 127.5 - 1.0, self.labels_B.to(device, non_blocking=True))

    def pin_memory(self) -> LoadedRows:
        """The same in pinned memory. (Loaders call it by this name.)"""
        return LoadedRows(self.pixels_B3HW.pin_memory(), self.labels_B.pin_memory(), self.unreadable)


def load_readable(dataset: ImageDataset, indices: list[int]) -> LoadedRows:
    """The images at these indices; in the place of an unreadable one stands the next that can be read.

    So what a batch holds is a function of its indices alone.

    Raises:
        UserError: no image at all can be read.
    """
    unreadable: dict[int, str] = {}
    images, labels = zip(*[_readable(dataset, index, unreadable) for index in indices], strict=True)
    return LoadedRows(torch.stack(images), torch.tensor(labels), unreadable)


def _readable(dataset: ImageDataset, index: int, unreadable: dict[int, str]) -> tuple[Tensor, int]:
    """The image at `index`, or the next one after it (and after the last the first) that can be read."""
    size = len(dataset)
    for candidate in (each % size for each in range(index, index + size)):
        if candidate not in unreadable:
            try:
                return dataset[candidate]
            except UserError as error:
                unreadable[candidate] = str(error)
    raise UserError(f"no image of {size} can be read: {unreadable[index]}")


def check_unreadable(unreadable: Mapping[int, str], limit: int, *, count: int | None = None) -> None:
    """See that no more images are unreadable than may be; `count` of them, where other processes found more.

    Raises:
        UserError: they are; names the last one that was found, and their number.
    """
    count = len(unreadable) if count is None else count
    if count <= limit:
        return
    last = list(unreadable.values())[-1] if unreadable else "found by other processes"
    raise UserError(last if count == 1 else f"{last}; {count} images cannot be read, {limit} may be (max_unreadable)")


def load_batches(dataset: ImageDataset, wanted: Iterable[list[int]], *, workers: int = 0) -> Iterator[LoadedRows]:
    """The images at each list of indices, or those that stand in for them; see `read_ahead`."""
    return read_ahead(partial(load_readable, dataset), wanted, workers=workers)


def each_once(
    dataset: ImageDataset,
    indices: Tensor,
    *,
    batch_size: int,
    workers: int = 0,
    max_unreadable: int = 0,
    unreadable: dict[int, str] | None = None,
) -> Iterator[LoadedRows]:
    """The images at `indices` once, in that order; the last batch may be smaller.

    Args:
        max_unreadable: how many images may be unreadable, and have the next readable one in their place.
        unreadable: where to note them, index -> the reason.

    Raises:
        UserError: more than that are.
    """
    unreadable = {} if unreadable is None else unreadable
    for loaded in load_batches(dataset, [part.tolist() for part in indices.split(batch_size)], workers=workers):
        unreadable |= loaded.unreadable
        check_unreadable(unreadable, max_unreadable)
        yield loaded
