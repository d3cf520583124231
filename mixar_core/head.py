"""Continuous heads: the distribution of one token's latent, given the backbone's vector z for it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mixar_core.noise import Noise


class ContinuousHead(nn.Module, ABC):
    """p(x | z) of one token: x of length `token_dim` (C * patch_size^2), z of length D.

    Registered as a Part, a head is built as `Class(config, token_dim=..., width=D)`.
    """

    token_dim: int

    @abstractmethod
    def loss(self, z_BKD: Tensor, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Loss of each token (B, K), in float32 whatever the autocast. B counts images (rows of `noise`)."""

    @abstractmethod
    def sample(
        self,
        z_RD: Tensor,
        *,
        z_uncond_RD: Tensor | None = None,
        cfg: float = 1.0,
        temperature: float = 1.0,
        steps: int | None = None,
        noise: Noise,
    ) -> Tensor:
        """Draw tokens (R, C).

        Args:
            z_uncond_RD: what classifier-free guidance moves away from; None means no guidance.
            cfg: guidance scale, 1 means none.
            temperature: scale of the noise added on the way, 0 to 1 and above.
            steps: sampling steps; None is what the config says.
        """
