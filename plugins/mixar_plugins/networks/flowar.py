"""What FlowAR's backbone and its head share (arXiv 2412.15205, and the released code): blocks, and rotary tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.meta import constant
from mixar_core.types import TokenLayout
from mixar_plugins.networks.transformer import CachedAttention, GatedMlp, ModulatedBlock, rotary_table

#: how a block's modulation is cut
ORDER = ("gate1", "gate2", "scale1", "scale2", "shift1", "shift2")
#: every scale is stretched over so many rows and columns before its places turn
SIDE, BASE = 16, 10000.0


@constant
def places(layout: TokenLayout, width: int) -> Tensor:
    """By what a head of `width` numbers is turned at each position of all scales: (N, 2, width).

    The first half goes with the row and the second with the column, as on a grid of 16 x 16 whatever the scale.
    """
    frequencies = BASE ** -(torch.arange(0, width // 2, 2) / (width // 2))
    angles = []
    for grid in layout.scales:
        rows = torch.arange(grid.height).repeat_interleave(grid.width) / grid.height * SIDE
        columns = torch.arange(grid.width).repeat(grid.height) / grid.width * SIDE
        angles.append(torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1))
    return rotary_table(torch.cat(angles))


def gated_mlp(width: int, mlp_ratio: float) -> GatedMlp:
    """A gate of GELU, two thirds as wide as an MLP of this ratio."""
    return GatedMlp(width, int(width * mlp_ratio * 2 / 3), dropout=0.0, bias=True, gate=F.gelu)


def attention(width: int, heads: int, *, bias: bool) -> CachedAttention:
    """`bias`: whether queries, keys and values have one."""
    made = CachedAttention(width, heads, attention_dropout=0.0, dropout=0.0)
    if not bias:
        made.qkv = nn.Linear(width, 3 * width, bias=False)
    return made


def block(width: int, heads: int, mlp_ratio: float, *, bias: bool) -> ModulatedBlock:
    """Pre-norm without weights, both branches modulated."""
    branches = attention(width, heads, bias=bias), gated_mlp(width, mlp_ratio)
    return ModulatedBlock(width, *branches, lambda: plain_norm(width), ORDER)


def plain_norm(width: int) -> nn.Module:
    """RMSNorm without a weight."""
    return nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
