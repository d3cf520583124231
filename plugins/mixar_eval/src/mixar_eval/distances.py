"""Distances between two sets of feature vectors, through torch-fidelity, for any extractor.

Neither is comparable between different counts or extractors. With few samples both have a floor: print the distance
of real images to other real images at the same count beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixar_eval.statistics import Gaussian

#: What torch-fidelity seeds subsets and shuffling with unless told otherwise: the same here gives the same figures.
SEED = 2020
#: Size and number of the random subsets over which the kernel distance is averaged, as is usual for KID.
KERNEL_SUBSET_SIZE = 1000
KERNEL_SUBSETS = 100


def frechet_distance(features_AF: Tensor, features_BF: Tensor) -> float:
    """Frechet distance between Gaussians fitted to the features (Heusel et al., 2017), in float64.

    |m_A - m_B|^2 + tr(S_A + S_B - 2 (S_A S_B)^(1/2)), the trace of the root taken from the eigenvalues. FID, where
    the features are Inception's.

    Args:
        features_AF: feature vectors of one set, (A, F).
        features_BF: feature vectors of the other, (B, F); the counts may differ.
    """
    check_features(features_AF, features_BF)
    return frechet_of(Gaussian.of(features_AF), Gaussian.of(features_BF))


def frechet_of(one: Gaussian, other: Gaussian) -> float:
    """Frechet distance between two Gaussians: see frechet_distance.

    Raises:
        ValueError: they are of different widths.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    if one.mean_F.shape != other.mean_F.shape:
        raise ValueError(f"statistics of {len(one.mean_F)} and of {len(other.mean_F)} numbers do not compare")
    # float64 on both sides: the function asserts equal types, and float32 means would cost digits.
    statistics = [
        {"mu": side.mean_F.double().numpy(), "sigma": side.covariance_FF.double().numpy()} for side in (one, other)
    ]
    return fid_statistics_to_metric(*statistics, False)[KEY_METRIC_FID]


def kernel_distance(features_AF: Tensor, features_BF: Tensor, *, seed: int = SEED) -> float:
    """Squared maximum mean discrepancy under the kernel (x . y / F + 1)^3 (Binkowski et al., 2018), in float64.

    Unbiased, so it may be slightly negative where both sets are alike. KID, where the features are Inception's. Up to
    1,000 vectors on either side it is exact; beyond, the mean over 100 random subsets of 1,000.

    Args:
        features_AF: feature vectors of one set, (A, F).
        features_BF: feature vectors of the other, (B, F); of unequal counts, the larger set is drawn from.
        seed: of the subsets.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    check_features(features_AF, features_BF)
    features = [side.detach().cpu().double() for side in (features_AF, features_BF)]
    subset_size = min(KERNEL_SUBSET_SIZE, *map(len, features))
    whole = all(len(side) == subset_size for side in features)
    result = kid_features_to_metric(
        *features,
        kid_subsets=1 if whole else KERNEL_SUBSETS,
        kid_subset_size=subset_size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,  # 1 / F
        kid_kernel_poly_coef0=1.0,
        rng_seed=seed,
        verbose=False,
    )
    return result[KEY_METRIC_KID_MEAN]


def check_features(*sides: Tensor) -> None:
    """See that sets of feature vectors can be compared.

    Raises:
        ValueError: they are no vectors, of different lengths, not finite, or fewer than two.
    """
    widths = {side.shape[1:] for side in sides}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise ValueError(f"features of shapes {' and '.join(str(tuple(side.shape)) for side in sides)} do not compare")
    for side in sides:
        if len(side) < 2:
            raise ValueError("a distance between sets needs at least two images in each")
        if not torch.isfinite(side).all():
            raise ValueError("features are not finite: the images hold NaN or infinity")
