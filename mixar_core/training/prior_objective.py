"""What training a discrete prior minimises: its own loss on the codes of a frozen tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.training.objective import Objective
from mixar_core.types import ImageBatch, Losses, TokenBatch


class PriorObjective(Objective):
    """DiscretePrior.loss on the codes that `tokenizer`, frozen, gives the images."""

    takes_tokens = True

    def __init__(self, prior: DiscretePrior, tokenizer: DiscreteTokenizer) -> None:
        super().__init__()
        self.trained = self.prior = prior
        self.tokenizers = FrozenTokenizers(None, tokenizer)
        self.tokenizer = tokenizer

    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """The prior's loss; it masks codes and drops labels by itself."""
        assert isinstance(batch, TokenBatch) and batch.codes_BN is not None
        return self.prior.loss(batch.codes_BN, batch.labels_B, noise=noise)

    @torch.no_grad()
    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        """The images, what their codes decode to, and samples for their labels, decoded."""
        sampled_BN = self.prior.sample(images.labels_B, noise=noise)
        return {
            "real": images.images_B3HW,
            "codes alone": self.tokenizer.decode(self.tokenizer.encode(images.images_B3HW)),
            "sampled": self.tokenizer.decode(sampled_BN),
        }
