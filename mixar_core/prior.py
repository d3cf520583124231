"""The discrete prior: a model of the codes, p(x_d | class)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mixar_core.noise import Noise
from mixar_core.types import Grid, Losses


class DiscretePrior(nn.Module, ABC):
    """Draws codes for labels, and predicts codes at masked positions.

    Labels are int64 (B,), in [0, num_classes) or NO_CLASS. Registered as a Part, a prior is built as
    `Class(config, tokenizer=<DiscreteTokenizer>, num_classes=..., data=<Dataset or None>)`; the tokenizer is there to
    be asked (grid, codebook) and must not become a submodule.
    """

    def __init__(self, *, grid: Grid, codebook_size: int, num_classes: int) -> None:
        super().__init__()
        self.grid, self.codebook_size, self.num_classes = grid, codebook_size, num_classes

    @abstractmethod
    def sample(
        self,
        labels_B: Tensor,
        *,
        noise: Noise,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Codes (B, N) for labels (B,). What is None is as the part's config says."""

    @abstractmethod
    def predict(self, codes_BN: Tensor, masked_BN: Tensor, labels_B: Tensor, *, noise: Noise) -> Tensor:
        """Eq. 10-11: codes at masked positions become the prior's mask token, one forward pass predicts them.

        Args:
            codes_BN: ground-truth codes; `masked_BN`: bool, True where the prior must not see them.

        Returns:
            codes (B, N): drawn from the prediction where masked, `codes_BN` elsewhere.
        """

    @abstractmethod
    def loss(self, codes_BN: Tensor, labels_B: Tensor, *, noise: Noise) -> Losses:
        """The prior's training loss; it masks codes and drops labels by itself. Raises TypeError if not trainable."""
