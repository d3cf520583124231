"""The head of a backbone that is its network, too: what it is told is how to denoise a group of tokens (ACDiT)."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.meta import constant
from mixar_core.noise import Noise
from mixar_core.types import Step, TokenLayout, Z
from mixar_plugins.heads.common import uncond_of
from mixar_plugins.heads.gaussian_diffusion import TRAIN_STEPS, Schedule, predicted_x0, tables
from mixar_plugins.heads.solvers import DDIM, DPMSolverPP

SOLVERS = ("dpm++", "ddim")


@frozen
class DenoisingHeadConfig:
    """Sampling, over the linear schedule of DDPM.

    Args:
        sampling_steps: evenly spaced (ACDiT: 25).
        solver: dpm++ of second order, or ddim.
        clip: bound on the x_0 that is predicted, in units of the normalised latents; None: none.
    """

    sampling_steps: int = field(default=25, validator=and_(ge(2), le(TRAIN_STEPS)))
    solver: Literal["dpm++", "ddim"] = field(default="dpm++", validator=in_(SOLVERS))
    clip: float | None = field(default=None, validator=optional(gt(0.0)))


class DenoisingHead(ContinuousHead):
    """DDPM with a network that it is given: it predicts the noise, the groups of an image each at a time of its own.

    Temperature scales the noise that sampling starts from.
    """

    together = True
    denoises: ClassVar[bool] = True
    sqrt_cumprod: Tensor
    sqrt_one_minus_cumprod: Tensor

    def __init__(self, config: DenoisingHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        cumprod = np.cumprod(1.0 - linear_betas()).astype(np.float32)
        self.register_buffer("sqrt_cumprod", _square_root(cumprod), persistent=False)
        self.register_buffer("sqrt_one_minus_cumprod", _square_root(1 - cumprod), persistent=False)

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Mean squared error of the predicted noise: (B, K), float32."""
        assert z.denoise is not None
        (batch, tokens, _), groups, device = target_BKC.shape, z.denoise.groups, target_BKC.device
        t_BG = (noise.uniform((batch, groups), device, name="timesteps") * TRAIN_STEPS).long()
        eps = noise.normal(target_BKC.shape, device, name="diffusion")
        t_BK1 = t_BG.repeat_interleave(tokens // groups, dim=1)[..., None]
        noised = self.sqrt_cumprod[t_BK1] * target_BKC.float() + self.sqrt_one_minus_cumprod[t_BK1] * eps
        return (z.denoise.predict(noised, t_BG).float() - eps).square().mean(dim=-1)

    def check(self, step: Step) -> None:
        """Refuse unknown solvers, and steps that the schedule has not."""
        if step.solver not in (None, *SOLVERS):
            raise UserError(f"head denoising has no solver {step.solver}; allowed: {', '.join(SOLVERS)}")
        if step.head_steps is not None and not 2 <= step.head_steps <= TRAIN_STEPS:
            raise UserError(f"sampling.head_steps: {step.head_steps}; head denoising takes 2 to {TRAIN_STEPS}")

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Solve the equation from noise to the tokens (B, K, C), which the network sees together."""
        self.check(step)
        assert z.denoise is not None
        name, guided = step.solver or self.config.solver, uncond_of(z, step) is not None
        process, device = process_of(name, step.head_steps or self.config.sampling_steps), z.positions_BK.device
        solver = (DPMSolverPP if name == "dpm++" else KeepingDDIM)(process, self.config.clip)
        timesteps = torch.tensor(process.timesteps, device=device)
        x = step.temperature * noise.normal((*z.positions_BK.shape, self.token_dim), device, name="head_init")
        rows = (2 if guided else 1) * len(x)
        for k in reversed(range(len(process))):
            t = timesteps[k].expand(rows, z.denoise.groups)
            eps = z.denoise.predict(x.repeat(2, 1, 1) if guided else x, t).float()
            if guided:
                eps, uncond = eps.chunk(2)
                eps = uncond + step.cfg * (eps - uncond)
            x = solver(k, x, (eps, eps), None, 1.0)
        return x


class KeepingDDIM(DDIM):
    """That of diffusers: where x_0 was clipped, the noise stays what was predicted."""

    def __call__(self, k: int, x: Tensor, out: tuple[Tensor, Tensor], added: Tensor | None, scale: float) -> Tensor:
        """x at step k - 1."""
        before = float(self.process.alphas_cumprod[k - 1]) if k else 1.0
        x0 = predicted_x0(self.process, k, x, out[0], self.clip)
        return before**0.5 * x0 + (1.0 - before) ** 0.5 * out[0]


def linear_betas() -> np.ndarray:
    """DDPM's (arXiv 2006.11239, Sec. 4): float64 (1000,)."""
    return np.linspace(1e-4, 0.02, TRAIN_STEPS)


@constant
def _square_root(of: np.ndarray) -> Tensor:
    """By torch, whose last bits are not numpy's."""
    return torch.tensor(of).sqrt()


@lru_cache(maxsize=64)
def process_of(solver: str, steps: int) -> Schedule:
    """The process over the timesteps that diffusers takes: evenly from the last one down, of ddim from 0 up."""
    if solver == "ddim":
        return tables([k * (TRAIN_STEPS // steps) for k in range(steps)], linear_betas())
    spaced = np.linspace(0, TRAIN_STEPS - 1, steps + 1).round().astype(int)[1:].tolist()
    return tables(sorted({*spaced}), linear_betas())  # of all 1000, two round to one
