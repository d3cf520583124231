"""The transformer of MaskGIT and MaskBit: BERT's, over N tokens and one class token. Names are the originals'."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with the originals' epsilon."""
    return nn.LayerNorm(width, eps=1e-12)


def residual(x: Tensor, norm: nn.LayerNorm, function: Callable[[Tensor], Tensor], prenorm: bool) -> Tensor:
    """x + f(norm(x)) or, as BERT does it, norm(x + f(x))."""
    return x + function(norm(x)) if prenorm else norm(x + function(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of `nn.MultiheadAttention`. (B, T, D) to (B, T, D)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = F.linear(x_BTD, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class AttentionLayer(nn.Module):
    """Self-attention with its residual."""

    def __init__(self, width: int, heads: int, dropout: float, prenorm: bool) -> None:
        super().__init__()
        self.mha = SelfAttention(width, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = layer_norm(width)
        self.prenorm = prenorm

    def forward(self, x_BTD: Tensor) -> Tensor:
        return residual(x_BTD, self.norm, lambda x: self.dropout(self.mha(x)), self.prenorm)


class FeedForwardLayer(nn.Module):
    """Two linear maps with a GELU between them, with their residual."""

    def __init__(self, width: int, mlp_dim: int, dropout: float, prenorm: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, width), nn.Dropout(dropout))
        self.norm = layer_norm(width)
        self.prenorm = prenorm

    def forward(self, x_BTD: Tensor) -> Tensor:
        return residual(x_BTD, self.norm, self.net, self.prenorm)


class Transformer(nn.Module):
    """`depth` blocks of attention and feed-forward. (B, T, D) to (B, T, D)."""

    def __init__(self, width: int, depth: int, heads: int, mlp_dim: int, dropout: float, prenorm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                AttentionLayer(width, heads, dropout, prenorm), FeedForwardLayer(width, mlp_dim, dropout, prenorm)
            )
            for _ in range(depth)
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        for block in self.layers:
            x_BTD = block(x_BTD)
        return x_BTD


def init_weights(module: nn.Module) -> None:
    """For `Module.apply`: matrices and embeddings from a normal of deviation 0.02, biases 0, norms 1."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
