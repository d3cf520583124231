"""Token batches of a process from a cache on disk, read ahead of the steps that use them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixar_core.data.cache import TOKENS, TokenCache
from mixar_core.data.loader import BatchShard, ShuffledOrder, flips, make_loader
from mixar_core.data.tokens import CachedTokens
from mixar_core.errors import UserError

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
        wanted = _Wanted(self, first, end)
        pin = self.device.type == "cuda"
        for tokens in self._loaded(wanted, pin) if self.workers else self._read(wanted, pin):
            yield tokens.to(self.device)

    def _loaded(self, wanted: _Wanted, pin: bool) -> Iterator[CachedTokens]:
        for item in make_loader(_Rows(self.cache, self.kinds), wanted, workers=self.workers, pin=pin):
            if isinstance(item, UserError):
                raise item
            yield item

    def _read(self, wanted: _Wanted, pin: bool) -> Iterator[CachedTokens]:
        def read(rows: Tensor, flip: Tensor) -> CachedTokens:
            tokens = self.cache.rows(rows, flip, self.kinds)
            return tokens.pin_memory() if pin else tokens

        ahead: deque[Future[CachedTokens]] = deque()
        with ThreadPoolExecutor(1, "mixar-cache") as reader:
            for rows, flip in wanted:
                ahead.append(reader.submit(read, rows, flip))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


class _Wanted:
    """A share's row numbers and mirrorings, step after step; iterable as a loader's sampler."""

    def __init__(self, source: CacheSource, first: int, end: int) -> None:
        self.source, self.first, self.end = source, first, end

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source, share = self.source, self.source.share
        for step in range(self.first, self.end):
            rows = source.order.indices(step)[share.first : share.first + share.rows]
            plain = torch.zeros(share.rows, dtype=torch.bool)
            yield rows, flips(step, seed=source.seed, share=share) if source.flip else plain

    def __len__(self) -> int:
        return self.end - self.first


class _Rows(Dataset):
    """A data set whose item is a whole batch; a UserError travels as a value."""

    def __init__(self, cache: TokenCache, kinds: Collection[str]) -> None:
        self.cache, self.kinds = cache, kinds

    def __getitem__(self, wanted: tuple[Tensor, Tensor]) -> CachedTokens | UserError:
        try:
            return self.cache.rows(*wanted, self.kinds)
        except UserError as error:
            return error
