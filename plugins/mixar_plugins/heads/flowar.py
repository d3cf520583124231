"""FlowAR's head (arXiv 2412.15205): a flow over all tokens of a scale, a transformer in which they see each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, ge, gt, le
from torch import Tensor, nn

from mixar_core.blocks import attend
from mixar_core.noise import Noise
from mixar_core.types import TokenLayout, Z
from mixar_plugins.heads.mlp import FinalLayer, xavier
from mixar_plugins.heads.rectified_flow import FlowConfig, RectifiedFlowHead
from mixar_plugins.networks import flowar
from mixar_plugins.networks.time import TimeEmbedding
from mixar_plugins.networks.transformer import modulate, scale_of, turn

#: the published number of steps that is spaced evenly; all others have more of them near the data
EVEN = 50
HEAD_WIDTH = 64


@frozen
class FlowARHeadConfig(FlowConfig):
    """Sizes of the head, after what every flow has. Time is rounded down to thousandths, as in the released code.

    Args:
        depth, width: blocks and their width, a multiple of 64 (FlowAR-S, L, H: 2 x 1024, 12 x 1024, 12 x 1536).
        mlp_ratio: of a block's MLP, before a gate takes a third of it.
        cross: z comes in by cross-attention in every block (L, H), not by the modulation of its attention.
        cfg_until: guidance from this time on, 1 being noise and 0 data (S, L: 0.9; H: 0.7).
    """

    samples_per_token: int = field(default=1, validator=ge(1))
    depth: int = field(default=2, validator=ge(1))
    width: int = field(default=1024, validator=ge(HEAD_WIDTH))
    mlp_ratio: float = field(default=4.0, validator=gt(0.0))
    cross: bool = False
    cfg_until: float = field(default=0.9, validator=and_(ge(0.0), le(1.0)))

    def __attrs_post_init__(self) -> None:
        if self.width % HEAD_WIDTH:
            raise ValueError(f"width {self.width} is not a multiple of {HEAD_WIDTH}")


class Told(NamedTuple):
    """What the blocks are told of the tokens.

    Args:
        embedded: z as the modulation takes it, (R, K, width); z_RKD: as it is. table: by what their places turn.
        mask: who sees whom, bool (R, 1, K, K); None: all.
    """

    embedded: Tensor
    z_RKD: Tensor
    table: Tensor
    mask: Tensor | None = None


class FlowARHead(RectifiedFlowHead):
    """A flow over the tokens of a scale; in training over those of all scales, which do not see each other."""

    together = True
    places: Tensor
    scale_N: Tensor

    def __init__(self, config: FlowARHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config = self.flow = config
        self.token_dim, self.layout, self.cfg_until = token_dim, layout, config.cfg_until
        self.groups = layout.by_scale
        self.time_embed = TimeEmbedding(config.width)
        self.cond_embed = nn.Linear(width, config.width)
        self.input_proj = nn.Linear(token_dim, config.width)
        self.res_blocks = nn.ModuleList(
            CrossBlock(config, width)
            if config.cross
            else flowar.block(config.width, config.width // HEAD_WIDTH, config.mlp_ratio, bias=False)
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(config.width, token_dim, norm=flowar.plain_norm(config.width))
        self.register_buffer("scale_N", scale_of(layout), persistent=False)
        self.register_buffer("places", flowar.places(layout, HEAD_WIDTH), persistent=False)
        xavier(self)
        self.time_embed.reset_parameters()
        self.final_layer.reset_parameters()

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Mean squared error of the velocity (B, K), all tokens of a scale at the same time.

        A scale counts with its tokens over those of the finest, so that the mean over all tokens is the published sum.
        """
        scale_BK, samples = self.scale_N[z.positions_BK], self.flow.samples_per_token
        times = self.draw_times(len(target_BKC), len(self.groups or ()), target_BKC.device, noise=noise)
        t = times.gather(2, scale_BK[:, None].expand(-1, samples, -1))
        told = self.embed(z.cond_BKD, z.positions_BK)._replace(
            mask=(scale_BK[:, :, None] == scale_BK[:, None])[:, None]
        )
        told = Told(*(x.repeat_interleave(samples, dim=0) for x in told if x is not None))
        loss_BK = self.flow_loss(told, target_BKC[:, None], t, noise=noise)
        return loss_BK * (self.layout.tokens / len(self.layout.by_scale[-1]))

    def embed(self, z_BKD: Tensor, positions_BK: Tensor) -> Told:
        """z and place of every token; all of them see each other."""
        return Told(self.cond_embed(z_BKD), z_BKD, self.places[positions_BK])

    def embed_time(self, t: Tensor) -> Tensor:
        """(...) to (..., width)."""
        return self.time_embed(t.long())

    def velocity(self, x: Tensor, time: Tensor, condition: Told) -> Tensor:
        """(..., K, C) to (..., K, C)."""
        rows = x.flatten(0, -3)
        if time.ndim > 1:
            time = time.flatten(0, -3)
        h = self.input_proj(rows)
        moved = time + condition.embedded
        for block in self.res_blocks:
            if isinstance(block, CrossBlock):
                h = block(h, time, moved, condition)
            else:
                h = block(h, moved, condition.table, condition.mask)
        return self.final_layer(h, F.silu(moved)).view(*x.shape[:-1], -1)

    def times(self, solver: str, steps: int) -> Sequence[float]:
        """Half of the steps from 1 to 0.3, the others from 0.25 to 0; 50 are even. Of an odd number it is one less."""
        if solver == "sde" or steps == EVEN or steps < 2:
            return super().times(solver, steps)
        half = steps // 2
        early = [1.0 - 0.7 * k / max(1, half - 1) for k in range(half)]
        return [*early, *(0.25 * (1.0 - k / half) for k in range(half + 1))]


class CrossBlock(nn.Module):
    """Attention modulated by the time, cross-attention to every token's z, and an MLP modulated by both."""

    def __init__(self, config: FlowARHeadConfig, z_width: int) -> None:
        super().__init__()
        width = config.width
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm3 = flowar.plain_norm(width), flowar.plain_norm(width)
        self.attn = flowar.attention(width, self.heads, bias=False)
        self.norm2_1, self.norm2_2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(z_width, eps=1e-6)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(z_width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.mlp = flowar.gated_mlp(width, config.mlp_ratio)
        self.ada_lin_attn, self.ada_lin_mlp = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, time: Tensor, moved: Tensor, told: Told) -> Tensor:
        """(R, K, width) to (R, K, width)."""
        gate, scale, shift = self.ada_lin_attn(F.silu(time)).chunk(3, dim=-1)
        x = x + gate * self.attn(modulate(self.norm1(x), shift, scale), told.table, told.mask)
        q = self.q(self.norm2_1(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm2_2(told.z_RKD)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        table = told.table[:, None]
        seen = attend(turn(q, table), turn(k, table), v, mask=told.mask)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        gate, scale, shift = self.ada_lin_mlp(F.silu(moved)).chunk(3, dim=-1)
        return x + gate * self.mlp(modulate(self.norm3(x), shift, scale))
