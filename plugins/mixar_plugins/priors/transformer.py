"""The transformer of MaskGIT and MaskBit: BERT's, over N tokens and one class token. Names are the originals'."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm(width: int, eps: float = 1e-12) -> nn.LayerNorm:
    """LayerNorm with the originals' epsilon."""
    return nn.LayerNorm(width, eps=eps)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of `nn.MultiheadAttention`. (B, T, D) to (B, T, D)."""

    in_proj_bias: nn.Parameter | None

    def __init__(self, width: int, heads: int, dropout: float, *, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * width)) if bias else None)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = F.linear(x_BTD, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """x + f(norm(x)) or, as BERT does it, norm(x + f(x)); f's parameters are called `name`. (B, T, D) to (B, T, D)."""

    def __init__(
        self, name: str, function: nn.Module, width: int, dropout: float, prenorm: bool, *, eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.name, self.prenorm = name, prenorm
        self.add_module(name, function)
        self.dropout = nn.Dropout(dropout)
        self.norm = layer_norm(width, eps)

    def forward(self, x_BTD: Tensor) -> Tensor:
        function = self.get_submodule(self.name)
        if self.prenorm:
            return x_BTD + self.dropout(function(self.norm(x_BTD)))
        return self.norm(x_BTD + self.dropout(function(x_BTD)))


def block(
    width: int, heads: int, mlp_dim: int, dropout: float, prenorm: bool, *, bias: bool = True, eps: float = 1e-12
) -> nn.Sequential:
    """Attention, then two linear maps with a GELU between them; `bias`: of queries, keys and values."""
    attention = Residual("mha", SelfAttention(width, heads, dropout, bias=bias), width, dropout, prenorm, eps=eps)
    mlp = nn.Sequential(nn.Linear(width, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, width))
    return nn.Sequential(attention, Residual("net", mlp, width, dropout, prenorm, eps=eps))


class Transformer(nn.Module):
    """`depth` blocks. (B, T, D) to (B, T, D)."""

    def __init__(self, width: int, depth: int, heads: int, mlp_dim: int, dropout: float, prenorm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block(width, heads, mlp_dim, dropout, prenorm) for _ in range(depth))

    def forward(self, x_BTD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD


def init_weights(module: nn.Module) -> None:
    """For `Module.apply`: matrices and embeddings from a normal of deviation 0.02, biases 0, norms 1."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
