"""EAR's head: a network of noise and z whose draws are scored by the energy score; one step draws a token (EAR)."""

from __future__ import annotations

import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt
from torch import Tensor, nn

from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.types import Step, TokenLayout, Z
from mixar_plugins.heads.common import at_once, uncond_of
from mixar_plugins.heads.mlp import ModulatedMLP


@frozen
class EnergyHeadConfig:
    """Sizes and score of the head.

    Args:
        depth, width: residual blocks and their width (EAR-B/L/H: 6x1024, 8x1280, 12x1536).
        noise_channels: numbers of noise that a draw is made from.
        samples_per_token: pairs of draws scored for each token in a training step.
        alpha: power of the distances; the score is proper in (0, 2), and trained from 1 on, where gradients are finite.
        train_temperature: weight of the distance between the two draws; below 1 the head learns to draw closer to
            the middle.
    """

    depth: int = field(default=6, validator=ge(1))
    width: int = field(default=1024, validator=ge(1))
    noise_channels: int = field(default=64, validator=ge(1))
    samples_per_token: int = field(default=4, validator=ge(1))
    alpha: float = field(default=1.0, validator=and_(ge(1.0), lt(2.0)))
    train_temperature: float = field(default=1.0, validator=gt(0.0))


class EnergyHead(ContinuousHead):
    """Two draws close to the token and far from each other: the energy score, proper without a likelihood.

    Temperature scales the shifts of the residual blocks, by which most of the noise comes in; at 0 a draw still is
    random. Guidance moves z itself: cfg z + (1 - cfg) uncond. Head steps and solver are refused: there is one step.
    """

    def __init__(self, config: EnergyHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        self.net = NoiseMLP(config, dim_in=width, dim_out=token_dim)

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Energy score, mean over `samples_per_token` pairs of draws: (B, K), float32; negative where it is good."""
        batch, tokens, _ = target_BKC.shape
        shape = (batch, 2, self.config.samples_per_token, tokens, self.config.noise_channels)
        first, second = noise.uniform(shape, target_BKC.device, name="head_uniform").unbind(dim=1)
        z_BSKD = z.cond_BKD[:, None].expand(-1, self.config.samples_per_token, -1, -1)
        return self.energy(target_BKC[:, None], self.draw(z_BSKD, first), self.draw(z_BSKD, second)).mean(dim=1)

    def energy(self, target: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """|first - x|^a + |second - x|^a - T |first - second|^a of tokens (..., C): (...)."""
        c = self.config

        def distance(a: Tensor, b: Tensor) -> Tensor:
            return (a.float() - b.float()).norm(dim=-1) ** c.alpha

        return distance(first, target) + distance(second, target) - c.train_temperature * distance(first, second)

    def check(self, step: Step) -> None:
        """Refuse steps and solvers."""
        at_once("energy", step)

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Draw the tokens (B, K, C), each by one pass of the network.

        Raises:
            UserError: the step asks for what has no meaning here.
        """
        self.check(step)
        z_BKD, uncond_BKD = z.cond_BKD, uncond_of(z, step)
        if uncond_BKD is not None:
            z_BKD = step.cfg * z_BKD + (1.0 - step.cfg) * uncond_BKD
        shape = (*z_BKD.shape[:2], self.config.noise_channels)
        return self.draw(z_BKD, noise.uniform(shape, z_BKD.device, name="head_uniform"), step.temperature)

    def draw(self, z: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """Tokens (..., C) made of z (..., D) and numbers in [0, 1) (..., noise_channels)."""
        return self.net(z, F.silu(self.net.noise_embed(uniform - 0.5)), temperature).float()


class NoiseMLP(ModulatedMLP):
    """The MLP of the head `diffusion` turned about: z runs through it, and noise modulates it."""

    noise_embed: nn.Linear

    def __init__(self, config: EnergyHeadConfig, *, dim_in: int, dim_out: int) -> None:
        embedding = {"noise_embed": nn.Linear(config.noise_channels, config.width)}
        super().__init__(embedding, dim_in=dim_in, dim_out=dim_out, width=config.width, depth=config.depth)
