"""Rectified flow, for one token or for several together: its loss, and the solvers of its equation.

Time runs as in FlowAR: x_t = (1 - t) x + t noise, the velocity noise - x; sampling goes from t = 1 to t = 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from attrs import field, frozen
from attrs.validators import ge, in_
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.types import Step, Z
from mixar_plugins.heads.common import on_device, uncond_of

SOLVERS = ("euler", "heun", "sde")
#: where the stochastic solver's last step, one without noise, begins (SiT, arXiv 2401.08740)
SDE_LAST = 0.04
#: times in [0, 1] are embedded like the timesteps of a diffusion
TIME_SCALE = 1000.0


@frozen
class FlowConfig:
    """Training and sampling of a flow.

    Args:
        samples_per_token: times drawn for each token in a training step.
        time: uniform in [0, 1], or logit-normal: the sigmoid of a standard normal, which dwells on the middle.
        sampling_steps: even steps from noise to data.
        solver: euler: the network once a step. heun: twice a step, of second order. sde: once, with noise on the way
            (Euler-Maruyama, of diffusion 2 t).
    """

    samples_per_token: int = field(default=4, validator=ge(1))
    time: Literal["uniform", "logit-normal"] = field(default="uniform", validator=in_(("uniform", "logit-normal")))
    sampling_steps: int = field(default=25, validator=ge(1))
    solver: Literal["euler", "heun", "sde"] = field(default="euler", validator=in_(SOLVERS))


class RectifiedFlowHead(ContinuousHead):
    """A head that draws by a flow. Temperature scales all noise; guidance moves every velocity up to `cfg_until`."""

    flow: FlowConfig
    cfg_until: float = 1.0
    """The latest time (1: noise, 0: data) that guidance is asked for; before, the conditional half goes alone."""

    @abstractmethod
    def embed(self, z_BKD: Tensor, positions_BK: Tensor) -> Any:
        """What `velocity` needs to know of the tokens, whatever the time."""

    @abstractmethod
    def embed_time(self, t: Tensor) -> Tensor:
        """Times (...) in [0, TIME_SCALE] to (..., width)."""

    @abstractmethod
    def velocity(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """(..., K, C) of x_t (..., K, C), its embedded time and the condition."""

    def flow_loss(self, condition: Any, target: Tensor, t: Tensor, *, noise: Noise) -> Tensor:
        """Mean squared error of the velocity, over the numbers of a token and over S times: (B, K), float32.

        Args:
            target: (B, 1, K, C). t: (B, S, K), or (B, S, 1) where an image's tokens share their times.
        """
        batch, _, tokens, channels = target.shape
        eps = noise.normal((batch, t.shape[1], tokens, channels), target.device, name="flow")
        x0, t_ = target.float(), t[..., None]
        predicted = self.velocity((1.0 - t_) * x0 + t_ * eps, self.embed_time(TIME_SCALE * t), condition).float()
        return (predicted - (eps - x0)).square().mean(dim=(1, 3))

    def draw_times(self, batch: int, tokens: int, device: torch.device, *, noise: Noise) -> Tensor:
        """Times (B, S, tokens) in [0, 1]."""
        shape = (batch, self.flow.samples_per_token, tokens)
        if self.flow.time == "uniform":
            return noise.uniform(shape, device, name="times")
        return noise.normal(shape, device, name="times").sigmoid()

    def times(self, solver: str, steps: int) -> Sequence[float]:
        """From 1 to 0, one more than there are steps."""
        if solver == "sde":
            return [*(1.0 - (1.0 - SDE_LAST) * k / max(1, steps - 1) for k in range(steps)), 0.0]
        return [1.0 - k / steps for k in range(steps + 1)]

    def check(self, step: Step) -> None:
        """Refuse solvers that are not known."""
        if step.solver not in (None, *SOLVERS):
            raise UserError(f"a flow has no solver {step.solver}; allowed: {', '.join(SOLVERS)}")

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Solve the equation from noise to the tokens (B, K, C) in `step.head_steps` steps.

        Raises:
            UserError: `step.solver` is unknown.
        """
        self.check(step)
        solver, steps = step.solver or self.flow.solver, step.head_steps or self.flow.sampling_steps
        uncond_BKD, device = uncond_of(z, step), z.cond_BKD.device
        copies = 1 if uncond_BKD is None else 2
        z_BKD = z.cond_BKD if uncond_BKD is None else torch.cat([z.cond_BKD, uncond_BKD])
        condition = self.embed(z_BKD, z.positions_BK.repeat(copies, 1))
        alone = self.embed(z.cond_BKD, z.positions_BK) if copies == 2 and self.cfg_until < 1.0 else condition
        times = self.times(solver, steps)
        embedded = self.embed_time(TIME_SCALE * on_device(times, device))

        def velocity(x: Tensor, k: int) -> Tensor:
            if copies == 1 or times[k] > self.cfg_until:
                return self.velocity(x, embedded[k], alone).float()
            out = self.velocity(x.repeat(copies, 1, 1), embedded[k], condition).float()
            cond, uncond = out.chunk(2)
            return uncond + step.cfg * (cond - uncond)

        shape = (*z.cond_BKD.shape[:2], self.token_dim)
        x = step.temperature * noise.normal(shape, device, name="head_init")
        for k, (now, then) in enumerate(pairwise(times)):
            slope = velocity(x, k)
            if solver == "heun":
                slope = 0.5 * (slope + velocity(x + (then - now) * slope, k + 1))
            if solver == "sde":  # less half the diffusion times the score, which is minus the noise over its size
                slope = slope + x + (1.0 - now) * slope
            x = x + (then - now) * slope
            if solver == "sde" and then > 0.0:
                added = noise.normal(shape, device, name="head_step")
                x = x + step.temperature * math.sqrt(2.0 * now * (now - then)) * added
        return x
