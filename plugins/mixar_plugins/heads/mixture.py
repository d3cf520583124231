"""A mixture of Gaussians over a token's latent, the head of GIVT."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import ge, gt
from torch import Tensor

from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.types import Step, TokenLayout, Z
from mixar_plugins.heads.common import at_once, gumbel, uncond_of
from mixar_plugins.heads.mlp import PlainMLP


@frozen
class MixtureHeadConfig:
    """Sizes of the head.

    Args:
        components: Gaussians of a token, with diagonal covariance (GIVT: 16).
        min_deviation: floor of their deviations, in units of the normalised latents.
        candidates: tokens drawn for each one under guidance, of which one is taken.
        depth, width: residual blocks of its MLP and their width; 0 blocks is one linear map, as in GIVT.
    """

    components: int = field(default=16, validator=ge(1))
    min_deviation: float = field(default=0.01, validator=gt(0.0))
    candidates: int = field(default=32, validator=ge(2))
    depth: int = field(default=6, validator=ge(0))
    width: int = field(default=1024, validator=ge(1))


class Gaussians(NamedTuple):
    """Log-weights (B, K, M) of M components, their means and deviations (B, K, M, C); float32."""

    log_weights: Tensor
    means: Tensor
    deviations: Tensor

    def log_density(self, x_BKSC: Tensor) -> Tensor:
        """Log-density of S tokens at each place, in nats: (B, K, S)."""
        means, deviations = self.means[:, :, None], self.deviations[:, :, None]
        square = ((x_BKSC[..., None, :] - means) / deviations).square()
        log_normal = -(0.5 * square + deviations.log() + 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)
        return torch.logsumexp(self.log_weights[:, :, None] + log_normal, dim=-1)


class MixtureHead(ContinuousHead):
    """Negative log-likelihood of a diagonal Gaussian mixture; a draw takes a component, then a point of it.

    Temperature scales the deviations, not the weights: at 0 a draw is the mean of a component. Guidance is that of
    densities, p(x | z)^cfg p(x | uncond)^(1 - cfg), which GIVT samples by rejection. Here `candidates` tokens are drawn
    from p(x | z) and one is taken by the weight (p(x | z) / p(x | uncond))^(cfg - 1): as many are drawn as said, and
    guidance cannot leave what p(x | z) makes likely. Head steps and solver are refused: there is one step.
    """

    def __init__(self, config: MixtureHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        dim_out = config.components * (1 + 2 * token_dim)
        self.net = PlainMLP(dim_in=width, dim_out=dim_out, width=config.width, depth=config.depth)

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Negative log-likelihood in nats, per number of a token: (B, K), float32."""
        log_density = self.gaussians(z.cond_BKD).log_density(target_BKC.float()[:, :, None])
        return -log_density.squeeze(-1) / self.token_dim

    def check(self, step: Step) -> None:
        """Refuse steps and solvers."""
        at_once("mixture", step)

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Draw the tokens (B, K, C).

        Raises:
            UserError: the step asks for what has no meaning here.
        """
        self.check(step)
        cond, uncond_BKD = self.gaussians(z.cond_BKD), uncond_of(z, step)
        count = 1 if uncond_BKD is None else self.config.candidates
        drawn_BKSC = self.draw(cond, count, step.temperature, noise=noise)
        if uncond_BKD is None:
            return drawn_BKSC.squeeze(2)
        ratio = cond.log_density(drawn_BKSC) - self.gaussians(uncond_BKD).log_density(drawn_BKSC)
        weight = (step.cfg - 1.0) * ratio + gumbel(ratio.shape, ratio.device, noise=noise, name="candidate")
        return take_along(drawn_BKSC, weight.argmax(dim=-1, keepdim=True)).squeeze(2)

    def draw(self, gaussians: Gaussians, count: int, temperature: float, *, noise: Noise) -> Tensor:
        """`count` tokens of each mixture: (B, K, count, C)."""
        batch, tokens, components, channels = gaussians.means.shape
        shape, device = (batch, tokens, count, components), gaussians.means.device
        picked = gumbel(shape, device, noise=noise, name="component") + gaussians.log_weights[:, :, None]
        component_BKS = picked.argmax(dim=-1)
        eps = noise.normal((batch, tokens, count, channels), device, name="head_init")
        means, deviations = (take_along(t, component_BKS) for t in (gaussians.means, gaussians.deviations))
        return means + temperature * deviations * eps

    def gaussians(self, z_BKD: Tensor) -> Gaussians:
        """The mixture of each token."""
        count = self.config.components
        weights, rest = self.net(z_BKD).float().split([count, 2 * count * self.token_dim], dim=-1)
        means, deviations = rest.unflatten(-1, (2, count, self.token_dim)).unbind(-3)
        return Gaussians(weights.log_softmax(dim=-1), means, F.softplus(deviations) + self.config.min_deviation)


def take_along(x_BKMC: Tensor, index_BKS: Tensor) -> Tensor:
    """Of M vectors at each place those at the index: (B, K, S, C)."""
    return x_BKMC.gather(2, index_BKS[..., None].expand(-1, -1, -1, x_BKMC.shape[-1]))
