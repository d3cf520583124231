"""Transformer blocks, with timm's parameter names, which MAR's released files carry; and where a network has blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.masking import take
from mixar_core.precision import full_precision
from mixar_core.products import some_of

#: keys and values, (B, heads, M, width) each
KeysValues: TypeAlias = tuple[Tensor, Tensor]

#: On CPU the fused kernel loses to plain products below about this many tokens (python -m benchmarks.products).
PLAIN_BELOW = 256


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over (B, heads, T, width): the fused kernel, or plain products for short sequences on CPU.

    `mask` is bool (queries, keys), True where a query looks at a key; None: everywhere.
    """
    if q.device.type == "cpu" and dropout > 0.0:  # the fused kernel has none there
        with full_precision(q.device):  # in what q, k and v are in, softmax too, as elsewhere
            return plain_attention(q, k, v, dropout, mask)
    if q.device.type == "cpu" and k.shape[2] < PLAIN_BELOW:
        return plain_attention(q, k, v, mask=mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, mask: Tensor | None = None) -> Tensor:
    """Softmax attention written out."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    return dropped(weights.softmax(dim=-1), dropout) @ v


def dropped(x: Tensor, share: float) -> Tensor:
    """Dropout: a `share` of the numbers becomes 0, the others are divided by 1 - share."""
    if share == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, share)
    # 16 random bits a number: torch's own draws take four times as long on a CPU, a tenth of MAR-B's step in bf16
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[: x.numel()]
    kept = bits >= round(share * 2**16) - 2**15
    return x * kept.to(x.dtype).div_(1.0 - share).view(x.shape)


class Dropout(nn.Dropout):
    """`dropped`, in training."""

    def forward(self, input: Tensor) -> Tensor:
        """Of any shape."""
        return dropped(input, self.p) if self.training else input


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, D)."""

    def __init__(self, width: int, heads: int, *, attention_dropout: float, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.proj_drop = Dropout(dropout)

    def forward(self, x_BTD: Tensor, only_BR: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); with `only_BR`, (B, R, D) of the tokens at these places, which look at all."""
        if only_BR is None:
            return self.looking(*self.split(x_BTD))
        return self.looking(self.queries(take(x_BTD, only_BR)), *self.keys_values(x_BTD))

    def split(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens, (B, heads, T, width) each."""
        q, k, v = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def queries(self, x_BTD: Tensor) -> Tensor:
        """The first of `split`."""
        q = some_of(self.qkv, x_BTD, slice(x_BTD.shape[2]))
        return q.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x_BTD: Tensor) -> KeysValues:
        """The others of `split`."""
        kv = some_of(self.qkv, x_BTD, slice(x_BTD.shape[2], None)).unflatten(2, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def looking(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """What queries find in keys and values, which may be more: (B, T, D)."""
        out = attend(q, k, v, self.attention_dropout if self.training else 0.0, mask)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        hidden = self.fc1(x_BTD)
        # in place where nobody asks for it again: of all that a pass allocates this is the largest
        hidden = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.drop(self.fc2(self.drop(hidden)))


class CrossAttention(nn.Module):
    """One cross-attention block, x + proj(attention(norm(x), memory)): the `memory` door (DC-CA)."""

    def __init__(self, width: int, memory_width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.drop = Dropout(dropout)

    def forward(self, x_BTD: Tensor, memory: Tensor | KeysValues) -> Tensor:
        """(B, T, D) attends to (B, M, D'), or to what `keys_values` made of it.

        Of a batch that is copies of a shorter one, below each other, that may be the shorter one's.
        """
        k, v = memory if isinstance(memory, tuple) else self.keys_values(memory)
        q = self.q(self.norm(x_BTD)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        copies = len(q) // len(k)
        if copies > 1:  # more queries, and not the same keys twice
            q = q.unflatten(0, (copies, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        out = attend(q, k, v)
        if copies > 1:
            out = out.unflatten(2, (copies, -1)).permute(2, 0, 1, 3, 4).flatten(0, 1)
        return x_BTD + self.drop(self.proj(out.transpose(1, 2).flatten(2)))

    def keys_values(self, memory_BMD: Tensor) -> KeysValues:
        """Of a memory, (B, heads, M, width) each: what does not depend on who looks."""
        k, v = self.kv(memory_BMD).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v


class Block(nn.Module):
    """Pre-norm transformer block; with `memory_width`, cross-attention follows its self-attention and MLP."""

    attention: ClassVar[type[Attention]] = Attention

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        memory_width: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = self.attention(width, heads, attention_dropout=attention_dropout, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout=dropout)
        self.cross = None if memory_width is None else CrossAttention(width, memory_width, heads, dropout=dropout)

    def forward(
        self, x_BTD: Tensor, memory: Tensor | KeysValues | None = None, only_BR: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) to (B, T, D). A block built with `memory_width` without a memory skips its cross-attention.

        With `only_BR`, (B, R, D) of the tokens at these places: all that is needed of a last block.
        """
        if only_BR is None:
            return self.rest(x_BTD + self.attn(self.norm1(x_BTD)), memory)
        return self.rest(take(x_BTD, only_BR) + self.attn(self.norm1(x_BTD), only_BR), memory)

    def rest(self, x_BTD: Tensor, memory: Tensor | KeysValues | None) -> Tensor:
        """What follows its self-attention."""
        x_BTD = x_BTD + self.mlp(self.norm2(x_BTD))
        if self.cross is not None and memory is not None:
            x_BTD = self.cross(x_BTD, memory)
        return x_BTD


def is_compiled(block: nn.Module) -> bool:
    """Whether `block.compile()` was called."""
    return block._compiled_call_impl is not None


def blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    """Its children, and of a list of blocks every block: a list's own forward is never called."""
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else (child,)


def sharded_blocks(trained: nn.Module) -> list[nn.Module]:
    """The innermost lists' blocks: a network's hidden layers, and what FSDP gathers weights for as long as it runs.

    A block has modules of its own and is used by calling it. What is not in a list (embeddings, projections, small
    networks) FSDP gathers for a whole pass.
    """
    lists = [module for module in trained.modules() if isinstance(module, nn.ModuleList)]
    return [
        block
        for blocks in lists
        for block in blocks.children()  # a library's list may hold None
        if [*block.children()] and not any(isinstance(inner, nn.ModuleList) for inner in block.modules())
    ]
