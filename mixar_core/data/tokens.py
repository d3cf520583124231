"""Tokens from frozen tokenizers: encoded with each batch, or once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from attrs import frozen
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import BatchShard, ShuffledOrder, check_room, each_once, flipped, flips
from mixar_core.noise import Noise
from mixar_core.precision import full_precision
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import ImageBatch, Posterior, TokenBatch


@frozen(eq=False)
class CachedTokens:
    """All that training needs of images: the raw posterior (float32), the codes, the labels.

    `posterior` is None without a continuous tokenizer, `codes_BN` (int64) without a discrete one. The posterior, not a
    sample of it, so that every step draws anew; one of no width (logvar -inf) where a sample is all there is.
    """

    posterior: Posterior | None
    codes_BN: Tensor | None
    labels_B: Tensor

    def __len__(self) -> int:
        return self.labels_B.shape[0]

    def rows(self, index: Tensor | slice) -> CachedTokens:
        """The rows at `index`."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> CachedTokens:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> CachedTokens:
        """The same in pinned memory, from where a GPU fetches it while it computes. (Loaders call it by this name.)"""
        return self._each(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """Those that are there, always in the same order; each has a row an image."""
        posterior = () if self.posterior is None else (self.posterior.mean_BChw, self.posterior.logvar_BChw)
        codes = () if self.codes_BN is None else (self.codes_BN,)
        return [*posterior, *codes, self.labels_B]

    def _each(self, do: Callable[[Tensor], Tensor]) -> CachedTokens:
        posterior = self.posterior
        if posterior is not None:
            posterior = Posterior(do(posterior.mean_BChw), do(posterior.logvar_BChw))
        return CachedTokens(posterior, None if self.codes_BN is None else do(self.codes_BN), do(self.labels_B))


class FrozenTokenizers(nn.Module):
    """The tokenizers of an objective on tokens, either of them or both, frozen."""

    def __init__(self, continuous: ContinuousTokenizer | None, discrete: DiscreteTokenizer | None) -> None:
        super().__init__()
        if continuous is None and discrete is None:
            raise ValueError("neither tokenizer given")
        self.continuous, self.discrete = continuous, discrete
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, images: ImageBatch) -> CachedTokens:
        """Both encoders' outputs, in float32 whatever the run's precision."""
        with full_precision(images.images_B3HW.device):
            posterior = None if self.continuous is None else self.continuous.posterior(images.images_B3HW)
            codes_BN = None if self.discrete is None else self.discrete.encode(images.images_B3HW)
        return CachedTokens(posterior, codes_BN, images.labels_B)

    @torch.no_grad()
    def draw(self, cached: CachedTokens, *, noise: Noise) -> TokenBatch:
        """Tokens of encoded images: a sample of the posterior, normalised; the codes as they are.

        Without a continuous tokenizer the latents have no channels: (B, 0, h, w).
        """
        if self.continuous is not None:
            assert cached.posterior is not None
            latents_BChw = self.continuous.normalise(self.continuous.sample_posterior(cached.posterior, noise))
        else:
            assert self.discrete is not None
            grid = self.discrete.grid
            latents_BChw = torch.zeros(len(cached), 0, grid.height, grid.width, device=cached.labels_B.device)
        return TokenBatch(latents_BChw, cached.codes_BN, cached.labels_B)


class TokenSource:
    """Token batches of a process, step by step, from a split that was encoded once, plain and (with `flip`) mirrored.

    The whole split is kept in the memory of the device, in float32, by every process; see the arguments of ImageSource.

    Raises:
        UserError: it would not fit into the machine's memory, or more than `max_unreadable` images cannot be read.
    """

    #: images that could not be read, index -> the reason; the next readable image stands in for each
    unreadable: dict[int, str]

    def __init__(
        self,
        dataset: ImageDataset,
        order: ShuffledOrder,
        share: BatchShard,
        tokenizers: FrozenTokenizers,
        *,
        seed: int,
        device: torch.device,
        flip: bool = False,
        workers: int = 0,
        encode_batch: int = 64,
        max_unreadable: int = 0,
    ) -> None:
        self.order, self.share, self.seed, self.flip = order, share, seed, flip
        self.device, self._size, self.unreadable = device, len(dataset), {}
        views, done = (False, True) if flip else (False,), 0
        for images in each_once(
            dataset,
            torch.arange(len(dataset)),
            batch_size=encode_batch,
            device=device,
            workers=workers,
            max_unreadable=max_unreadable,
            unreadable=self.unreadable,
        ):
            for view in views:
                mirrored = torch.full((len(images),), view)
                encoded = tokenizers.encode(flipped(images, mirrored) if view else images)
                if not done and not view:
                    #: rows of the plain images, and behind them the same of the mirrored ones
                    self.kept = _room(encoded, images=len(dataset) * len(views), device=device)
                first = done + len(dataset) * view
                for whole, part in zip(self.kept.tensors(), encoded.tensors(), strict=True):
                    whole[first : first + len(encoded)] = part
            done += len(images)

    def batches(self, first: int, end: int) -> Iterator[CachedTokens]:
        """The batches of steps `first` up to `end`."""
        start, stop = self.share.first, self.share.first + self.share.rows
        for step in range(first, end):
            rows = self.order.indices(step)[start:stop]
            if self.flip:
                rows = rows + self._size * flips(step, seed=self.seed, share=self.share)
            yield self.kept.rows(rows.to(self.device))


def _room(sample: CachedTokens, *, images: int, device: torch.device) -> CachedTokens:
    """Memory for so many rows like those of `sample`, not filled, if the device has it."""
    need = sum(tensor.nbytes for tensor in sample.tensors()) * images // len(sample)
    check_room(need, f"{images} encoded images", device)
    return sample._each(lambda tensor: tensor.new_empty(images, *tensor.shape[1:]))
