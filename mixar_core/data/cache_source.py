"""Token batches of a process from a cache on disk, read ahead of the steps that use them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from mixar_core.data.cache import TOKENS, TokenCache
from mixar_core.data.loader import BatchShard, ShuffledOrder, flips
from mixar_core.data.tokens import CachedTokens
from mixar_core.data.workers import read_ahead

#: batches that are read before they are asked for, where a thread reads them
AHEAD = 2


class CacheSource:
    """Token batches of a process, step by step, on its device.

    Args:
        cache: with mirrored images, where `flip` is set.
        order: which rows each step sees.
        share: this process's part of them.
        seed: of the mirroring.
        flip: whether rows are mirrored with probability 1/2.
        workers: loader processes; 0: a thread of this one reads ahead.
        kinds: of tokens to read, see TokenCache.rows.
    """

    #: a cache holds no images that could not be read
    unreadable: dict[int, str]

    def __init__(
        self,
        cache: TokenCache,
        order: ShuffledOrder,
        share: BatchShard,
        *,
        seed: int,
        device: torch.device,
        flip: bool = False,
        workers: int = 0,
        kinds: Collection[str] = TOKENS,
    ) -> None:
        self.cache, self.order, self.share, self.seed, self.device = cache, order, share, seed, device
        self.flip, self.workers, self.kinds, self.unreadable = flip, workers, kinds, {}

    def batches(self, first: int, end: int) -> Iterator[CachedTokens]:
        """The batches of steps `first` up to `end`."""
        read, pin = partial(_rows, self.cache, self.kinds), self.device.type == "cuda"
        wanted = (self._wanted(step) for step in range(first, end))
        if self.workers:
            found = read_ahead(read, wanted, workers=self.workers, pin=pin)
        else:
            found = _ahead_in_a_thread(lambda rows: read(rows).pin_memory() if pin else read(rows), wanted)
        for tokens in found:
            yield tokens.to(self.device)

    def _wanted(self, step: int) -> tuple[Tensor, Tensor]:
        """The share's row numbers in a step, and which of them are mirrored."""
        rows = self.order.indices(step)[self.share.first : self.share.first + self.share.rows]
        plain = torch.zeros(self.share.rows, dtype=torch.bool)
        return rows, flips(step, seed=self.seed, share=self.share) if self.flip else plain


def _rows(cache: TokenCache, kinds: Collection[str], wanted: tuple[Tensor, Tensor]) -> CachedTokens:
    return cache.rows(*wanted, kinds)


def _ahead_in_a_thread(
    read: Callable[[tuple[Tensor, Tensor]], CachedTokens], wanted: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[CachedTokens]:
    ahead: deque[Future[CachedTokens]] = deque()
    with ThreadPoolExecutor(1, "mixar-cache") as reader:
        for rows in wanted:
            ahead.append(reader.submit(read, rows))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
