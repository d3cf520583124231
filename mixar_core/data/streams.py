"""Random streams without state: what a step draws is a function of the seed and the step's number alone.

So a resumed run needs no generator's state, and every process knows the draws of all.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from mixar_core.noise import Noise

_MASK = 2**64 - 1


class Stream(IntEnum):
    """What a random stream is for; each use has its own, so that none shifts another."""

    ORDER = 1
    FLIP = 2
    TOKENS = 3
    LOSS = 4
    GLOBAL = 5
    PREVIEW = 6
    CACHE = 7


def seed_of(*parts: int) -> int:
    """A 63-bit seed from whole numbers, with SplitMix64's finaliser: near numbers give unrelated seeds."""
    state = 0
    for part in parts:
        state = (state + 0x9E3779B97F4A7C15 + (part & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def step_noise(
    stream: Stream,
    *,
    seed: int,
    step: int,
    first: int = 0,
    total: int | None = None,
    device: torch.device | str = "cpu",
) -> Noise:
    """The noise of one step: rows `first` onwards of a global batch of `total` (see Noise)."""
    generator = torch.Generator(device).manual_seed(seed_of(seed, step, stream))
    return Noise(generator, first=first, total=total)
