"""Small networks that the heads of one token share: MAR's residual MLP with adaptive layer norm, and a plain one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_plugins.networks.time import TimeEmbedding


class ModulatedMLP(nn.Module):
    """Residual MLP whose blocks a condition modulates by adaptive layer norm (MAR, Sec. 4.2).

    Args:
        embeddings: modules that make the condition out of what is given; they are registered under these names.
        dim_in, dim_out: numbers of the stream that goes in, and that come out.
    """

    def __init__(
        self, embeddings: Mapping[str, nn.Module], *, dim_in: int, dim_out: int, width: int, depth: int
    ) -> None:
        super().__init__()
        for name, embedding in embeddings.items():
            self.add_module(name, embedding)
        self.input_proj = nn.Linear(dim_in, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, dim_out)
        # As MAR: Xavier-uniform; time embedding normal(0.02); modulations and output zero.
        xavier(self)
        for module in self.modules():
            if isinstance(module, TimeEmbedding | ResidualBlock | FinalLayer):
                module.reset_parameters()

    def forward(self, x: Tensor, condition: Tensor, temperature: float = 1.0) -> Tensor:
        """(..., dim_in) to (..., dim_out), given the condition (..., width), its activation applied.

        `temperature` multiplies the blocks' shifts.
        """
        h = self.project(x)
        for block in self.res_blocks:
            h = block(h, condition, temperature)
        return self.final_layer(h, condition)

    def project(self, x: Tensor) -> Tensor:
        """(..., dim_in) to (..., width), in what the weights are in."""
        return self.input_proj(x.to(self.input_proj.weight.dtype))


class DenoisingMLP(ModulatedMLP):
    """A token that is noised, its time and its condition z; gives `dim_out` numbers."""

    time_embed: TimeEmbedding
    cond_embed: nn.Linear

    def __init__(self, *, token_dim: int, cond_dim: int, dim_out: int, width: int, depth: int) -> None:
        embeddings = {"time_embed": TimeEmbedding(width), "cond_embed": nn.Linear(cond_dim, width)}
        super().__init__(embeddings, dim_in=token_dim, dim_out=dim_out, width=width, depth=depth)

    def embedded(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps (T,) and conditions (..., D) as `denoise` takes them, (..., width) each."""
        return self.time_embed(t), self.cond_embed(z.to(self.cond_embed.weight.dtype))

    def denoise(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """(..., C) to (..., dim_out); `time` and `cond` are embedded already."""
        return self(x, F.silu(time + cond))


class ResidualBlock(nn.Module):
    """x + gate * mlp(modulated norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        # the activation in front of the modulations is applied once for all blocks, before them
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 3 * width))

    def reset_parameters(self) -> None:
        """Modulation zero, so that a fresh block is the identity."""
        zero(self.adaLN_modulation)

    def forward(self, x: Tensor, condition: Tensor, temperature: float = 1.0) -> Tensor:
        """(..., width) to (..., width)."""
        inner, gate = self.modulated(x, condition, temperature)
        return x + gate * self.mlp(inner)

    def modulated(self, x: Tensor, condition: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """What goes into the MLP, and the gate of what comes out of it."""
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        shift = shift if temperature == 1.0 else shift * temperature
        return torch.addcmul(shift, self.in_ln(x), 1 + scale), gate


class FinalLayer(nn.Module):
    """Modulated norm and the output projection; the norm is a layer norm without weights unless one is given."""

    def __init__(self, width: int, out: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm_final = norm or nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))

    def reset_parameters(self) -> None:
        """Modulation and output zero, so that a fresh network gives zeros."""
        zero(self.adaLN_modulation)
        zero(self.linear)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(torch.addcmul(shift, self.norm_final(x), 1 + scale))


class PlainMLP(nn.Module):
    """Pre-norm residual MLP from z to the parameters of a distribution; of depth 0 a norm and a linear map."""

    def __init__(self, *, dim_in: int, dim_out: int, width: int, depth: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(dim_in, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim_out)
        xavier(self)

    def forward(self, z: Tensor) -> Tensor:
        """(..., dim_in) to (..., dim_out)."""
        h = self.input_proj(z)
        for block in self.blocks:
            h = h + block(h)
        return self.out(self.norm(h))


def xavier(network: nn.Module) -> None:
    """Xavier-uniform weights and no bias in every linear layer."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def zero(network: nn.Module) -> None:
    """Weights of zero in every linear layer."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
