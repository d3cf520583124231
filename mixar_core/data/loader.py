"""Batches of images in an order that is a function of the seed and the step, for this process's rows."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixar_core.data.dataset import ImageDataset
from mixar_core.data.streams import Stream, seed_of, step_noise
from mixar_core.errors import UserError
from mixar_core.types import ImageBatch


@frozen
class Share:
    """The rows of a global batch that one process holds: `rows` of `total`, from `first` onwards."""

    first: int
    rows: int
    total: int

    @classmethod
    def of(cls, total: int, *, rank: int, world: int) -> Share:
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
    """Images uint8 (B, 3, H, W) and labels int64 (B,) at these indices."""
    rows = [dataset[index] for index in indices]
    return torch.stack([image for image, _ in rows]), torch.tensor([label for _, label in rows])


def to_images(pixels_B3HW: Tensor, labels_B: Tensor, device: torch.device) -> ImageBatch:
    """uint8 pixels to an ImageBatch on `device`: 0..255 to [-1, 1]."""
    pixels = pixels_B3HW.to(device, non_blocking=True)
    return ImageBatch(pixels.float() / 127.5 - 1.0, labels_B.to(device, non_blocking=True))


def flips(step: int, *, seed: int, share: Share) -> Tensor:
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
    """

    def __init__(
        self,
        dataset: ImageDataset,
        order: ShuffledOrder,
        share: Share,
        *,
        seed: int,
        device: torch.device,
        flip: bool = False,
        workers: int = 0,
        in_memory: bool = False,
    ) -> None:
        self.dataset, self.order, self.share, self.seed, self.device = dataset, order, share, seed, device
        self.flip, self.workers = flip, workers
        self._kept: tuple[Tensor, Tensor] | None = None
        if in_memory:
            whole = [list(range(i, min(i + 256, len(dataset)))) for i in range(0, len(dataset), 256)]
            loaded = list(load_batches(dataset, whole, workers=workers))
            self._kept = torch.cat([p for p, _ in loaded]), torch.cat([labels for _, labels in loaded])

    def batches(self, first: int, end: int) -> Iterator[ImageBatch]:
        """The batches of steps `first` up to `end`."""
        wanted = _Indices(self.order, self.share, first, end)
        if self._kept is None:
            loaded = load_batches(self.dataset, wanted, workers=self.workers, pin=self.device.type == "cuda")
        else:
            pixels, labels = self._kept
            loaded = ((pixels[rows], labels[rows]) for rows in wanted)
        for step, (pixels_B3HW, labels_B) in enumerate(loaded, start=first):
            images = to_images(pixels_B3HW, labels_B, self.device)
            yield flipped(images, flips(step, seed=self.seed, share=self.share)) if self.flip else images


def sweep(
    dataset: ImageDataset, indices: Tensor, *, batch_size: int, device: torch.device, workers: int = 0
) -> Iterator[ImageBatch]:
    """The images at `indices` once, in that order; the last batch may be smaller."""
    for pixels, labels in load_batches(dataset, [part.tolist() for part in indices.split(batch_size)], workers=workers):
        yield to_images(pixels, labels, device)


class _Indices:
    """A share's lists of indices, step after step; iterable as a loader's batch sampler."""

    def __init__(self, order: ShuffledOrder, share: Share, first: int, end: int) -> None:
        self.order, self.share, self.first, self.end = order, share, first, end

    def __iter__(self) -> Iterator[list[int]]:
        start, stop = self.share.first, self.share.first + self.share.rows
        for step in range(self.first, self.end):
            yield self.order.indices(step)[start:stop].tolist()

    def __len__(self) -> int:
        return self.end - self.first


class _Batches(Dataset):
    """A data set whose item is a whole batch.

    A UserError travels as a value: raised in a worker, it would reach the user wrapped in a traceback's text.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor] | UserError:
        try:
            return load_rows(self.dataset, indices)
        except UserError as error:
            return error


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches the workers too; the run must still finish its step, and ends them itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load_batches(
    dataset: ImageDataset, wanted: _Indices | list[list[int]], *, workers: int = 0, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and labels of each list of indices, in order, loaded ahead by `workers` processes.

    Raises:
        UserError: an image cannot be read.
    """
    # A sampler over lists, with no batching by the loader: one item is one batch.
    loader = DataLoader(
        _Batches(dataset),
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_signals,
    )
    for loaded in loader:
        if isinstance(loaded, UserError):
            raise loaded
        yield loaded
