"""MAR's diffusion head: a small MLP that denoises one token's latent, conditioned on z (MAR, Sec. 3.2 and 4.2)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.precision import full_precision
from mixar_core.types import Step, TokenLayout, Z
from mixar_plugins.heads.common import uncond_of
from mixar_plugins.heads.gaussian_diffusion import TRAIN_STEPS, TrainTables
from mixar_plugins.heads.mlp import DenoisingMLP
from mixar_plugins.heads.solvers import SOLVERS, process_of

#: Steps of sampling that multiply errors by more than this are computed in float32: bfloat16's would drown the token.
#: Up to 100 respaced steps have one such step, all 1000 have seven.
MOST_GAIN_IN_BF16 = 100.0


@frozen
class DiffusionHeadConfig:
    """Sizes and sampling of the head.

    Args:
        depth, width: residual blocks and their width (MAR-B/L/H: 6x1024, 8x1280, 12x1536).
        samples_per_token: noise levels drawn for each masked token in a training step (MAR: 4).
        sampling_steps: respaced steps of sampling (MAR: 100); two at least, because one alone leaves the noise there.
        solver: ddpm: MAR's, with noise on the way. disa: the same, without the noisiest 5 %.
            lazymar: the same, most steps reusing part of what earlier ones computed. ddim, dpm++: without noise
            on the way, good in few steps; they take no temperature.
        clip: bound on the x_0 predicted while sampling, in units of the normalised latents. The schedule's noisiest
            step multiplies an error in the predicted noise by 2e4, which a head trained for minutes does not survive
            without a bound; MAR, trained for weeks, has none (None).
    """

    depth: int = field(default=6, validator=ge(1))
    width: int = field(default=1024, validator=ge(1))
    samples_per_token: int = field(default=4, validator=ge(1))
    sampling_steps: int = field(default=100, validator=and_(ge(2), le(TRAIN_STEPS)))
    solver: Literal["ddpm", "disa", "lazymar", "ddim", "dpm++"] = field(default="ddpm", validator=in_(SOLVERS))
    clip: float | None = field(default=None, validator=optional(gt(0.0)))


class DiffusionHead(ContinuousHead):
    """Diffusion over a token: cosine schedule, learned variance, respaced sampling."""

    def __init__(self, config: DiffusionHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        self.net = DenoisingMLP(  # the noise and the variance of every number
            token_dim=token_dim, cond_dim=width, dim_out=2 * token_dim, width=config.width, depth=config.depth
        )
        self.tables = TrainTables()

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Mean over `samples_per_token` noise levels of the mse and the variational bound: (B, K), float32."""
        samples = self.config.samples_per_token
        target = target_BKC.float()[:, None].expand(-1, samples, -1, -1)
        z_BSKD = z.cond_BKD[:, None].expand(-1, samples, -1, -1)
        t = noise.integers(TRAIN_STEPS, target.shape[:-1], target.device, name="timesteps")
        eps = noise.normal(target.shape, target.device, name="diffusion")
        mse, bound = self.token_losses(z_BSKD, target, t, eps)
        return (mse + bound).mean(dim=1)

    def token_losses(self, z: Tensor, target: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of the predicted noise, and the bound that trains the variance: (...) each.

        Args:
            z: (..., D); target, eps: (..., C); t: int64 (...) in [0, 1000).
        """
        xt = self.tables.diffuse(target, t, eps)
        out = self.net.denoise(xt, self.net.time_embed(t), self.net.cond_embed(z)).float()
        predicted, variance = out.chunk(2, dim=-1)
        mse = ((eps - predicted) ** 2).mean(dim=-1)
        return mse, self.tables.variational_bound(target, xt, t, predicted.detach(), variance)

    def check(self, step: Step) -> None:
        """Refuse unknown solvers, a temperature where they draw no noise, and steps that the schedule has not."""
        name = step.solver or self.config.solver
        if name not in SOLVERS:
            raise UserError(f"head diffusion has no solver {name}; allowed: {', '.join(SOLVERS)}")
        if not SOLVERS[name].advance.draws and step.temperature != 1.0:
            raise UserError(
                f"sampling.temperature: {step.temperature:g}; the solver {name} draws no noise that it could scale; "
                "allowed: 1"
            )
        if step.head_steps is not None and not 2 <= step.head_steps <= TRAIN_STEPS:
            raise UserError(f"sampling.head_steps: {step.head_steps}; head diffusion takes 2 to {TRAIN_STEPS}")

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Reverse diffusion over `step.head_steps` respaced steps, its noisiest in float32 throughout: (B, K, C)."""
        self.check(step)
        name, uncond_BKD = step.solver or self.config.solver, uncond_of(z, step)
        process = process_of(name, step.head_steps or self.config.sampling_steps)
        how, guided, device = SOLVERS[name], uncond_BKD is not None, z.cond_BKD.device
        solver, denoise = how.advance(process, self.config.clip), how.denoise(self.net, len(process), guided=guided)
        z_BKD = z.cond_BKD if uncond_BKD is None else torch.cat([z.cond_BKD, uncond_BKD])
        timesteps = torch.tensor(process.timesteps, device=device)
        # a step's time embedding is the same for every row, and a row's condition for every step: computed once
        embedded = exact = self.net.time_embed(timesteps), self.net.cond_embed(z_BKD)
        if embedded[1].dtype != torch.float32:  # under autocast
            with full_precision(device):
                exact = self.net.time_embed(timesteps), self.net.cond_embed(z_BKD.float())
        shape = (*z.cond_BKD.shape[:2], self.token_dim)
        x = noise.normal(shape, device, name="head_init")
        for k in reversed(range(len(process))):
            sensitive = process.error_gain(k) > MOST_GAIN_IN_BF16
            times, cond = exact if sensitive else embedded
            with full_precision(x.device) if sensitive else nullcontext():
                eps, uncond, variance = denoise(k, x, times[k], cond)
            if uncond is not None:
                eps = uncond + step.cfg * (eps - uncond)
            drawn = solver.draws and k > 0 and step.temperature > 0.0
            added = noise.normal(shape, x.device, name="head_step") if drawn else None
            x = solver(k, x, (eps, variance), added, step.temperature)
        return x
