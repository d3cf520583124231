"""Can the class of a drawn image be told from it? A linear probe on real training images' features answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from mixar_core.types import NO_CLASS
from mixar_eval.distances import SEED

#: strengths of the ridge, of which leaving one out chooses; features have unit variance
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: draws of the bootstrap, and the share of them in an interval
DRAWS, INTERVAL = 10_000, 0.95


@frozen
class Named:
    """How many images of each class there are, and of how many the probe names the class; a place for every class."""

    right: tuple[int, ...]
    counts: tuple[int, ...]

    def __add__(self, other: Named) -> Named:
        pairs = ((self.right, other.right), (self.counts, other.counts))
        return Named(*(tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs))

    @property
    def share(self) -> float | None:
        """Of the images of a class, mean over the classes that have images: samples and real images seldom have the
        same mix. None where there are none."""
        shares = [right / count for right, count in zip(self.right, self.counts, strict=True) if count]
        return sum(shares) / len(shares) if shares else None


@frozen
class Ratio:
    """A share over another, and the interval that holds 95% of the bootstrap's draws."""

    value: float
    low: float
    high: float


@frozen(eq=False)
class Probe:
    """Ridge regression from feature vectors to one-hot classes: a class's score is linear in the features."""

    mean_F: Tensor
    weights_FL: Tensor
    bias_L: Tensor

    def named(self, features_AF: Tensor, labels: Sequence[int]) -> Named:
        """Of how many images of each class the class is named; images without a class do not count."""
        labels_A = torch.tensor(labels)
        guess_A = ((features_AF.double() - self.mean_F) @ self.weights_FL + self.bias_L).argmax(dim=1)
        known_A, classes = labels_A != NO_CLASS, len(self.bias_L)
        counts, right = (labels_A[some_A].bincount(minlength=classes) for some_A in (known_A, guess_A == labels_A))
        return Named(tuple(right.tolist()), tuple(counts.tolist()))


def fit_probe(features_AF: Tensor, labels: Sequence[int], classes: int) -> Probe:
    """The probe of real images, every class of which weighs the same, its ridge chosen by leaving one image out.

    In closed form, float64. With X = V diag(s) V^T of the weighted covariance, an image's prediction without it is
    y - (y - p) / (1 - h), h being its leverage: one decomposition serves all strengths.

    Args:
        features_AF: of training images, (A, F). labels: their classes, below `classes`; NO_CLASS: left out.

    Raises:
        ValueError: fewer than two classes have images.
    """
    labels_A = torch.tensor(labels)
    x_AF, labels_A = features_AF[labels_A != NO_CLASS].double(), labels_A[labels_A != NO_CLASS]
    counts_L = labels_A.bincount(minlength=classes)
    if (counts_L > 0).sum() < 2:
        raise ValueError("a probe tells classes apart, and there are not two")
    weight_A1 = (1 / (counts_L * (counts_L > 0).sum()))[labels_A, None]  # they sum to 1
    y_AL = F.one_hot(labels_A, classes).double()
    mean_F, mean_L = (weight_A1 * x_AF).sum(dim=0), (weight_A1 * y_AL).sum(dim=0)
    scale_F = (weight_A1 * (x_AF - mean_F).square()).sum(dim=0).sqrt().clamp(min=1e-6)
    x_AF, y_AL = (x_AF - mean_F) / scale_F, y_AL - mean_L
    spectrum_F, axes_FF = torch.linalg.eigh((weight_A1 * x_AF).T @ x_AF)
    turned_AF = x_AF @ axes_FF
    aligned_FL = turned_AF.T @ (weight_A1 * y_AL)

    def left_out(ridge: float) -> float:
        shrunk_F = 1 / (spectrum_F.clamp(min=0) + ridge)
        leverage_A1 = weight_A1 * (turned_AF.square() @ shrunk_F)[:, None]
        rest_AL = (y_AL - turned_AF @ (shrunk_F[:, None] * aligned_FL)) / (1 - leverage_A1).clamp(min=1e-9)
        right_A1 = ((y_AL - rest_AL + mean_L).argmax(dim=1) == labels_A)[:, None]
        return float((weight_A1 * right_A1).sum())

    ridge = max(reversed(RIDGES), key=left_out)  # of equally good ones the strongest
    weights_FL = axes_FF @ (aligned_FL / (spectrum_F.clamp(min=0) + ridge)[:, None])
    return Probe(mean_F, weights_FL / scale_F[:, None], mean_L)


def ratio_of(samples: Named, real: Named) -> Ratio | None:
    """The samples' share over the real images', over the classes that both have; its interval by the bootstrap.

    Images are drawn again within each class: of n, of which a share p was named, a binomial number is. None where
    no real image's class is named.
    """
    both = [(a, b) for a, b in zip(samples.counts, real.counts, strict=True)]
    kept = [place for place, (a, b) in enumerate(both) if a and b]
    sides = [
        torch.tensor([(named.right[place], named.counts[place]) for place in kept], dtype=torch.float64).reshape(-1, 2)
        for named in (samples, real)
    ]
    shares = [float((side[:, 0] / side[:, 1]).mean()) for side in sides]
    if not kept or not shares[1]:
        return None
    draw = torch.Generator().manual_seed(SEED)
    one_D, other_D = (
        (torch.binomial(n.expand(DRAWS, -1), (right / n).expand(DRAWS, -1), generator=draw) / n).mean(dim=1)
        for right, n in (side.unbind(dim=1) for side in sides)
    )
    beyond = (1 - INTERVAL) / 2
    low, high = (one_D / other_D.clamp(min=1e-9)).quantile(torch.tensor([beyond, 1 - beyond], dtype=torch.float64))
    return Ratio(shares[0] / shares[1], float(low), float(high))
