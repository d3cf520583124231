"""What transformers of several kinds of parts share: rotary positions, attention with a cache, modulated blocks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.blocks import Attention, Block, Dropout, KeysValues, Mlp
from mixar_core.meta import constant
from mixar_core.types import TokenLayout

# In bfloat16 hidden states are, as published (HART, ACDiT, FlowAR-L), and a norm's weight is not: torch says that once.
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)


def scale_of(layout: TokenLayout) -> Tensor:
    """The scale of every position: int64 (N,)."""
    return torch.tensor([n for n, group in enumerate(layout.by_scale) for _ in group])


@constant
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


def rotary_table(angles: Tensor) -> Tensor:
    """What `turn` multiplies with, of angles (..., width / 2): (..., 2, width).

    First the cosine of every number's angle, then the sine, with the sign that it has for this number. A system whose
    embedding is another one (a place that becomes zero, numbers of a pair with different angles) makes such a table.
    """
    cos, sin = angles.cos(), angles.sin()
    signed = torch.stack([-sin, sin], dim=-1).flatten(-2)
    return torch.stack([cos.repeat_interleave(2, dim=-1), signed], dim=-2)


def turn(x: Tensor, table: Tensor) -> Tensor:
    """Numbers of x (..., width), in float32: each times the first of its table, plus its neighbour times the second."""
    exact = x.float()
    swapped = exact.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (exact * table[..., 0, :] + swapped * table[..., 1, :]).to(x.dtype)


def half_turned_table(angles: Tensor) -> Tensor:
    """The same of an embedding that turns number j of a head with number j + width / 2, of each number's angle.

    Angles (..., width) to (..., 2, width), for numbers in the order of `beside`. The two of a pair may have different
    angles: then it is no rotation.
    """
    sign = torch.ones(angles.shape[-1], device=angles.device)
    sign[: angles.shape[-1] // 2].fill_(-1.0)
    return torch.stack([beside(angles.cos()), beside(angles.sin() * sign)], dim=-2)


def beside(x: Tensor) -> Tensor:
    """Numbers j and j + width / 2 of x (..., width) next to each other."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring numbers of x (..., width) as a pair by angles (..., width / 2), in float32."""
    return turn(x, rotary_table(angles))


class KeyValueCache:
    """One block's keys and values, (B, heads, length, width) each, of at most `capacity` tokens.

    What comes first says how many rows there are, unless `rows` says it.
    """

    def __init__(self, capacity: int, *, rows: int = 0) -> None:
        self.capacity, self.length, self.rows = capacity, 0, rows
        self._held: tuple[Tensor, Tensor] | None = None

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these (there may be none), and give all that is held of these rows, the first of its own."""
        batch, heads, count, width = k.shape
        if self._held is None:
            shape = max(self.rows, batch), heads, self.capacity, width
            self._held = k.new_empty(shape), v.new_empty(shape)
        before, self.length = self.length, self.length + count
        for held, new in zip(self._held, (k, v), strict=True):
            held[:batch, :, before : self.length] = new
        return self._held[0][:batch, :, : self.length], self._held[1][:batch, :, : self.length]


class CachedAttention(Attention):
    """Self-attention where positions turn, a mask says who looks at whom, and a cache holds what came before."""

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, heads, T, width) as they are before positions turn them."""
        return q, k

    def forward(
        self,
        x_BTD: Tensor,
        table: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        seen: int | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D).

        Args:
            table: by which queries and keys are turned, (B or 1, T, 2, width of a head); None: not at all.
            mask: bool, broadcast to (B, heads, T, what is held + `seen`), True where a token looks; None: everywhere.
            cache: what came before; what is seen of these tokens is kept in it.
            seen: only the first so many of these tokens are looked at; None: all.
        """
        q, k, v = self.split(x_BTD)
        q, k = self.prepared(q, k[:, :, :seen])
        v = v[:, :, :seen]
        if table is not None:
            q, k = turn(q, table[:, None]), turn(k, table[:, None, :seen])
        if cache is not None:
            k, v = cache.extended(k, v)
        return self.looking(q, k, v, mask)


class CachedBlock(Block):
    """A block around it."""

    attention = CachedAttention

    def forward(
        self,
        x_BTD: Tensor,
        memory: Tensor | KeysValues | None = None,
        table: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        seen: int | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); the other arguments are those of `CachedAttention`."""
        return self.rest(x_BTD + self.attn(self.norm1(x_BTD), table, mask, cache, seen), memory)


#: how a block's modulation is cut: what each branch adds and multiplies its input with, and its output
MODULATION = ("shift1", "scale1", "gate1", "shift2", "scale2", "gate2")


