"""The lower bound of heads: a token's mean, and no distribution about it."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.types import Step, TokenLayout, Z
from mixar_plugins.heads.common import at_once, uncond_of
from mixar_plugins.heads.mlp import PlainMLP


@frozen
class MseHeadConfig:
    """Sizes of the head.

    Args:
        depth, width: residual blocks of its MLP and their width; 0 blocks is one linear map.
    """

    depth: int = field(default=6, validator=ge(0))
    width: int = field(default=1024, validator=ge(1))


class MseHead(ContinuousHead):
    """Predicts the mean. It draws nothing, so head steps, a solver, and a temperature other than 0 or 1 are refused.

    Guidance moves the mean: uncond + cfg (cond - uncond), as it moves the noise that `diffusion` predicts.
    """

    deterministic = True

    def __init__(self, config: MseHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        self.net = PlainMLP(dim_in=width, dim_out=token_dim, width=config.width, depth=config.depth)

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Mean squared error over the numbers of a token: (B, K), float32."""
        return (self.net(z.cond_BKD).float() - target_BKC.float()).square().mean(dim=-1)

    def check(self, step: Step) -> None:
        """Refuse steps, solvers, and temperatures other than 0 and 1."""
        at_once("mse", step)
        if step.temperature not in (0.0, 1.0):
            raise UserError(f"sampling.temperature: {step.temperature}; head mse has no noise to scale; allowed: 0, 1")

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """The means (B, K, C).

        Raises:
            UserError: the step asks for what has no meaning here.
        """
        self.check(step)
        mean, uncond_BKD = self.net(z.cond_BKD).float(), uncond_of(z, step)
        if uncond_BKD is None:
            return mean
        uncond = self.net(uncond_BKD).float()
        return uncond + step.cfg * (mean - uncond)
