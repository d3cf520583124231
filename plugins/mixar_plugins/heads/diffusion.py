"""MAR's diffusion head: a small MLP that denoises one token's latent, conditioned on z (MAR, Sec. 3.2 and 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.precision import full_precision
from mixar_core.types import Step, TokenLayout, Z
from mixar_plugins.heads.common import on_device, uncond_of
from mixar_plugins.heads.gaussian_diffusion import TRAIN_STEPS, Schedule, TrainTables
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
        scale: what is drawn is divided by this, and multiplied by it in the end (HART's residuals: 0.6).
    """

    depth: int = field(default=6, validator=ge(1))
    width: int = field(default=1024, validator=ge(1))
    samples_per_token: int = field(default=4, validator=ge(1))
    sampling_steps: int = field(default=100, validator=and_(ge(2), le(TRAIN_STEPS)))
    solver: Literal["ddpm", "disa", "lazymar", "ddim", "dpm++"] = field(default="ddpm", validator=in_(SOLVERS))
    clip: float | None = field(default=None, validator=optional(gt(0.0)))
    scale: float = field(default=1.0, validator=gt(0.0))


class DiffusionHead(ContinuousHead):
    """Diffusion over a token: cosine schedule, learned variance, respaced sampling."""

    graphable = True

    def __init__(self, config: DiffusionHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        self.net = DenoisingMLP(  # the noise and the variance of every number
            token_dim=token_dim, cond_dim=width, dim_out=2 * token_dim, width=config.width, depth=config.depth
        )
        #: the same in bfloat16, where that is held
        self.quick: DenoisingMLP | None = None
        self.tables = TrainTables()

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Mean over `samples_per_token` noise levels of the mse and the variational bound: (B, K), float32."""
        samples = self.config.samples_per_token
        target = target_BKC.float()[:, None].expand(-1, samples, -1, -1)
        t = noise.integers(TRAIN_STEPS, target.shape[:-1], target.device, name="timesteps")
        eps = noise.normal(target.shape, target.device, name="diffusion")
        mse, bound = self.token_losses(z.cond_BKD[:, None], target, t, eps)
        return (mse + bound).mean(dim=1)

    def token_losses(self, z: Tensor, target: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of the predicted noise, and the bound that trains the variance: (...) each.

        Args:
            z: (..., D), or of fewer rows that stand for several; target, eps: (..., C); t: int64 (...) in [0, 1000).
        """
        target = target if self.config.scale == 1.0 else target / self.config.scale
        xt = self.tables.diffuse(target, t, eps)
        out = self.net.denoise(xt, self.time_of(t), self.net.cond_embed(z)).float()
        predicted, variance = out.chunk(2, dim=-1)
        mse = ((eps - predicted) ** 2).mean(dim=-1)
        return mse, self.tables.variational_bound(target, xt, t, predicted.detach(), variance)

    def time_of(self, t: Tensor) -> Tensor:
        """Timesteps (...) embedded; of more than there are, each once: (..., width)."""
        if t.numel() <= TRAIN_STEPS:
            return self.net.time_embed(t)
        table = self.net.time_embed(torch.arange(TRAIN_STEPS, device=t.device))
        return F.embedding(t, table.float()).to(table.dtype)

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

    def hold_bf16(self) -> None:
        """The network in bfloat16 beside that in float32, which the noisiest steps need."""
        self.quick = copy.deepcopy(self.net).to(torch.bfloat16)

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Reverse diffusion over `step.head_steps` respaced steps, its noisiest in float32 throughout: (B, K, C)."""
        self.check(step)
        uncond_BKD, device = uncond_of(z, step), z.cond_BKD.device
        z_BKD = z.cond_BKD if uncond_BKD is None else torch.cat([z.cond_BKD, uncond_BKD])
        name, steps = step.solver or self.config.solver, step.head_steps or self.config.sampling_steps
        process, draws = process_of(name, steps), SOLVERS[name].advance.draws and step.temperature > 0.0
        timesteps, shape = on_device(process.timesteps, device), (*z.cond_BKD.shape[:2], self.token_dim)
        x = noise.normal(shape, device, name="head_init")
        reverse = partial(self._reverse, name, process, step.temperature if draws else 0.0)
        drawn = (noise.normal(shape, device, name="head_step") for _ in process.timesteps[1:] if draws)
        if self.graphs is None:
            return reverse(drawn, x, z_BKD, timesteps, step.cfg)
        drawn_SBKC = torch.stack([*drawn]) if draws and len(process) > 1 else x.new_empty(0)
        scale = torch.full((), step.cfg, device=device)

        def run(x: Tensor, z_BKD: Tensor, timesteps: Tensor, scale: Tensor, drawn_SBKC: Tensor) -> Tensor:
            return reverse(iter(drawn_SBKC), x, z_BKD, timesteps, scale)

        return self.graphs((name, steps, step.temperature), run, x, z_BKD, timesteps, scale, drawn_SBKC)

    def _reverse(
        self,
        name: str,
        process: Schedule,
        temperature: float,
        drawn: Iterator[Tensor],
        x: Tensor,
        z_BKD: Tensor,
        timesteps: Tensor,
        cfg: float | Tensor,
    ) -> Tensor:
        """From noise x (B, K, C) to tokens; `drawn` is taken from where the temperature is above 0.

        `z_BKD` of twice as many images has the half that guidance moves away from below the other.
        """
        how, device = SOLVERS[name], x.device
        solver, denoise = how.advance(process, self.config.clip), how.denoise(len(process), guided=len(z_BKD) > len(x))
        net = self.net if self.quick is None else self.quick
        with nullcontext() if self.quick is None else full_precision(device):
            # a step's time embedding is the same for every row, and a row's condition for every step: computed once
            embedded = exact = net.embedded(timesteps, z_BKD)
            if embedded[1].dtype != torch.float32:
                with full_precision(device):
                    exact = self.net.embedded(timesteps, z_BKD.float())
            for k in reversed(range(len(process))):
                if process.error_gain(k) > MOST_GAIN_IN_BF16:
                    with full_precision(device):
                        eps, uncond, variance = denoise(self.net, k, x, exact[0][k], exact[1])
                else:
                    eps, uncond, variance = denoise(net, k, x, embedded[0][k], embedded[1])
                if uncond is not None:
                    eps = uncond + cfg * (eps - uncond)
                added = next(drawn) if temperature > 0.0 and k > 0 else None
                x = solver(k, x, (eps, variance), added, temperature)
        return x if self.config.scale == 1.0 else x * self.config.scale
