"""Cross-entropy over quantised latents: what MAR's diffusion loss was compared with (MAR, Table 1)."""

from __future__ import annotations

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
class CategoricalHeadConfig:
    """Sizes of the head.

    Args:
        bins, bound: each number of the normalised latents lies in one of so many even bins of [-bound, bound]; what
            lies outside counts as in the outermost.
        depth, width: residual blocks of its MLP and their width; 0 blocks is one linear map.
    """

    bins: int = field(default=64, validator=ge(2))
    bound: float = field(default=4.0, validator=gt(0.0))
    depth: int = field(default=6, validator=ge(0))
    width: int = field(default=1024, validator=ge(1))


class CategoricalHead(ContinuousHead):
    """A categorical distribution over the bins of every number; what is drawn is the middle of a bin.

    MAR's comparison quantises a whole token by a learned codebook, which is a tokenizer's to learn. Here every number
    is quantised for itself, finely, so that little is lost by quantising, but the numbers of a token are independent
    given z. Guidance is that of discrete models: log-probabilities uncond + cfg (cond - uncond). Temperature divides
    them, and 0 takes the likeliest bin. Head steps and solver are refused: there is one step.
    """

    def __init__(self, config: CategoricalHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        self.net = PlainMLP(dim_in=width, dim_out=token_dim * config.bins, width=config.width, depth=config.depth)

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Cross-entropy in nats, mean over the numbers of a token: (B, K), float32."""
        log_probs = self.log_probs(z.cond_BKD)
        return -log_probs.gather(-1, self.quantize(target_BKC)[..., None]).squeeze(-1).mean(dim=-1)

    def check(self, step: Step) -> None:
        """Refuse steps and solvers."""
        at_once("categorical", step)

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Draw a bin for every number: its middle, (B, K, C).

        Raises:
            UserError: the step asks for what has no meaning here.
        """
        self.check(step)
        log_probs, uncond_BKD = self.log_probs(z.cond_BKD), uncond_of(z, step)
        if uncond_BKD is not None:
            uncond = self.log_probs(uncond_BKD)
            log_probs = uncond + step.cfg * (log_probs - uncond)
        if step.temperature > 0.0:
            drawn = gumbel(log_probs.shape, log_probs.device, noise=noise, name="bins")
            log_probs = log_probs / step.temperature + drawn
        return self.middle(log_probs.argmax(dim=-1))

    def log_probs(self, z: Tensor) -> Tensor:
        """Log-probability of every bin: (..., C, bins), float32."""
        return F.log_softmax(self.net(z).float().unflatten(-1, (self.token_dim, self.config.bins)), dim=-1)

    def quantize(self, x: Tensor) -> Tensor:
        """The bin of each number, int64."""
        share = (x.float() + self.config.bound) / (2.0 * self.config.bound)
        return (share * self.config.bins).long().clamp(0, self.config.bins - 1)

    def middle(self, bins: Tensor) -> Tensor:
        """The number in the middle of each bin, float32."""
        return ((bins.float() + 0.5) / self.config.bins * 2.0 - 1.0) * self.config.bound
