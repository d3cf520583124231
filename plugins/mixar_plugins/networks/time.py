"""How a network of diffusion is told the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 256


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep through a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def reset_parameters(self) -> None:
        """Weights normal(0.02)."""
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        """(...) in [0, 1000) to (..., width)."""
        half = FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[..., None].float() * torch.exp(-math.log(10000.0) * steps / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp.get_parameter("0.weight").dtype))
