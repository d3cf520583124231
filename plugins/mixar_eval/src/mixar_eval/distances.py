"""Distances between two sets of feature vectors, for any extractor, as torch-fidelity defines them.

Neither is comparable between different counts or extractors. With few samples both have a floor: print the distance
of real images to other real images at the same count beside them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from mixar_core.distributed import Processes
from mixar_core.storage import write_whole

#: What torch-fidelity seeds subsets and shuffling with unless told otherwise: the same here gives the same figures.
SEED = 2020
#: Size and number of the random subsets over which the kernel distance is averaged, as is usual for KID.
KERNEL_SUBSET_SIZE = 1000
KERNEL_SUBSETS = 100
#: random directions of `monge_distance`, as in torch-fidelity
PROJECTIONS = 1000
_CHUNK = 8192
_TOO_FEW = "a distance between sets needs at least two images in each"
_NOT_FINITE = "features are not finite: the images hold NaN or infinity"


@frozen(eq=False)
class Gaussian:
    """Mean (F,) and unbiased covariance (F, F) of feature vectors, float64, on the CPU.

    Args:
        count: how many vectors they were measured on; None where a file does not say.
        extractor: the identity of the extractor whose vectors they are; None where a file does not say.
    """

    mean_F: Tensor
    covariance_FF: Tensor
    count: int | None = None
    extractor: str | None = None

    @classmethod
    def of(cls, features_AF: Tensor, *, extractor: str | None = None) -> Gaussian:
        """The Gaussian of at least two vectors (A, F).

        Raises:
            ValueError: there are fewer, or they hold NaN or infinity.
        """
        total = GaussianSum(features_AF.shape[1])
        for part_BF in features_AF.split(_CHUNK):
            total.add(part_BF)
        return total.gaussian(extractor=extractor)

    def save(self, path: Path, *, features_AF: Tensor | None = None) -> None:
        """Write an `.npz` with `mu` and `sigma`, the names that all FID tools use, and what else is known.

        Args:
            features_AF: the vectors themselves, to be written too.

        Raises:
            UserError: it cannot be written.
        """
        known = {
            "mu": self.mean_F.numpy(),
            "sigma": self.covariance_FF.numpy(),
            "count": None if self.count is None else numpy.int64(self.count),
            "extractor": None if self.extractor is None else numpy.str_(self.extractor),
            "features": None if features_AF is None else features_AF.numpy(),
        }
        arrays: dict[str, Any] = {name: array for name, array in known.items() if array is not None}

        def write(unfinished: Path) -> None:
            with unfinished.open("wb") as file:  # numpy would add .npz to a name
                numpy.savez(file, **arrays)

        write_whole(path, write)


class GaussianSum:
    """What a Gaussian needs of a set, summed up batch by batch, so that the set's vectors need not be kept."""

    def __init__(self, feature_dim: int) -> None:
        self.count = 0
        #: sums of x, and of x x^T, in float64 on the CPU
        self.first_F = torch.zeros(feature_dim, dtype=torch.float64)
        self.second_FF = torch.zeros(feature_dim, feature_dim, dtype=torch.float64)

    def add(self, features_BF: Tensor) -> None:
        """Take in a batch of vectors (B, F)."""
        x_BF = features_BF.detach().cpu().double()
        self.count += len(x_BF)
        self.first_F += x_BF.sum(dim=0)
        self.second_FF.addmm_(x_BF.T, x_BF)

    def gaussian(self, *, extractor: str | None = None, processes: Processes | None = None) -> Gaussian:
        """The Gaussian of all that was taken in, by all of `processes` together.

        Raises:
            ValueError: there were fewer than two vectors, or they held NaN or infinity.
        """
        sums = [torch.tensor(self.count), self.first_F, self.second_FF]
        if processes is not None:
            sums = [processes.sum(values).cpu() for values in sums]
        count, (first_F, second_FF) = int(sums[0]), sums[1:]
        if count < 2:
            raise ValueError(_TOO_FEW)
        if not torch.isfinite(first_F).all():
            raise ValueError(_NOT_FINITE)
        mean_F = first_F / count
        covariance_FF = (second_FF - count * torch.outer(mean_F, mean_F)) / (count - 1)
        return Gaussian(mean_F, covariance_FF, count, extractor)


def frechet_distance(features_AF: Tensor, features_BF: Tensor) -> float:
    """Frechet distance between Gaussians fitted to feature vectors (A, F) and (B, F): see `frechet_of`.

    Raises:
        ValueError: the features do not compare.
    """
    return frechet_of(Gaussian.of(features_AF), Gaussian.of(features_BF))


def frechet_of(one: Gaussian, other: Gaussian) -> float:
    """Frechet distance between two Gaussians (Heusel et al., 2017), in float64.

    |m_A - m_B|^2 + tr(S_A + S_B - 2 (S_A S_B)^(1/2)), the last trace that of the symmetric root of R^T S_B R, where
    S_A = R R^T has as many columns in R as its rank: with fewer images than numbers those of the fewer. FID, where the
    features are Inception's.

    Raises:
        ValueError: they are of different widths.
    """
    if one.mean_F.shape != other.mean_F.shape:
        raise ValueError(f"statistics of {len(one.mean_F)} and of {len(other.mean_F)} numbers do not compare")
    few, many = sorted((one, other), key=lambda gaussian: gaussian.count or math.inf)
    s_FF, t_FF = few.covariance_FF.double(), many.covariance_FF.double()
    spectrum_F, axes_FF = torch.linalg.eigh(s_FF)
    there_F = spectrum_F > len(spectrum_F) * torch.finfo(torch.float64).eps * spectrum_F[-1]
    root_FR = axes_FF[:, there_F] * spectrum_F[there_F].sqrt()
    shared = torch.linalg.eigvalsh(root_FR.T @ t_FF @ root_FR).clamp(min=0).sqrt().sum()
    apart_F = few.mean_F.double() - many.mean_F.double()
    return float(apart_F @ apart_F + s_FF.trace() + t_FF.trace() - 2 * shared)


