"""Codes of real images instead of a model of them: how good could a MixAR be if its prior were perfect?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import NO_CLASS, Condition, DrawnCodes, Losses

#: classes that an error message lists
_SHOWN = 24


@frozen
class GroundTruthConfig:
    """Nothing to set."""


class GroundTruthPrior(DiscretePrior):
    """Codes of real images of the asked class (for ablations); nothing to train."""

    sees_truth = True

    def __init__(
        self,
        config: GroundTruthConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        super().__init__(layout=tokenizer.layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self._sources = (tokenizer, data)  # in a tuple, so that the tokenizer is not registered as a submodule

    @torch.no_grad()
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
        """Codes (B, N) of images drawn from the data, of any class where the label is NO_CLASS or there are no classes.

        The other arguments have no meaning here.

        Raises:
            UserError: there is no data, or no image of a class.
        """
        tokenizer, data = self._sources
        if data is None:
            raise UserError("the prior ground-truth draws images, but the recipe names no data")
        images, labels_B = [], condition.labels_B
        choices = noise.uniform((len(labels_B),), "cpu", name="prior.image")
        for label, choice in zip(labels_B.tolist(), choices.tolist(), strict=True):
            candidates = self._of_class.get(label if self.num_classes else NO_CLASS)
            if not candidates:
                known = sorted(set(self._of_class) - {NO_CLASS})
                more = f", ... ({len(known)} in all)" if len(known) > _SHOWN else ""
                raise UserError(
                    f"the data of the prior ground-truth have no image of class {label}; they have "
                    f"{', '.join(map(str, known[:_SHOWN])) or 'none'}{more}"
                )
            images.append(data[candidates[int(choice * len(candidates))]][0])
        codes_BN = tokenizer.encode(torch.stack(images).to(labels_B.device).float() / 127.5 - 1.0)
        if given_BN is not None:
            codes_BN = torch.where(given_BN == MASKED_CODE, codes_BN, given_BN)
        yield DrawnCodes(codes_BN)

    @cached_property
    def _of_class(self) -> dict[int, list[int]]:
        """The indices of the images of each class, and under NO_CLASS of all."""
        data = self._sources[1]
        assert data is not None
        of_class: dict[int, list[int]] = {NO_CLASS: list(range(len(data)))}
        for index, label in enumerate(data.labels()):
            if label != NO_CLASS:
                of_class.setdefault(label, []).append(index)
        return of_class

    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        """The truth: `codes_BN` as they are."""
        return DrawnCodes(codes_BN)

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Raises TypeError: there is nothing to train."""
        raise TypeError("the prior ground-truth has nothing to train")
