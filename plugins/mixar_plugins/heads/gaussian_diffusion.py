"""Gaussian diffusion over a token: cosine schedule, learned-range variance, respacing (Improved DDPM, Sec. 3).

Tables are computed in float64 and used in float32. MAR's diffusion loss (its Eq. 1, 2) is this with 1000 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

#: Diffusion steps of training, in all published models.
TRAIN_STEPS = 1000


def cosine_betas(steps: int = TRAIN_STEPS) -> np.ndarray:
    """Betas of the cosine schedule (Improved DDPM, Eq. 17), capped at 0.999: float64 (steps,)."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)])


def respaced_timesteps(steps: int, train_steps: int = TRAIN_STEPS) -> list[int]:
    """`steps` of the `train_steps` timesteps, evenly strided from the first to the last, ascending.

    Raises:
        ValueError: not 1 <= steps <= train_steps.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"{steps} sampling steps; allowed: 1 to {train_steps}")
    stride = (train_steps - 1) / (steps - 1) if steps > 1 else 1.0
    # the stride is accumulated, not multiplied: rounding then agrees with the published code
    position, chosen = 0.0, []
    for _ in range(steps):
        chosen.append(round(position))
        position += stride
    return chosen


@frozen(eq=False)
class Schedule:
    """The tables of one (possibly respaced) diffusion process, float64 arrays over its steps.

    `timesteps` are what the network is told; the others are q(x_t | x_0) and the posterior q(x_{t-1} | x_t, x_0).
    """

    timesteps: np.ndarray
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    posterior_mean_x0: np.ndarray
    posterior_mean_xt: np.ndarray
    posterior_log_variance: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def error_gain(self, k: int) -> float:
        """What an error in x_t is multiplied by in the x_0 predicted at step k, 1 / sqrt(alpha_bar): up to 2e4."""
        return 1.0 / math.sqrt(self.alphas_cumprod[k])

    def log_snr(self, k: int) -> float:
        """log(alpha / sigma) of step k, the variable in which DPM-Solver goes."""
        return 0.5 * math.log(self.alphas_cumprod[k] / (1.0 - self.alphas_cumprod[k]))


@lru_cache(maxsize=64)
def schedule(steps: int = TRAIN_STEPS) -> Schedule:
    """The process over `steps` respaced steps of the cosine schedule."""
    return tables(respaced_timesteps(steps))


def tables(timesteps: Sequence[int], betas: np.ndarray | None = None) -> Schedule:
    """The process over these timesteps, ascending, of the schedule of these betas; None: the cosine schedule."""
    chosen = np.array(timesteps)
    full = np.cumprod(1.0 - (cosine_betas() if betas is None else betas))
    betas = 1.0 - full[chosen] / np.append(1.0, full[chosen][:-1])
    cumprod = np.cumprod(1.0 - betas)
    before = np.append(1.0, cumprod[:-1])
    variance = betas * (1.0 - before) / (1.0 - cumprod)
    # the first step's posterior variance is 0; its log takes the second's (one step alone: the beta's)
    variance[0] = variance[1] if len(variance) > 1 else betas[0]
    return Schedule(
        timesteps=chosen,
        betas=betas,
        alphas_cumprod=cumprod,
        posterior_mean_x0=betas * np.sqrt(before) / (1.0 - cumprod),
        posterior_mean_xt=(1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - cumprod),
        posterior_log_variance=np.log(variance),
    )


class TrainTables(torch.nn.Module):
    """The training process's tables as float32 buffers (not saved), to be looked up by timestep."""

    sqrt_cumprod: Tensor
    sqrt_one_minus_cumprod: Tensor
    posterior_mean_x0: Tensor
    posterior_mean_xt: Tensor
    min_log_variance: Tensor
    max_log_variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        s = schedule()
        for name, table in {
            "sqrt_cumprod": np.sqrt(s.alphas_cumprod),
            "sqrt_one_minus_cumprod": np.sqrt(1.0 - s.alphas_cumprod),
            "posterior_mean_x0": s.posterior_mean_x0,
            "posterior_mean_xt": s.posterior_mean_xt,
            "min_log_variance": s.posterior_log_variance,
            "max_log_variance": np.log(s.betas),
        }.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of x_0 (..., C) at timesteps t (...)."""
        return self.sqrt_cumprod[t][..., None] * x0 + self.sqrt_one_minus_cumprod[t][..., None] * noise

    def variational_bound(self, x0: Tensor, xt: Tensor, t: Tensor, eps: Tensor, variance: Tensor) -> Tensor:
        """The bound's term at t in bits per number, (...): trains the variance only, so pass `eps` detached.

        KL between the posterior and the prediction; at t = 0 the likelihood of x_0 in bins of 1/127.5.
        """
        scale, root = self.sqrt_cumprod[t][..., None], self.sqrt_one_minus_cumprod[t][..., None]
        from_x0, from_xt = self.posterior_mean_x0[t][..., None], self.posterior_mean_xt[t][..., None]
        low, high = self.min_log_variance[t][..., None], self.max_log_variance[t][..., None]

        predicted_x0 = (xt - root * eps) / scale
        mean = from_x0 * predicted_x0 + from_xt * xt
        log_variance = _between(variance, low, high)
        true_mean = from_x0 * x0 + from_xt * xt
        kl = 0.5 * (
            -1.0
            + log_variance
            - low
            + torch.exp(low - log_variance)
            + (true_mean - mean) ** 2 * torch.exp(-log_variance)
        )
        nll = -_binned_log_likelihood(x0, mean, 0.5 * log_variance)
        return torch.where(t == 0, nll.mean(-1), kl.mean(-1)) / math.log(2.0)


def reverse_step(
    s: Schedule,
    k: int,
    xt: Tensor,
    eps: Tensor,
    variance: Tensor,
    noise: Tensor | None,
    temperature: float,
    clip: float | None = None,
) -> Tensor:
    """One step back, from step k of the schedule to k - 1; at k = 0, or with `noise` None, the mean itself.

    `clip` bounds the predicted x_0 (None: unbounded, as MAR).
    """
    mean = float(s.posterior_mean_x0[k]) * predicted_x0(s, k, xt, eps, clip) + float(s.posterior_mean_xt[k]) * xt
    if k == 0 or noise is None:
        return mean
    log_variance = _between(variance, float(s.posterior_log_variance[k]), math.log(s.betas[k]))
    return mean + torch.exp(0.5 * log_variance) * noise * temperature


def predicted_x0(s: Schedule, k: int, xt: Tensor, eps: Tensor, clip: float | None = None) -> Tensor:
    """x_0 as the noise predicted at step k has it, within `clip`."""
    cumprod = float(s.alphas_cumprod[k])
    x0 = math.sqrt(1.0 / cumprod) * xt - math.sqrt(1.0 / cumprod - 1.0) * eps
    return x0 if clip is None else x0.clamp(-clip, clip)


def _between(variance: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Learned-range variance (Improved DDPM, Eq. 15): -1 is `low`, 1 is `high`, in the log domain."""
    share = (variance + 1.0) / 2.0
    return share * high + (1.0 - share) * low


def _binned_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-likelihood in nats of x in bins of 1/127.5 under a Gaussian, with DDPM's tanh approximation of its CDF."""

    def cdf(v: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * v**3)))

    inverse = torch.exp(-log_scale)
    above, below = cdf(inverse * (x - mean + 1.0 / 255.0)), cdf(inverse * (x - mean - 1.0 / 255.0))
    inner = torch.log((above - below).clamp(min=1e-12))
    left, right = torch.log(above.clamp(min=1e-12)), torch.log((1.0 - below).clamp(min=1e-12))
    return torch.where(x < -0.999, left, torch.where(x > 0.999, right, inner))
