"""The discrete prior: a model of the codes, p(x_d | class)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from mixar_core.noise import Noise
from mixar_core.types import Condition, DrawnCodes, Losses, TokenLayout


class DiscretePrior(nn.Module, ABC):
    """Draws codes for a condition, and predicts codes at masked positions.

    Registered as a Part, a prior is built as
    `Class(config, tokenizer=<DiscreteTokenizer>, num_classes=..., data=<Dataset or None>)`; the tokenizer is there to
    be asked (layout, codebook) and must not become a submodule.
    """

    meta_safe: ClassVar[bool] = True
    """Whether it runs on torch's `meta` device, where recipes are checked without values; False: it is not tried."""
    brings_weights: ClassVar[bool] = False
    """Whether its constructor loads what it has learned, so that a recipe that keeps it frozen names no weights."""

    sees_truth: ClassVar[bool] = False
    """Whether it is no model but a stand-in for ablations, whose `predict` may look at what is masked."""

    def __init__(self, *, layout: TokenLayout, codebook_size: int, num_classes: int) -> None:
        super().__init__()
        self.layout, self.codebook_size, self.num_classes = layout, codebook_size, num_classes

    @abstractmethod
    def sample_steps(
        self,
        condition: Condition,
        *,
        noise: Noise,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        given_BN: Tensor | None = None,
    ) -> Iterator[DrawnCodes]:
        """Draw codes (B, N), giving them after every step; the last are complete. What is None is as the config says.

        Args:
            given_BN: codes that stay as they are and condition all others; MASKED_CODE (-1) where one is to be drawn.
        """

    def sample(self, condition: Condition, *, noise: Noise, **settings: Any) -> DrawnCodes:
        """What the last of `sample_steps` gives, with the same settings."""
        return deque(self.sample_steps(condition, noise=noise, **settings), maxlen=1).pop()

    def hold_bf16(self) -> None:
        """Hold weights in bfloat16 from now on, for sampling; by default autocast casts them at every product."""

    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        """Eq. 10-11: codes at masked positions become the prior's mask token, one forward pass predicts them.

        Only TI-Mix asks for it: a prior without a mask token need not define it.

        Args:
            codes_BN: ground-truth codes; `masked_BN`: bool, True where the prior must not see them.

        Returns:
            codes (B, N): drawn from the prediction where masked, `codes_BN` elsewhere.
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Its training loss; it masks codes and drops conditions by itself. Raises TypeError if not trainable."""

    @property
    def predicts(self) -> bool:
        """Whether it defines `predict`."""
        return type(self).predict is not DiscretePrior.predict
