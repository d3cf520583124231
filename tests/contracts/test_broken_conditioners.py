"""The contract of conditioners catches a conditioner with one thing wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixar_core import NO_CLASS, Condition, Conditioner
from mixar_core.testing import check_conditioner


class Words(Conditioner):
    """The smallest one: two learned vectors a class, of which none counts where there is no class."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(3, 2 * self.width)

    def vectors(self, labels_B: Tensor) -> Tensor:
        return self.words(labels_B.clamp(min=0)).unflatten(1, (2, self.width))

    def counting(self, labels_B: Tensor) -> Tensor | None:
        return (labels_B != NO_CLASS)[:, None].expand(-1, 2)

    def forward(self, labels_B: Tensor) -> Condition:
        return Condition(labels_B, self.vectors(labels_B), self.counting(labels_B))


def test_the_smallest_conditioner_passes() -> None:
    check_conditioner(Words, num_classes=3)


class AllCount(Words):
    """Has vectors of its own for no class."""

    def counting(self, labels_B: Tensor) -> Tensor | None:
        return None


class LabelsAlone(Words):
    def forward(self, labels_B: Tensor) -> Condition:
        return Condition(labels_B)


class Vectors(Words):
    def forward(self, labels_B: Tensor) -> Tensor:
        return self.vectors(labels_B)


class LosesLabels(Words):
    def forward(self, labels_B: Tensor) -> Condition:
        return Condition(torch.full_like(labels_B, NO_CLASS), self.vectors(labels_B), self.counting(labels_B))


class ChangesLabels(Words):
    def forward(self, labels_B: Tensor) -> Condition:
        return super().forward(labels_B.clamp_(min=0))


class Wide(Words):
    def vectors(self, labels_B: Tensor) -> Tensor:
        return torch.cat([super().vectors(labels_B)] * 2, dim=2)


class BatchStatistics(Words):
    def vectors(self, labels_B: Tensor) -> Tensor:
        vectors_BTF = super().vectors(labels_B)
        return vectors_BTF - vectors_BTF.mean(dim=0)


class LongestOfTheBatch(Words):
    def vectors(self, labels_B: Tensor) -> Tensor:
        return super().vectors(labels_B)[:, : 1 + int(labels_B.max() > 0)]


class Deaf(Words):
    def vectors(self, labels_B: Tensor) -> Tensor:
        return super().vectors(torch.zeros_like(labels_B))


class NumbersCount(Words):
    def counting(self, labels_B: Tensor) -> Tensor | None:
        return (labels_B != NO_CLASS)[:, None].expand(-1, 2).float()


class NothingCounts(Words):
    def counting(self, labels_B: Tensor) -> Tensor | None:
        return torch.zeros_like(labels_B, dtype=torch.bool)[:, None].expand(-1, 2)


class GlobalRandom(Words):
    def vectors(self, labels_B: Tensor) -> Tensor:
        return super().vectors(labels_B) + torch.rand(1).to(labels_B.device)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (LabelsAlone, "labels alone need no conditioner"),
        (Vectors, "returns a Tensor, not a Condition"),
        (LosesLabels, "the labels are not those it was given"),
        (ChangesLabels, "argument labels_B was changed in place"),
        (Wide, r"vectors has shape \(3, 2, 8\), not \(3, 2, 4\)"),
        (BatchStatistics, "depends on what shares its batch"),
        (AllCount, "a vector counts although there is no class"),
        (Deaf, "other labels, yet the same vectors"),
        (NumbersCount, "mask is torch.float32, not torch.bool"),
        (NothingCounts, "other labels, yet the same vectors"),
        (GlobalRandom, "torch's global generator"),
    ],
)
def test_a_broken_conditioner_fails(broken: type[Words], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_conditioner(broken, num_classes=3)


def test_a_length_that_depends_on_the_batch_does_not_run_without_values() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        check_conditioner(LongestOfTheBatch, num_classes=3)
