"""How the network of the diffusion head is asked at a step of sampling: anew, or reusing its last answers (LazyMAR)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mixar_plugins.heads.mlp import DenoisingMLP, ResidualBlock

#: LazyMAR's released code: every so many steps are full; the blocks whose whole effect is reused in the others; and the
#: share of the steps, the noisiest, in which the other blocks compute their MLP, which later ones reuse
FULL_EVERY, REUSED_BLOCKS, FRESH_MLP_ABOVE = 7, range(1, 5), 0.9


class Denoiser:
    """The network over every row of every step.

    Args:
        steps: of sampling. guided: whether the condition has a second half, for classifier-free guidance.
    """

    def __init__(self, steps: int, *, guided: bool) -> None:
        self.steps, self.guided = steps, guided

    def __call__(
        self, net: DenoisingMLP, k: int, x_BKC: Tensor, time: Tensor, cond: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The predicted noise, that of the unconditional half, and the variance, (B, K, C) each, float32.

        Args:
            k: the step, counting down. time, cond: embedded; `cond` (B or 2 B, K, width), conditional half first.
        """
        out = net.denoise(x_BKC.repeat(2, 1, 1) if self.guided else x_BKC, time, cond).float()
        eps, variance = out.chunk(2, dim=-1)
        if not self.guided:
            return eps, None, variance
        (eps, uncond), variance = eps.chunk(2), variance.chunk(2)[0]
        return eps, uncond, variance


class LazyDenoiser(Denoiser):
    """LazyMAR's: most steps run the conditional half alone, and part of the blocks (arXiv 2503.12450)."""

    def __init__(self, steps: int, *, guided: bool) -> None:
        super().__init__(steps, guided=guided)
        self.mlp: dict[int, Tensor] = {}
        self.effect: dict[int, Tensor] = {}
        self.difference: Tensor | None = None

    def __call__(
        self, net: DenoisingMLP, k: int, x_BKC: Tensor, time: Tensor, cond: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `Denoiser`; the unconditional half's noise is the conditional one's less the difference that is kept."""
        full, rows = k == self.steps - 1 or k % FULL_EVERY == 0, len(x_BKC)
        both = full and self.guided
        condition = F.silu(time + (cond if both else cond[:rows]))
        h = net.project(x_BKC.repeat(2, 1, 1) if both else x_BKC)
        for index, block in enumerate(net.res_blocks):
            assert isinstance(block, ResidualBlock)
            if index not in REUSED_BLOCKS:
                h = self._with_kept_mlp(index, block, h, condition, fresh=k > FRESH_MLP_ABOVE * self.steps)
            elif full:
                before, h = h, block(h, condition)
                self.effect[index] = (h - before)[:rows]
            else:
                h = h + self.effect[index]
        eps, variance = net.final_layer(h, condition).float().chunk(2, dim=-1)
        if both:
            self.difference = eps[:rows] - eps[rows:]
        return eps[:rows], None if self.difference is None else eps[:rows] - self.difference, variance[:rows]

    def _with_kept_mlp(self, index: int, block: ResidualBlock, h: Tensor, condition: Tensor, *, fresh: bool) -> Tensor:
        """A block whose modulation and gate are this step's, and its MLP's output an earlier one's unless `fresh`."""
        inner, gate = block.modulated(h, condition)
        if fresh or index not in self.mlp:
            self.mlp[index] = block.mlp(inner)
        kept = self.mlp[index]
        return h + gate * (kept.repeat(2, 1, 1) if len(kept) < len(h) else kept[: len(h)])