def kernel_distance(features_AF: Tensor, features_BF: Tensor, *, seed: int = SEED) -> float:
    """Squared maximum mean discrepancy under the kernel (x . y / F + 1)^3 (Binkowski et al., 2018), in float64.

    Unbiased, so it may be slightly negative where both sets are alike. KID, where the features are Inception's. Of as
    many vectors on either side, 1,000 at most, it is exact; else the mean over 100 random subsets of as many of either,
    1,000 at most, which are torch-fidelity's.

    Args:
        features_AF, features_BF: feature vectors (A, F) and (B, F).
        seed: of the subsets.

    Raises:
        ValueError: the features do not compare.
    """
    check_features(features_AF, features_BF)
    x_AF, y_BF = (side.detach().cpu().double() for side in (features_AF, features_BF))
    size = min(KERNEL_SUBSET_SIZE, len(x_AF), len(y_BF))
    if size == len(x_AF) == len(y_BF):
        return float(_discrepancies(x_AF, y_BF, torch.ones(1, size), torch.ones(1, size)))
    draw = numpy.random.RandomState(seed)
    subsets = [[draw.choice(len(side), size, replace=False) for side in (x_AF, y_BF)] for _ in range(KERNEL_SUBSETS)]
    if len(x_AF) ** 2 + len(x_AF) * len(y_BF) + len(y_BF) ** 2 > 3 * size**2 * KERNEL_SUBSETS:
        whole = torch.ones(1, size)
        return float(torch.cat([_discrepancies(x_AF[a], y_BF[b], whole, whole) for a, b in subsets]).mean())
    chosen_SA, chosen_SB = (torch.zeros(KERNEL_SUBSETS, len(side)) for side in (x_AF, y_BF))
    for a_A, b_B, (a, b) in zip(chosen_SA, chosen_SB, subsets, strict=True):
        a_A[a] = b_B[b] = 1
    return float(_discrepancies(x_AF, y_BF, chosen_SA, chosen_SB).mean())


def _discrepancies(x_AF: Tensor, y_BF: Tensor, chosen_SA: Tensor, chosen_SB: Tensor) -> Tensor:
    """The unbiased estimates (S,) by so many vectors of either set, each kernel value computed once for all of them."""

    def total(one_AF: Tensor, other_BF: Tensor, one_SA: Tensor, other_SB: Tensor) -> Tensor:
        sums_S = torch.zeros(len(one_SA), dtype=torch.float64)
        for some_CF, some_SC in zip(one_AF.split(_CHUNK // 8), one_SA.double().split(_CHUNK // 8, dim=1), strict=True):
            sums_S += (some_SC @ (some_CF @ other_BF.T / some_CF.shape[1] + 1).pow(3) * other_SB).sum(dim=1)
        return sums_S

    size_S = chosen_SA.sum(dim=1).double()
    own_S = torch.zeros_like(size_S)
    for side, chosen in ((x_AF, chosen_SA), (y_BF, chosen_SB)):
        with_itself = (side.square().mean(dim=1) + 1).pow(3)
        own_S += total(side, side, chosen, chosen) - chosen.double() @ with_itself
    return own_S / (size_S * (size_S - 1)) - 2 * total(x_AF, y_BF, chosen_SA, chosen_SB) / size_S.square()


def monge_distance(features_AF: Tensor, features_BF: Tensor, *, seed: int = SEED) -> float:
    """MIND, the Monge inception distance (Berthet et al., arXiv 2605.06797): sliced, so that few images do.

    3 F times the squared 2-Wasserstein distance of the sets projected to a random direction, mean over PROJECTIONS of
    them: there the k-th smallest of one set goes to the k-th smallest of the other. Of unequal counts, as many of the
    larger set are drawn. It is biased upwards where there are few: read it beside that of real images at that count.

    Args:
        features_AF, features_BF: feature vectors (A, F) and (B, F).
        seed: of the directions, and of the choice.

    Raises:
        ValueError: the features do not compare.
    """
    check_features(features_AF, features_BF)
    draw, count = torch.Generator().manual_seed(seed), min(len(features_AF), len(features_BF))
    sides = [side.detach().cpu().float() for side in (features_AF, features_BF)]
    sides = [side[torch.randperm(len(side), generator=draw)[:count]] if len(side) > count else side for side in sides]
    directions_PF = F.normalize(torch.randn(PROJECTIONS, features_AF.shape[1], generator=draw), dim=1)
    total = 0.0
    for some_PF in directions_PF.split(100):  # at a time: 50,000 images on 1,000 directions would be 400 MB
        one_AP, other_AP = ((side @ some_PF.T).sort(dim=0).values.double() for side in sides)
        total += float((one_AP - other_AP).square().mean(dim=0).sum())
    return 3 * features_AF.shape[1] * total / PROJECTIONS


def check_features(*sides: Tensor) -> None:
    """Raises ValueError unless these are sets of at least two finite vectors of one length."""
    if len({side.shape[1:] for side in sides}) != 1:
        raise ValueError(f"features of shapes {' and '.join(str(tuple(side.shape)) for side in sides)} do not compare")
    if min(map(len, sides)) < 2:
        raise ValueError(_TOO_FEW)
    if not all(torch.isfinite(side).all() for side in sides):
        raise ValueError(_NOT_FINITE)
