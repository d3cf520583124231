"""The Gaussian fitted to a set's feature vectors: all that a Frechet distance needs of the set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from attrs import frozen
from torch import Tensor

from mixar_core.training.files import write_whole

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
        if len(features_AF) < 2:
            raise ValueError("a distance between sets needs at least two images in each")
        if not torch.isfinite(features_AF).all():
            raise ValueError("features are not finite: the images hold NaN or infinity")
        features_AF = features_AF.detach().cpu()
        mean_F = features_AF.mean(dim=0, dtype=torch.float64)
        # In float64 a part at a time: all of ImageNet's vectors at once would take twice their memory.
        covariance_FF = torch.zeros(len(mean_F), len(mean_F), dtype=torch.float64)
        for part_BF in features_AF.split(_CHUNK):
            centred_BF = part_BF.double() - mean_F
            covariance_FF.addmm_(centred_BF.T, centred_BF)
        return cls(mean_F, covariance_FF / (len(features_AF) - 1), len(features_AF), extractor)

    def save(self, path: Path) -> None:
        """Write an `.npz` with `mu` and `sigma`, which ADM's evaluation suite reads too, and what else is known.

        Raises:
            UserError: it cannot be written.
        """
        arrays: dict[str, Any] = {"mu": self.mean_F.numpy(), "sigma": self.covariance_FF.numpy()}
        if self.count is not None:
            arrays["count"] = numpy.int64(self.count)
        if self.extractor is not None:
            arrays["extractor"] = numpy.str_(self.extractor)

        def write(unfinished: Path) -> None:
            with unfinished.open("wb") as file:
                numpy.savez(file, **arrays)

        write_whole(path, write)
