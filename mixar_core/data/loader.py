"""Batches of images in an order that is a function of the seed and the step, for this process's rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixar_core.data.dataset import ImageDataset
from mixar_core.data.streams import Stream, seed_of, step_noise
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


class ShuffledOrder:
    """The endless order of a data set of `size` images: epoch after epoch, each a permutation by (seed, epoch).

    Batch k is positions k * batch_size up to (k + 1) * batch_size of it. Nothing is dropped and nothing is padded: a
    batch may reach into the next epoch, or, where it is larger than the data set, over several.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

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
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, Stream.ORDER))
            self._epoch, self._permutation = epoch, torch.randperm(self.size, generator=generator)
        return self._permutation


def load_rows(dataset: ImageDataset, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Images uint8 (B, 3, H, W) and labels int64 (B,) at these indices.

    Raises:
        UserError: an image cannot be read.
    """
    return _stacked([dataset[index] for index in indices])


@frozen(eq=False)
class LoadedRows:
    """Images uint8 (B, 3, H, W), labels int64 (B,), and what could not be read: index -> the reason, one line.

    In the place of an unreadable image stands the next readable one, so what a batch holds is a function of its indices
    alone.
    """

    pixels_B3HW: Tensor
    labels_B: Tensor
    unreadable: dict[int, str]

    def pin_memory(self) -> LoadedRows:
        """The same in pinned memory. (Loaders call it by this name.)"""
        return LoadedRows(self.pixels_B3HW.pin_memory(), self.labels_B.pin_memory(), self.unreadable)


def load_readable(dataset: ImageDataset, indices: list[int]) -> LoadedRows:
    """The images at these indices, or those that stand in for them.

    Raises:
        UserError: no image at all can be read.
    """
    unreadable: dict[int, str] = {}
    return LoadedRows(*_stacked([_readable(dataset, index, unreadable) for index in indices]), unreadable)


def _stacked(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in rows]), torch.tensor([label for _, label in rows])


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


def to_images(pixels_B3HW: Tensor, labels_B: Tensor, device: torch.device) -> ImageBatch:
    """uint8 pixels to an ImageBatch on `device`: 0..255 to [-1, 1]."""
    pixels = pixels_B3HW.to(device, non_blocking=True)
    return ImageBatch(pixels.float() / 127.5 - 1.0, labels_B.to(device, non_blocking=True))


def flips(step: int, *, seed: int, share: BatchShard) -> Tensor:
    """Which of the share's rows of this step are mirrored, bool (B,)."""
    noise = step_noise(Stream.FLIP, seed=seed, step=step, first=share.first, total=share.total)
    return noise.uniform((share.rows,), "cpu", name="flip") < 0.5


def flipped(images: ImageBatch, flip_B: Tensor) -> ImageBatch:
    """The images with the rows where `flip_B` mirrored left to right."""
    flip_B111 = flip_B.to(images.images_B3HW.device)[:, None, None, None]
    return evolve(images, images_B3HW=torch.where(flip_B111, images.images_B3HW.flip(-1), images.images_B3HW))


class ImageSource:
    """Image batches of a process, step by step, on its device.

    Args:
        dataset: the split.
        order: which images each step sees.
        share: this process's rows of them.
        seed: of the mirroring.
        flip: whether rows are mirrored with probability 1/2.
        workers: loader processes; 0: load in this one.
        in_memory: decode every image once and keep it (uint8).
        max_unreadable: how many images `in_memory` may fail to read. Without it, who takes the batches looks at
            `unreadable`, which other processes have to add to.
    """

    #: images that could not be read so far, index -> the reason; the next readable image stands in for each
    unreadable: dict[int, str]

    def __init__(
        self,
        dataset: ImageDataset,
        order: ShuffledOrder,
        share: BatchShard,
        *,
        seed: int,
        device: torch.device,
        flip: bool = False,
        workers: int = 0,
        in_memory: bool = False,
        max_unreadable: int = 0,
    ) -> None:
        self.dataset, self.order, self.share, self.seed, self.device = dataset, order, share, seed, device
        self.flip, self.workers, self.unreadable = flip, workers, {}
        self._kept = self._all(max_unreadable) if in_memory else None

    def _all(self, max_unreadable: int) -> tuple[Tensor, Tensor]:
        """Every image of the split, and the labels."""
        size, done = len(self.dataset), 0
        wanted = [list(range(i, min(i + 256, size))) for i in range(0, size, 256)]
        for loaded in load_batches(self.dataset, wanted, workers=self.workers):
            self.unreadable |= loaded.unreadable
            check_unreadable(self.unreadable, max_unreadable)
            if not done:
                check_room(loaded.pixels_B3HW[0].nbytes * size, f"{size} images", torch.device("cpu"))
                pixels = loaded.pixels_B3HW.new_empty(size, *loaded.pixels_B3HW.shape[1:])
                labels = loaded.labels_B.new_empty(size)
            rows = slice(done, done + len(loaded.labels_B))
            pixels[rows], labels[rows], done = loaded.pixels_B3HW, loaded.labels_B, rows.stop
        return pixels, labels

    def batches(self, first: int, end: int) -> Iterator[ImageBatch]:
        """The batches of steps `first` up to `end`."""
        for step, (pixels_B3HW, labels_B) in enumerate(self._loaded(first, end), start=first):
            images = to_images(pixels_B3HW, labels_B, self.device)
            yield flipped(images, flips(step, seed=self.seed, share=self.share)) if self.flip else images

    def _loaded(self, first: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        start, stop = self.share.first, self.share.first + self.share.rows
        wanted = (self.order.indices(step)[start:stop].tolist() for step in range(first, end))
        if self._kept is not None:
            pixels, labels = self._kept
            yield from ((pixels[rows], labels[rows]) for rows in wanted)
            return
        for loaded in load_batches(self.dataset, wanted, workers=self.workers, pin=self.device.type == "cuda"):
            self.unreadable |= loaded.unreadable
            yield loaded.pixels_B3HW, loaded.labels_B


def each_once(
    dataset: ImageDataset,
    indices: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    max_unreadable: int | None = 0,
    unreadable: dict[int, str] | None = None,
) -> Iterator[ImageBatch]:
    """The images at `indices` once, in that order; the last batch may be smaller.

    Args:
        max_unreadable: how many images may be unreadable, and have the next readable one in their place; None: any
            number.
        unreadable: where to note them, index -> the reason.

    Raises:
        UserError: more than that are.
    """
    unreadable = {} if unreadable is None else unreadable
    wanted = [part.tolist() for part in indices.split(batch_size)]
    for loaded in load_batches(dataset, wanted, workers=workers):
        unreadable |= loaded.unreadable
        if max_unreadable is not None:
            check_unreadable(unreadable, max_unreadable)
        yield to_images(loaded.pixels_B3HW, loaded.labels_B, device)


def load_batches(
    dataset: ImageDataset, wanted: Iterable[list[int]], *, workers: int = 0, pin: bool = False
) -> Iterator[LoadedRows]:
    """The images at each list of indices, or those that stand in for them; see `read_ahead`."""
    return read_ahead(partial(load_readable, dataset), wanted, workers=workers, pin=pin)


def check_room(need: int, what: str, device: torch.device) -> None:
    """See that `need` bytes for `what` fit into the memory of a device, or of this machine.

    Raises:
        UserError: they do not.
    """
    if device.type == "cuda":
        together, there = 1, torch.cuda.mem_get_info(device)[0]
    else:  # torchrun's processes on this machine share its memory
        together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need * together > there:
        each = f" in each of {together} processes" if together > 1 else ""
        raise UserError(
            f"training.cache: memory needs {need / 2**30:.0f} GiB for {what}{each}, and {device} has "
            f"{there / 2**30:.0f} GiB; use cache: none"
        )
