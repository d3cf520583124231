"""MAR's diffusion head: a small MLP that denoises one token's latent, conditioned on z (MAR, Sec. 3.2 and 4.2)."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, ge, gt, le, optional
from torch import Tensor, nn

from mixar_core.diffusion import TRAIN_STEPS, TrainTables, reverse_step, schedule
from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.precision import full_precision
from mixar_core.types import Step, TokenLayout, Z

FREQUENCIES = 256
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
        clip: bound on the x_0 predicted while sampling, in units of the normalised latents. The schedule's noisiest
            step multiplies an error in the predicted noise by 2e4, which a head trained for minutes does not survive
            without a bound; MAR, trained for weeks, has none (None).
    """

    depth: int = field(default=6, validator=ge(1))
    width: int = field(default=1024, validator=ge(1))
    samples_per_token: int = field(default=4, validator=ge(1))
    sampling_steps: int = field(default=100, validator=and_(ge(2), le(TRAIN_STEPS)))
    clip: float | None = field(default=None, validator=optional(gt(0.0)))


class DiffusionHead(ContinuousHead):
    """Diffusion over a token: cosine schedule, learned variance, respaced sampling."""

    def __init__(self, config: DiffusionHeadConfig, *, token_dim: int, width: int, layout: TokenLayout) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        self.net = DenoisingMLP(token_dim=token_dim, cond_dim=width, width=config.width, depth=config.depth)
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
        out = self.net(xt, self.net.time_embed(t), self.net.cond_embed(z)).float()
        predicted, variance = out.chunk(2, dim=-1)
        mse = ((eps - predicted) ** 2).mean(dim=-1)
        return mse, self.tables.variational_bound(target, xt, t, predicted.detach(), variance)

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Reverse diffusion over `step.head_steps` respaced steps, its noisiest in float32 throughout: (B, K, C)."""
        if step.solver not in (None, "ddpm"):
            raise UserError(f"head diffusion has no solver {step.solver}; allowed: ddpm")
        process = schedule(step.head_steps or self.config.sampling_steps)
        guided = z.uncond_BKD is not None and step.cfg != 1.0
        conditions = [z.cond_BKD] if z.uncond_BKD is None or not guided else [z.cond_BKD, z.uncond_BKD]
        z_BKD, device = torch.cat(conditions), z.cond_BKD.device
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
                out = self.net(x.repeat(2, 1, 1) if guided else x, times[k], cond).float()
            eps, variance = out.chunk(2, dim=-1)
            if guided:
                (eps, uncond), variance = eps.chunk(2), variance.chunk(2)[0]
                eps = uncond + step.cfg * (eps - uncond)
            added = noise.normal(shape, x.device, name="head_step") if k > 0 and step.temperature > 0.0 else None
            x = reverse_step(process, k, x, eps, variance, added, step.temperature, self.config.clip)
        return x


class DenoisingMLP(nn.Module):
    """Residual MLP with adaptive layer norm (MAR, Sec. 4.2); gives the noise and the variance of every number."""

    def __init__(self, *, token_dim: int, cond_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(cond_dim, width)
        self.input_proj = nn.Linear(token_dim, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * token_dim)
        # As MAR: Xavier-uniform; time embedding normal(0.02); modulations and output zero.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for parameter in self.time_embed.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for block in (*self.res_blocks, self.final_layer):
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """(..., C) to (..., 2C): noise first, then variance; `time` and `cond` are embedded already."""
        condition = F.silu(time + cond)
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, condition)
        return self.final_layer(h, condition)


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep through a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(...) to (..., width)."""
        half = FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[..., None].float() * torch.exp(-math.log(10000.0) * steps / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class ResidualBlock(nn.Module):
    """x + gate * mlp(modulated norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        # the activation in front of the modulations is applied once for all blocks, in DenoisingMLP
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(torch.addcmul(shift, self.in_ln(x), 1 + scale))


class FinalLayer(nn.Module):
    """Modulated norm and the output projection."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(torch.addcmul(shift, self.norm_final(x), 1 + scale))
