"""A rectified flow over one token's latent, as NextStep-1 and SphereAR have it on top of their transformers."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from mixar_core.noise import Noise
from mixar_core.types import TokenLayout, Z
from mixar_plugins.heads.mlp import DenoisingMLP
from mixar_plugins.heads.rectified_flow import FlowConfig, RectifiedFlowHead


@frozen
class FlowHeadConfig(FlowConfig):
    """Sizes of the head, after what every flow has.

    Args:
        depth, width: residual blocks and their width, as of the head `diffusion`.
    """

    depth: int = field(default=6, validator=ge(1))
    width: int = field(default=1024, validator=ge(1))


class FlowHead(RectifiedFlowHead):
    """The MLP of the head `diffusion`, giving a velocity; each token is drawn for itself."""

    def __init__(self, config: FlowHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config = self.flow = config
        self.token_dim = token_dim
        self.net = DenoisingMLP(
            token_dim=token_dim, cond_dim=width, dim_out=token_dim, width=config.width, depth=config.depth
        )

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Mean squared error of the velocity, each token at times of its own: (B, K), float32."""
        batch, tokens, _ = target_BKC.shape
        t = self.draw_times(batch, tokens, target_BKC.device, noise=noise)
        condition = self.embed(z.cond_BKD, z.positions_BK)[:, None]
        return self.flow_loss(condition, target_BKC[:, None], t, noise=noise)

    def embed(self, z_BKD: Tensor, positions_BK: Tensor) -> Tensor:
        """(B, K, width)."""
        return self.net.cond_embed(z_BKD)

    def embed_time(self, t: Tensor) -> Tensor:
        """(...) to (..., width)."""
        return self.net.time_embed(t)

    def velocity(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.net.denoise(x, time, condition)
