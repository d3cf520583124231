"""Where a run's steps get their batches: images from disk or memory, tokens from memory or a cache, read ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from attrs import define, field
from torch import Tensor

from mixar_core.data.cache import TOKENS, TokenCache
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import BatchShard, LoadedRows, ShuffledOrder, load_readable
from mixar_core.data.streams import Stream, step_noise
from mixar_core.data.tokens import CachedTokens, FrozenTokenizers
from mixar_core.data.workers import read_ahead
from mixar_core.errors import UserError
from mixar_core.types import ImageBatch

#: What a source gives a step.
Batch = ImageBatch | CachedTokens
#: Row numbers int64 (B,), and which of them are mirrored, bool (B,).
Wanted = tuple[Tensor, Tensor]
Read = Callable[[Iterable[Wanted]], Iterator[LoadedRows] | Iterator[CachedTokens]]

#: batches that a thread reads before they are asked for
AHEAD = 2


@define(eq=False)
class Source:
    """Batches of a process, step by step, on its device.

    Args:
        read: gives what is wanted, in order: `read_images`, `images_in_memory`, `tokens_in_memory` or `read_cache`.
        order: which rows each step sees.
        share: this process's part of them.
        flip: whether rows are mirrored with probability 1/2, by the order's seed.
    """

    read: Read
    order: ShuffledOrder
    share: BatchShard
    device: torch.device = field(kw_only=True)
    flip: bool = field(default=False, kw_only=True)
    #: images that could not be read so far, index -> the reason; the next readable image stands in for each
    unreadable: dict[int, str] = field(factory=dict, kw_only=True)

    @property
    def seed(self) -> int:
        """That of the order and the mirroring."""
        return self.order.seed

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """The batches of steps `first` up to `end`."""
        for found in self.read(self.wanted(step) for step in range(first, end)):
            if isinstance(found, LoadedRows):
                self.unreadable.update(found.unreadable)
            yield found.to(self.device)

    def wanted(self, step: int) -> Wanted:
        """The share's row numbers in a step, and which of them are mirrored."""
        rows_B = self.order.indices(step)[self.share.first : self.share.first + self.share.rows]
        if not self.flip:
            return rows_B, torch.zeros(self.share.rows, dtype=torch.bool)
        return rows_B, flips(step, seed=self.seed, share=self.share)


def flips(step: int, *, seed: int, share: BatchShard) -> Tensor:
    """Which of the share's rows of this step are mirrored, bool (B,)."""
    noise = step_noise(Stream.FLIP, seed=seed, step=step, first=share.first, total=share.total)
    return noise.uniform((share.rows,), "cpu", name="flip") < 0.5


def read_images(dataset: ImageDataset, *, workers: int = 0, pin: bool = False) -> Read:
    """Images read when they are wanted; `workers` and `pin` as `read_ahead` takes them."""
    load = partial(_load, dataset)  # lists: a tensor would travel to a process as a file
    return lambda wanted: read_ahead(load, ((r.tolist(), f.tolist()) for r, f in wanted), workers=workers, pin=pin)


def _load(dataset: ImageDataset, wanted: tuple[list[int], list[bool]]) -> LoadedRows:
    return load_readable(dataset, wanted[0]).mirrored(torch.tensor(wanted[1]))


def read_cache(cache: TokenCache, kinds: Collection[str] = TOKENS, *, workers: int = 0, pin: bool = False) -> Read:
    """Tokens from a cache, read ahead by processes or, without `workers`, by a thread; `kinds` as `TokenCache.rows`."""
    read = partial(_rows, cache, kinds)
    if workers:
        return partial(read_ahead, read, workers=workers, pin=pin)
    return partial(_ahead_in_a_thread, lambda wanted: read(wanted).pin_memory() if pin else read(wanted))


def _rows(cache: TokenCache, kinds: Collection[str], wanted: Wanted) -> CachedTokens:
    return cache.rows(*wanted, kinds)


def _ahead_in_a_thread(read: Callable[[Wanted], CachedTokens], wanted: Iterable[Wanted]) -> Iterator[CachedTokens]:
    ahead: deque[Future[CachedTokens]] = deque()
    with ThreadPoolExecutor(1, "mixar-cache") as reader:
        for rows in wanted:
            ahead.append(reader.submit(read, rows))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def images_in_memory(
    loaded: Iterable[LoadedRows], count: int, *, told: Callable[[str], object] = lambda _: None
) -> Read:
    """All `count` images of a split, decoded once and kept as uint8; `told`, first, how many and how large they are.

    Raises:
        UserError: they would not fit into the machine's memory.
    """
    parts = ([each.pixels_B3HW, each.labels_B] for each in loaded)
    pixels, labels = _together(parts, count, "images", torch.device("cpu"), told)
    return lambda wanted: (LoadedRows(pixels[rows], labels[rows], {}).mirrored(flip) for rows, flip in wanted)


def tokens_in_memory(
    loaded: Iterable[LoadedRows],
    count: int,
    tokenizers: FrozenTokenizers,
    *,
    device: torch.device,
    flip: bool = False,
    told: Callable[[str], object] = lambda _: None,
) -> Read:
    """Tokens of all `count` images, encoded once, plain and (with `flip`) mirrored; kept on the device, in float32.

    `told`, first, how many and how large they are.

    Raises:
        UserError: they would not fit into its memory.
    """
    parts = (_views(each, tokenizers, device, flip) for each in loaded)
    kept = CachedTokens.of(_together(parts, count, "encoded images", device, told))
    return lambda wanted: (kept.rows((rows.to(device), flip.long().to(device))) for rows, flip in wanted)


def _views(loaded: LoadedRows, tokenizers: FrozenTokenizers, device: torch.device, flip: bool) -> list[Tensor]:
    """The tensors of these images' tokens, (B, views, ...): the plain image and, with `flip`, the mirrored one."""
    flips_B = [torch.full_like(loaded.labels_B, view, dtype=torch.bool) for view in range(1 + flip)]
    views = [tokenizers.encode(loaded.mirrored(flip_B).to(device)).tensors() for flip_B in flips_B]
    return [torch.stack(each, dim=1) for each in zip(*views, strict=True)]


def _together(
    parts: Iterable[Sequence[Tensor]], count: int, what: str, device: torch.device, told: Callable[[str], object]
) -> list[Tensor]:
    """The rows of all parts, `count` of them, each kind in one tensor whose memory is taken once, if it is there."""
    whole, done = list[Tensor](), 0
    for part in parts:
        if not whole:
            need = sum(tensor[0].nbytes for tensor in part) * count
            _check_room(need, f"{count} {what}", device)
            told(f"{count:,} {what}, {1e-6 * need:,.1f} MB, on {device}")
            whole = [tensor.new_empty(count, *tensor.shape[1:]) for tensor in part]
        end = done + len(part[0])
        for tensor, rows in zip(whole, part, strict=True):
            tensor[done:end] = rows
        done = end
    return whole


def _check_room(need: int, what: str, device: torch.device) -> None:
    """See that `need` bytes fit into the memory of a device, or of this machine."""
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
