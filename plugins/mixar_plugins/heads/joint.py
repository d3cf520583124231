"""A head that draws the tokens of a step together: a small transformer over them, with a flow loss.

Drawn by a head of one token, the tokens of a step are independent given z. Here they see each other, as in FlowAR.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor, nn

from mixar_core.noise import Noise
from mixar_core.tables import Table
from mixar_core.types import TokenLayout, Z
from mixar_plugins.heads.mlp import FinalLayer, xavier, zero
from mixar_plugins.heads.rectified_flow import FlowConfig, RectifiedFlowHead
from mixar_plugins.networks.time import TimeEmbedding


@frozen
class JointHeadConfig(FlowConfig):
    """Sizes of the head, after what every flow has.

    Args:
        depth, width, heads: transformer blocks, their width and attention heads.
        mlp_ratio: of a block's MLP to its width.
    """

    depth: int = field(default=3, validator=ge(1))
    width: int = field(default=512, validator=ge(1))
    heads: int = field(default=8, validator=ge(1))
    mlp_ratio: int = field(default=4, validator=ge(1))

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class TokenCondition(NamedTuple):
    """What the blocks are told: a vector for each token (..., K, width), and who sees whom, bool (..., K, K)."""

    tokens: Tensor
    together: Tensor | None = None


class JointHead(RectifiedFlowHead):
    """A flow over all tokens of a step. Another order of the tokens gives the same draws in that order.

    Sampling finds few tokens or many in a step. So in training the masked tokens of an image are dealt out at random
    into groups that do not see each other; their number is log-uniform from 1 to K.
    """

    together = True

    def __init__(self, config: JointHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config = self.flow = config
        self.token_dim = token_dim
        self.time_embed = TimeEmbedding(config.width)
        self.cond_embed = nn.Linear(width, config.width)
        self.layout = layout
        self.positions = nn.Embedding(layout.tokens, config.width)
        self.input_proj = nn.Linear(token_dim, config.width)
        self.blocks = nn.ModuleList(
            JointBlock(config.width, config.heads, config.mlp_ratio * config.width) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(config.width, token_dim)
        xavier(self)
        self.time_embed.reset_parameters()
        nn.init.normal_(self.positions.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, JointBlock):
                zero(module.modulation)
        self.final_layer.reset_parameters()

    def learned_tables(self) -> dict[str, Table]:
        """Of positions."""
        return {"positions.weight": Table(self.layout)}

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Mean squared error of the velocity, all tokens of an image at the same times: (B, K), float32."""
        batch, tokens, _ = target_BKC.shape
        groups = int((tokens + 1) ** noise.scalar(name="groups"))
        group_BK = noise.uniform((batch, tokens), target_BKC.device, name="deal").argsort(dim=1) % groups
        together_BKK = group_BK[:, :, None] == group_BK[:, None, :]
        t = self.draw_times(batch, 1, target_BKC.device, noise=noise)
        condition = self.embed(z.cond_BKD, z.positions_BK)
        condition = TokenCondition(condition.tokens[:, None], together_BKK[:, None])
        return self.flow_loss(condition, target_BKC[:, None], t, noise=noise)

    def embed(self, z_BKD: Tensor, positions_BK: Tensor) -> TokenCondition:
        """z and place of every token; all of them see each other."""
        return TokenCondition(self.cond_embed(z_BKD) + self.positions(positions_BK))

    def embed_time(self, t: Tensor) -> Tensor:
        """(...) to (..., width)."""
        return self.time_embed(t)

    def velocity(self, x: Tensor, time: Tensor, condition: TokenCondition) -> Tensor:
        """(..., K, C) to (..., K, C)."""
        modulator = F.silu(time + condition.tokens)
        h = self.input_proj(x)
        for block in self.blocks:
            h = block(h, modulator, condition.together)
        return self.final_layer(h, modulator)


class JointBlock(nn.Module):
    """Attention among the tokens and an MLP, both modulated for each token (DiT's adaLN-Zero block)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, modulator: Tensor, together: Tensor | None) -> Tensor:
        """(..., K, width) to (..., K, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(modulator).chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, together)
        return x + gate2 * self.fc2(F.gelu(self.fc1(self.norm2(x) * (1 + scale2) + shift2)))

    def attention(self, x: Tensor, together: Tensor | None) -> Tensor:
        """(..., K, width) to (..., K, width); a token attends to itself and to those it is together with."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2).unbind(0)
        mask = None if together is None else together.unsqueeze(-3)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-3, -2).flatten(-2))
