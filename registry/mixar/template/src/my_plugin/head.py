"""A continuous head: what a token is, given the backbone's vector z for it."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge
from mixar_core import ContinuousHead, Noise, Step, TokenLayout, UserError, Z
from torch import Tensor, nn


@frozen
class MyPluginHeadConfig:
    """Sizes of the head.

    Args:
        width: of the hidden layer.
    """

    width: int = field(default=64, validator=ge(1))


class MyPluginHead(ContinuousHead):
    """A Gaussian for every token; guidance moves its mean, the temperature scales its deviation."""

    def __init__(self, config: MyPluginHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.token_dim = token_dim
        self.net = nn.Sequential(nn.Linear(width, config.width), nn.SiLU(), nn.Linear(config.width, 2 * token_dim))

    def gaussian(self, z_BKD: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-deviations (B, K, C), float32."""
        mean_BKC, log_std_BKC = self.net(z_BKD).float().chunk(2, dim=-1)
        return mean_BKC, log_std_BKC.clamp(-5.0, 2.0)

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Negative log-likelihood (B, K), in nats per number of a token, but for a constant."""
        mean_BKC, log_std_BKC = self.gaussian(z.cond_BKD)
        return (0.5 * ((target_BKC - mean_BKC) / log_std_BKC.exp()).square() + log_std_BKC).mean(dim=-1)

    def check(self, step: Step) -> None:
        """There is one step, and no solver."""
        if step.head_steps is not None or step.solver is not None:
            raise UserError("head my-plugin draws in one step: it has no head_steps and no solver")

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Tokens (B, K, C)."""
        self.check(step)
        mean_BKC, log_std_BKC = self.gaussian(z.cond_BKD)
        if z.uncond_BKD is not None and step.cfg != 1.0:
            uncond_BKC, _ = self.gaussian(z.uncond_BKD)
            mean_BKC = uncond_BKC + step.cfg * (mean_BKC - uncond_BKC)
        return mean_BKC + step.temperature * log_std_BKC.exp() * noise.normal(mean_BKC.shape, mean_BKC.device)
