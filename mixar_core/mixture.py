"""The mixtures of MixAR as pure functions: DC-Mix (Eq. 8, 9), what the prior sees (Eq. 10), TI-Mix (Eq. 12), lambda.

Here `masked_BN` is True where a token is hidden. Written with `torch.where`, so that every operand stays in the
autograd graph and no shape depends on a value.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le, lt
from torch import Tensor

#: What a code becomes where the prior must not see it (Eq. 10). Priors map it to their own mask token.
MASKED_CODE = -1


def dc_mixture(x_BND: Tensor, fill_BND: Tensor, masked_BN: Tensor) -> Tensor:
    """Eq. 9, DC-Mix: the continuous token where visible, the discrete token where masked.

    With one learned mask token (D,) in place of the discrete ones it is Eq. 8, MAR's input to the decoder.
    """
    return torch.where(masked_BN[..., None], fill_BND, x_BND)


def hide_codes(codes_BN: Tensor, masked_BN: Tensor) -> Tensor:
    """Eq. 10: the prior's input, codes with MASKED_CODE where masked."""
    return codes_BN.masked_fill(masked_BN, MASKED_CODE)


def ti_mixture(truth_BN: Tensor, predicted_BN: Tensor, masked_BN: Tensor, rho_BN: Tensor, lam: float) -> Tensor:
    """Eq. 12, TI-Mix: at masked positions the ground-truth code where rho < lambda, else the prior's prediction.

    Args:
        truth_BN, predicted_BN: codes; rho_BN: uniform in [0, 1); lam: in [0, 1], 1 keeps the truth everywhere.

    Returns:
        codes (B, N); visible positions keep the truth whatever lambda is.
    """
    return torch.where(masked_BN & (rho_BN >= lam), predicted_BN, truth_BN)


@frozen
class TIMixConfig:
    """How lambda falls (Eq. 12). `schedule: constant` with `start: 1` is training without TI-Mix.

    Args:
        schedule: constant (stays at `start`), linear, cosine (half a cosine), or step (`levels` equal drops).
        start, end: lambda before and after the fall, 1 >= start >= end >= 0.
        begin: share of training after which it starts to fall (paper: 200 epochs of DC-Mix, then 200 of TI-Mix: 0.5).
        levels: number of drops of the step schedule.
    """

    schedule: Literal["constant", "linear", "cosine", "step"] = field(
        default="constant", validator=in_(("constant", "linear", "cosine", "step"))
    )
    start: float = field(default=1.0, validator=and_(ge(0.0), le(1.0)))
    end: float = field(default=0.0, validator=and_(ge(0.0), le(1.0)))
    begin: float = field(default=0.5, validator=and_(ge(0.0), lt(1.0)))
    levels: int = field(default=4, validator=gt(0))

    def __attrs_post_init__(self) -> None:
        if self.schedule != "constant" and self.end > self.start:
            raise ValueError(f"end {self.end} is above start {self.start}; lambda falls")

    def lambda_at(self, progress: float) -> float:
        """Lambda when a share `progress` in [0, 1] of training is over; never rises."""
        share = min(1.0, max(0.0, (progress - self.begin) / (1.0 - self.begin)))
        if self.schedule == "constant":
            return self.start
        if self.schedule == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        elif self.schedule == "step":
            share = min(self.levels, math.floor(share * (self.levels + 1))) / self.levels
        return min(self.start, max(self.end, self.start + (self.end - self.start) * share))
