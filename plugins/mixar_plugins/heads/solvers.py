"""How the diffusion head goes from noise to a token: at which timesteps the network is called, and what follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from attrs import frozen
from torch import Tensor

from mixar_plugins.heads.denoisers import Denoiser, LazyDenoiser
from mixar_plugins.heads.gaussian_diffusion import (
    TRAIN_STEPS,
    Schedule,
    cosine_betas,
    predicted_x0,
    respaced_timesteps,
    reverse_step,
    tables,
)

#: The cosine schedule is singular at its end: an error in the noise predicted there is multiplied by 2e4. DiSA, and
#: solvers of the deterministic equation, begin below it.
DISA_LAST, DDIM_LAST, DPM_LAST = 950, 980, 950


class Ancestral:
    """DDPM's reverse process with the learned variance: MAR's sampler."""

    #: whether it draws noise on the way, which a temperature scales
    draws = True

    def __init__(self, process: Schedule, clip: float | None) -> None:
        self.process, self.clip = process, clip

    def __call__(self, k: int, x: Tensor, out: tuple[Tensor, Tensor], added: Tensor | None, scale: float) -> Tensor:
        """x at step k - 1, of x at step k and the predicted noise and variance; `added` noise is scaled by `scale`."""
        return reverse_step(self.process, k, x, *out, added, scale, self.clip)


class DDIM(Ancestral):
    """Denoising diffusion implicit models without noise, eta = 0 (arXiv 2010.02502, Eq. 12)."""

    draws = False

    def __call__(self, k: int, x: Tensor, out: tuple[Tensor, Tensor], added: Tensor | None, scale: float) -> Tensor:
        """x at step k - 1."""
        s = self.process
        x0 = predicted_x0(s, k, x, out[0], self.clip)
        before = float(s.alphas_cumprod[k - 1]) if k else 1.0
        # the noise that x0 stands for, which is the predicted one where nothing was clipped
        eps = (x - math.sqrt(s.alphas_cumprod[k]) * x0) / math.sqrt(1.0 - s.alphas_cumprod[k])
        return math.sqrt(before) * x0 + math.sqrt(1.0 - before) * eps


class DPMSolverPP(Ancestral):
    """DPM-Solver++(2M): second order by the step before, of the predicted x_0 (arXiv 2211.01095, Algorithm 2)."""

    draws = False

    def __init__(self, process: Schedule, clip: float | None) -> None:
        super().__init__(process, clip)
        self.before: tuple[float, Tensor] | None = None

    def __call__(self, k: int, x: Tensor, out: tuple[Tensor, Tensor], added: Tensor | None, scale: float) -> Tensor:
        """x at step k - 1; the last step, whose h is infinite, gives x_0."""
        s = self.process
        x0 = predicted_x0(s, k, x, out[0], self.clip)
        if k == 0:
            return x0
        now, then = s.log_snr(k), s.log_snr(k - 1)
        h, data = then - now, x0
        if self.before is not None:
            ratio = (now - self.before[0]) / h
            data = (1.0 + 0.5 / ratio) * x0 - 0.5 / ratio * self.before[1]
        self.before = now, x0
        sigma = math.sqrt(1.0 - s.alphas_cumprod[k - 1]), math.sqrt(1.0 - s.alphas_cumprod[k])
        return sigma[0] / sigma[1] * x - math.sqrt(s.alphas_cumprod[k - 1]) * math.expm1(-h) * data


def folded(steps: int) -> list[int]:
    """DiSA's (its released code): MAR's spacing, all from 950 on folded into one, so that there may be fewer."""
    return sorted({min(t, DISA_LAST) for t in respaced_timesteps(steps)})


def strided(steps: int) -> list[int]:
    """DDIM's: every n-th of as many of the 1000 as give exactly `steps`; those from 980 on are one."""
    for total in range(TRAIN_STEPS, 0, -1):
        for stride in range(1, total + 1):
            if (count := len(range(0, total, stride))) <= steps:
                if count == steps:
                    return sorted({min(t, DDIM_LAST) for t in range(0, total, stride)})
                break
    raise AssertionError("a stride of 1 over `steps` gives them")


def even_in_log_snr(steps: int) -> list[int]:
    """DPM-Solver's: even in the logarithm of signal over noise from 950 to 0; steps that round to one are one."""
    alpha_bar = np.cumprod(1.0 - cosine_betas())
    log_snr = 0.5 * np.log(alpha_bar / (1.0 - alpha_bar))
    wanted = np.linspace(log_snr[DPM_LAST], log_snr[0], steps)
    return sorted({int(np.abs(log_snr - value).argmin()) for value in wanted})


@frozen
class Solver:
    """A way of sampling.

    Args:
        advance: what follows of the predicted noise. timesteps: of a number of steps, ascending; there may be fewer.
        denoise: how the network is asked for it.
    """

    advance: type[Ancestral]
    timesteps: Callable[[int], list[int]]
    denoise: type[Denoiser] = Denoiser


SOLVERS = {
    "ddpm": Solver(Ancestral, respaced_timesteps),
    "disa": Solver(Ancestral, folded),
    "lazymar": Solver(Ancestral, respaced_timesteps, LazyDenoiser),
    "ddim": Solver(DDIM, strided),
    "dpm++": Solver(DPMSolverPP, even_in_log_snr),
}


@lru_cache(maxsize=256)
def process_of(solver: str, steps: int) -> Schedule:
    """The process over the timesteps that this solver takes for so many steps."""
    return tables(SOLVERS[solver].timesteps(steps))
