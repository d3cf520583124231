"""What changes over the steps of a masked transformer: shares masked, counts masked, guidance, draws."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

MaskSchedule = Literal["root", "square", "cosine", "arccos", "linear"]
GuidanceAnnealing = Literal["none", "linear", "cosine"]

#: A draw sees a probability as an integer of this many bits, and a uniform number as one of 24 (all float32 has).
_PROBABILITY_BITS, _UNIFORM_BITS = 30, 24


def mask_share(progress: Any, schedule: MaskSchedule, xp: ModuleType = torch) -> Any:
    """The share of entries masked at `progress` in [0, 1]: 1 falling to 0.

    Args:
        progress: an array of the library `xp`, which is torch or numpy; the result has its type and shape.
    """
    match schedule:
        case "root":
            return 1 - progress**0.5
        case "square":
            return 1 - progress**2
        case "cosine":
            return xp.cos(progress * math.pi * 0.5)
        case "arccos":
            return xp.arccos(progress) / (math.pi * 0.5)
        case "linear":
            return 1 - progress


def masked_after_steps(
    entries: int, steps: int, schedule: MaskSchedule, *, exact: type[np.floating[Any]] = np.float32
) -> list[int]:
    """How many of `entries` stay masked after each of `steps` steps: falling by at least one a step, down to 1.

    `exact` is what it is computed in.

    The last step fills whatever was left, so its count matters to nobody; it is 1 as in the published sampler.
    """
    # As exact as published: the floor of a share that is a whole number in exact arithmetic depends on it. And in
    # numpy, because a count has to be a number where tensors are fake or on the meta device.
    progress = (np.arange(1, steps + 1) / steps).astype(exact)
    share = np.clip(mask_share(progress, schedule, np), exact(1e-6), exact(1.0))
    counts, left = [], entries
    for wanted in np.floor(share * exact(entries)).astype(int).tolist():
        left = max(1, min(wanted, left - 1))
        counts.append(left)
    return counts


def guidance_scales(scale: float, steps: int, annealing: GuidanceAnnealing, power: float) -> list[float]:
    """The guidance scale of each step, annealed from 0 (by cosine: (1 - cos(pi progress^power)) / 2) or constant."""
    grown = {
        "none": lambda progress: 1.0,
        "linear": lambda progress: progress,
        "cosine": lambda progress: (1 - math.cos(math.pi * progress**power)) / 2,
    }
    return [scale * grown[annealing](step / steps) for step in range(steps)]


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers in [0, 1), finite for each of them."""
    tiny = torch.finfo(torch.float32).tiny
    return -(-uniform.clamp(tiny, 1 - 2**-_UNIFORM_BITS).log()).log()


def draw(probabilities_V: Tensor, uniform: Tensor) -> Tensor:
    """Draw from categorical distributions by inverting their cumulative sums.

    One uniform number a draw (Gumbel-max needs V). The sums are of integers: they are exact, so equal on every device
    and in any order of addition (a CUDA cumsum of floats is not repeatable), the result is always below V, and what has
    no probability is never drawn.

    Args:
        probabilities_V: float (..., V), summing to 1 to rounding.
        uniform: float (...) in [0, 1).

    Returns:
        int64 (...) in [0, V).
    """
    cumulative_V = (probabilities_V.float() * 2**_PROBABILITY_BITS).to(torch.int64).cumsum(dim=-1)
    threshold = ((uniform * 2**_UNIFORM_BITS).to(torch.int64) * cumulative_V[..., -1]) >> _UNIFORM_BITS
    return torch.searchsorted(cumulative_V, threshold[..., None], right=True).squeeze(-1)
