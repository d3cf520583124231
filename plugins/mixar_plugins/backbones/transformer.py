"""What transformers that look backwards share: rotary positions, and attention that remembers keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from mixar_core.blocks import Attention, Block
from mixar_core.types import TokenLayout


def rotary_angles(layout: TokenLayout, width: int, *, base: float = 10000.0) -> Tensor:
    """By what angles a head of `width` numbers is turned at each position: (N, width / 2) float32.

    On a grid one half of them goes with the row and the other with the column (width must be a multiple of 4); in any
    other layout all go with the position (RoFormer, arXiv 2104.09864, Eq. 14-15).
    """
    places_N = torch.arange(layout.tokens)
    axes = [places_N]
    if layout.kind == "grid":
        across = layout.scales[0].width
        axes = [places_N // across, places_N % across]
    part = width // len(axes)
    frequencies = base ** (-torch.arange(0, part, 2) / part)
    return torch.cat([axis[:, None] * frequencies for axis in axes], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring numbers of x (..., width) as a pair by angles (..., width / 2), in float32."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class KeyValueCache:
    """One block's keys and values, (B, heads, length, width) each, of at most `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._held: tuple[Tensor, Tensor] | None = None

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these (there may be none), and give all that is held of these rows, the first of its own."""
        batch, heads, count, width = k.shape
        if self._held is None:
            shape = batch, heads, self.capacity, width
            self._held = k.new_empty(shape), v.new_empty(shape)
        before, self.length = self.length, self.length + count
        for held, new in zip(self._held, (k, v), strict=True):
            held[:batch, :, before : self.length] = new
        return self._held[0][:batch, :, : self.length], self._held[1][:batch, :, : self.length]


class CachedAttention(Attention):
    """Self-attention where positions are angles, a mask says who looks at whom, and a cache holds what came before."""

    def forward(
        self,
        x_BTD: Tensor,
        angles: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        seen: int | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D).

        Args:
            angles: by which queries and keys are turned, (B or 1, T, width of a head / 2); None: not at all.
            mask: bool (T, what is held + `seen`), True where a token looks; None: everywhere.
            cache: what came before; what is seen of these tokens is kept in it.
            seen: only the first so many of these tokens are looked at; None: all.
        """
        q, k, v = self.split(x_BTD)
        k, v = k[:, :, :seen], v[:, :, :seen]
        if angles is not None:
            q, k = rotate(q, angles[:, None]), rotate(k, angles[:, None, :seen])
        if cache is not None:
            k, v = cache.extended(k, v)
        return self.looking(q, k, v, mask)


class CachedBlock(Block):
    """A block around it."""

    attention = CachedAttention

    def forward(
        self,
        x_BTD: Tensor,
        memory_BMD: Tensor | None = None,
        angles: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        seen: int | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); the other arguments are those of `CachedAttention`."""
        return self.rest(x_BTD + self.attn(self.norm1(x_BTD), angles, mask, cache, seen), memory_BMD)
