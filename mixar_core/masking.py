"""Which tokens are hidden: mask ratios for training, orders, and how many tokens each generation step fixes.

Counts are plain Python integers and the same for every image of a batch, so no tensor's shape depends on a value.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, gt, le
from torch import Tensor

from mixar_core.noise import Noise
from mixar_core.types import MaskSplit


@frozen
class MaskingConfig:
    """Training's mask ratio: a normal truncated to [ratio_min, ratio_max] (MAR, Sec. 4.3 and its released code)."""

    ratio_mean: float = 1.0
    ratio_std: float = field(default=0.25, validator=gt(0.0))
    ratio_min: float = field(default=0.7, validator=and_(ge(0.0), le(1.0)))
    ratio_max: float = field(default=1.0, validator=and_(gt(0.0), le(1.0)))

    def __attrs_post_init__(self) -> None:
        if self.ratio_min > self.ratio_max:
            raise ValueError(f"ratio_min {self.ratio_min} is above ratio_max {self.ratio_max}")

    def ratio(self, u: float) -> float:
        """The ratio at quantile `u` in [0, 1) of the truncated normal."""
        normal = NormalDist(self.ratio_mean, self.ratio_std)
        low, high = normal.cdf(self.ratio_min), normal.cdf(self.ratio_max)
        quantile = min(max(low + u * (high - low), 1e-12), 1.0 - 1e-12)
        return min(max(normal.inv_cdf(quantile), self.ratio_min), self.ratio_max)

    def mean_ratio(self) -> float:
        """The expected ratio, for estimates."""
        points = 1000
        return sum(self.ratio((i + 0.5) / points) for i in range(points)) / points


def masked_count(ratio: float, tokens: int) -> int:
    """Masked tokens at a ratio: ceil(ratio * N), at least one."""
    return min(tokens, max(1, math.ceil(tokens * ratio)))


def random_orders(batch: int, tokens: int, *, noise: Noise, device: torch.device | str) -> Tensor:
    """A random permutation of the positions for every image, (B, N) int64."""
    return noise.uniform((batch, tokens), device, name="orders").argsort(dim=1)


def raster_orders(batch: int, tokens: int, *, device: torch.device | str) -> Tensor:
    """The order that reveals row by row, (B, N) int64: as all orders, it ends with what is revealed first."""
    return torch.arange(tokens - 1, -1, -1, device=device).expand(batch, -1)


def passing_over(order_BN: Tensor, known_BK: Tensor | None) -> Tensor:
    """An order (B, N) without the positions that are known already: (B, N - K), the others keep their order."""
    if known_BK is None:
        return order_BN
    known_BN = torch.zeros_like(order_BN, dtype=torch.bool).scatter(1, known_BK, True)
    last_BN = known_BN.gather(1, order_BN).int().argsort(dim=1, stable=True)
    return order_BN.gather(1, last_BN)[:, : order_BN.shape[1] - known_BK.shape[1]]


def split_by_order(orders_BN: Tensor, masked: int) -> MaskSplit:
    """Hide the first `masked` positions of each order. Index tensors come out ascending."""
    masked_BK = orders_BN[:, :masked].sort(dim=1).values
    visible_BU = orders_BN[:, masked:].sort(dim=1).values
    return MaskSplit(visible_BU=visible_BU, masked_BK=masked_BK)


def split_known(known_BN: Tensor, known: int) -> MaskSplit:
    """Hide all but the `known` positions of every image that are True. Index tensors come out ascending."""
    order_BN = known_BN.int().argsort(dim=1, stable=True)
    masked = order_BN.shape[1] - known
    return MaskSplit(visible_BU=order_BN[:, masked:], masked_BK=order_BN[:, :masked])


def take(x_BND: Tensor, positions_BK: Tensor) -> Tensor:
    """The rows of (B, N, D) at positions (B, K): (B, K, D)."""
    return x_BND.gather(1, positions_BK[..., None].expand(-1, -1, x_BND.shape[2]))


def put(x_BND: Tensor, positions_BK: Tensor, rows_BKD: Tensor) -> Tensor:
    """(B, N, D) with these rows (B, K, D) at positions (B, K)."""
    return x_BND.scatter(1, positions_BK[..., None].expand_as(rows_BKD), rows_BKD.to(x_BND.dtype))


def masked_after_step(tokens: int, steps: int) -> list[int]:
    """How many tokens are still masked after each of `steps` steps, on MaskGIT's cosine schedule as MAR uses it.

    Each step but the last leaves at least one token; the last leaves none. With more steps than tokens some steps
    fix nothing.
    """
    remaining, after = tokens, []
    for step in range(steps - 1):
        wanted = math.floor(tokens * math.cos(math.pi / 2.0 * (step + 1) / steps))
        remaining = max(1, min(remaining - 1, wanted))
        after.append(remaining)
    return [*after, 0]


def cfg_at_step(cfg: float, tokens: int, masked_after: int, schedule: Literal["linear", "constant"]) -> float:
    """The guidance scale of a step: constant, or rising linearly with the share of tokens known after it.

    As in the released code of MAR the share counts at least one token as unknown, in the last step too.
    """
    if schedule == "constant":
        return cfg
    return 1.0 + (cfg - 1.0) * (tokens - max(1, masked_after)) / tokens