class ModulatedBlock(nn.Module):
    """A pre-norm block of parts that are given; a condition may shift, scale and gate both branches (DiT's adaLN).

    Args:
        width: of its tokens, and of the condition.
        attn, mlp: the branches.
        norm: makes each branch's norm.
        order: how the modulation is cut, the names of MODULATION; None: there is no modulation.
    """

    def __init__(
        self,
        width: int,
        attn: CachedAttention,
        mlp: nn.Module,
        norm: Callable[[], nn.Module],
        order: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp, self.order = norm(), attn, norm(), mlp, order
        if order is not None:
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, len(order) * width))

    def forward(
        self,
        x_BTD: Tensor,
        condition_BTD: Tensor | None = None,
        table: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        seen: int | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); other arguments are those of `CachedAttention`.

        The condition is (B, T, D), or one for every group of equally many tokens; None: tokens that nothing modulates.
        """
        if self.order is None or condition_BTD is None:
            x_BTD = x_BTD + self.attn(self.norm1(x_BTD), table, mask, cache, seen)
            return x_BTD + self.mlp(self.norm2(x_BTD))
        modulation = self.modulation(condition_BTD)
        if 1 < modulation.shape[1] < x_BTD.shape[1]:  # of groups of tokens
            modulation = modulation.repeat_interleave(x_BTD.shape[1] // modulation.shape[1], dim=1)
        parts = modulation.chunk(len(self.order), dim=-1)
        by = dict(zip(self.order, parts, strict=True))
        given = modulate(self.norm1(x_BTD), by["shift1"], by["scale1"])
        x_BTD = x_BTD + by["gate1"] * self.attn(given, table, mask, cache, seen)
        return x_BTD + by["gate2"] * self.mlp(modulate(self.norm2(x_BTD), by["shift2"], by["scale2"]))


class ModulatedNorm(nn.Module):
    """What stands before a head: a norm without weights that a condition shifts and scales, in this `order`."""

    def __init__(self, width: int, order: Sequence[str] = ("shift", "scale"), *, eps: float) -> None:
        super().__init__()
        self.norm, self.order = nn.LayerNorm(width, eps=eps, elementwise_affine=False), order
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BTD: Tensor, condition_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D); the condition is (B, T or 1, D)."""
        by = dict(zip(self.order, self.modulation(condition_BTD).chunk(2, dim=-1), strict=True))
        return modulate(self.norm(x_BTD), by["shift"], by["scale"])


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


class TanhMlp(Mlp):
    """With GELU's approximation by a tanh."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x_BTD), approximate="tanh"))))


class GatedMlp(nn.Module):
    """SwiGLU (arXiv 2002.05202) with Llama's names, w2(silu(w1 x) * w3 x), or with another `gate` than silu."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        dropout: float,
        bias: bool = False,
        gate: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w3 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, width, bias=bias)
        self.drop, self.gate = Dropout(dropout), gate

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.drop(self.w2(self.gate(self.w1(x_BTD)) * self.w3(x_BTD)))


def llama_block(width: int, heads: int, *, multiple_of: int, dropout: float) -> ModulatedBlock:
    """Llama's block: RMSNorm, no biases, SwiGLU two thirds of four times as wide, rounded up to `multiple_of`."""
    hidden = -(-int(8 * width / 3) // multiple_of) * multiple_of
    attention = CachedAttention(width, heads, attention_dropout=0.0, dropout=dropout, bias=False)
    mlp = GatedMlp(width, hidden, dropout=dropout)
    return ModulatedBlock(width, attention, mlp, lambda: nn.RMSNorm(width, eps=1e-5))


def through(
    blocks: Iterable[nn.Module],
    x_BTD: Tensor,
    *,
    table: Tensor | None = None,
    condition_BTD: Tensor | None = None,
    mask: Tensor | None = None,
    caches: Sequence[KeyValueCache] = (),
    causal: bool = False,
) -> Tensor:
    """Tokens (B, T, D) through modulated blocks, each of which has its cache, or there are none.

    Args:
        causal: a token looks at those before it and at all that caches hold, instead of a `mask`.
    """
    count, held = x_BTD.shape[1], caches[0].length if caches else 0
    if causal and count > 1:
        mask = torch.ones(count, held + count, dtype=torch.bool, device=x_BTD.device).tril(diagonal=held)
    for index, block in enumerate(blocks):
        x_BTD = block(x_BTD, condition_BTD, table, mask, caches[index] if caches else None)
    return x_BTD
