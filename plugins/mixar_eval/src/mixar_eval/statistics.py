"""The Gaussian fitted to a set's feature vectors: all that a Frechet distance needs of the set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from attrs import frozen
from torch import Tensor

from mixar_core.distributed import Processes
from mixar_core.storage import write_whole

_CHUNK = 8192


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
        if features_AF.dim() != 2:
            raise ValueError(f"features of shape {tuple(features_AF.shape)} are no vectors (A, F)")
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
        arrays: dict[str, Any] = {"mu": self.mean_F.numpy(), "sigma": self.covariance_FF.numpy()}
        if self.count is not None:
            arrays["count"] = numpy.int64(self.count)
        if self.extractor is not None:
            arrays["extractor"] = numpy.str_(self.extractor)
        if features_AF is not None:
            arrays["features"] = features_AF.numpy()

        def write(unfinished: Path) -> None:
            with unfinished.open("wb") as file:
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
        count, first_F, second_FF = self.count, self.first_F, self.second_FF
        if processes is not None:
            count = int(processes.sum(torch.tensor(count)).cpu())
            first_F, second_FF = processes.sum(first_F).cpu(), processes.sum(second_FF).cpu()
        if count < 2:
            raise ValueError("a distance between sets needs at least two images in each")
        if not torch.isfinite(first_F).all():
            raise ValueError("features are not finite: the images hold NaN or infinity")
        mean_F = first_F / count
        covariance_FF = (second_FF - count * torch.outer(mean_F, mean_F)) / (count - 1)
        return Gaussian(mean_F, covariance_FF, count, extractor)
