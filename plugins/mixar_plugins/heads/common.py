"""What heads ask of a step in the same words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.types import Step, Z


def uncond_of(z: Z, step: Step) -> Tensor | None:
    """The vectors (B, K, D) that guidance moves away from; None where there is no guidance."""
    return None if step.cfg == 1.0 else z.uncond_BKD


def on_device(values: Sequence[float] | np.ndarray, device: torch.device) -> Tensor:
    """Numbers as a tensor; from pinned memory a GPU fetches them without the host waiting for what it does before."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    host = torch.tensor(values, device="cpu")
    return torch.empty_like(host, pin_memory=True).copy_(host).to(device, non_blocking=True)


def at_once(head: str, step: Step) -> None:
    """Refuse a number of steps or a solver, for a head that draws a token at once.

    Raises:
        UserError: the step asks for one.
    """
    if step.head_steps is not None:
        raise UserError(f"sampling.head_steps: {step.head_steps}; head {head} draws a token in one go; allowed: null")
    if step.solver is not None:
        raise UserError(f"head {head} draws a token in one go and has no solver {step.solver}")


def gumbel(shape: Sequence[int], device: torch.device, *, noise: Noise, name: str) -> Tensor:
    """Standard Gumbel numbers: the argmax of log-probabilities plus these is a draw from them."""
    return -torch.log(-torch.log(noise.uniform(shape, device, name=name)))
