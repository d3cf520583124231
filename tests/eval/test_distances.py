from __future__ import annotations

import math

import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from mixar_eval import distances
from mixar_eval.distances import PROJECTIONS, SEED, frechet_distance, kernel_distance, monge_distance


def gaussian(mean: torch.Tensor, covariance: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Vectors whose sample mean and (unbiased) sample covariance are exactly these."""
    x = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(dim=0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_is_the_closed_form():
    # Covariances that do not commute: tr sqrt(S_A S_B) of 2x2 matrices is sqrt(tr + 2 sqrt(det)) of the product.
    mean_a, mean_b = torch.tensor([0.0, 1.0]).double(), torch.tensor([2.0, -1.0]).double()
    cov_a = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    cov_b = torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    product = cov_a @ cov_b
    root = math.sqrt(torch.trace(product) + 2 * torch.linalg.det(product).sqrt())
    expected = 8.0 + float(torch.trace(cov_a) + torch.trace(cov_b)) - 2 * root
    measured = frechet_distance(gaussian(mean_a, cov_a, 300, 0), gaussian(mean_b, cov_b, 500, 1))
    assert measured == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_of_a_set_with_itself_is_zero_even_with_fewer_vectors_than_dimensions():
    features = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    assert abs(frechet_distance(features, features)) < 1e-3


@pytest.mark.parametrize(("one", "other"), [(40, 30), (30, 300), (300, 40), (25, 25)])
def test_frechet_distance_of_few_vectors_is_that_of_their_singular_values(one, other):
    """tr (S_A S_B)^(1/2) is the sum of the singular values of A B^T, of the centred vectors: no root of rounding."""
    x, y = (torch.randn(count, 64, generator=torch.Generator().manual_seed(count)) for count in (one, other))
    y = y + 0.1
    a, b = ((z.double() - z.double().mean(dim=0)) / math.sqrt(len(z) - 1) for z in (x, y))
    squares = float((x.double().mean(dim=0) - y.double().mean(dim=0)).square().sum() + a.square().sum())
    expected = squares + float(b.square().sum()) - 2 * float(torch.linalg.svdvals(a @ b.T).sum())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-10)
    assert abs(frechet_distance(x, x)) < 1e-10


@pytest.mark.parametrize(("one", "other"), [(15, 40), (40, 25), (30, 30), (30, 400)])
def test_kernel_distance_is_torch_fidelitys_over_its_subsets(monkeypatch, one, other):
    """By both ways: each kernel value once, and, of the last sets, subset by subset."""
    monkeypatch.setattr(distances, "KERNEL_SUBSET_SIZE", 20)
    x, y = (torch.randn(count, 6, generator=torch.Generator().manual_seed(count)).double() for count in (one, other))
    settings = {"kid_subsets": 100, "kid_subset_size": min(20, one), "kid_kernel": "poly", "kid_kernel_poly_degree": 3}
    settings |= {"kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0, "rng_seed": SEED, "verbose": False}
    theirs = kid_features_to_metric(x, y + 0.2, **settings)[KEY_METRIC_KID_MEAN]
    assert kernel_distance(x, y + 0.2) == pytest.approx(theirs, rel=1e-9)


def test_kernel_distance_is_the_unbiased_estimate():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=generator).double(), torch.randn(7, 3, generator=generator).double() + 0.5

    def kernel(a, b):
        return float((a @ b / 3 + 1) ** 3)

    def own(z):
        return sum(kernel(z[i], z[j]) for i in range(7) for j in range(7) if i != j) / 42

    between = sum(kernel(a, b) for a in x for b in y) / 49
    assert kernel_distance(x, y) == pytest.approx(own(x) + own(y) - 2 * between, rel=1e-10)


def test_kernel_distance_tells_equal_from_different_distributions_at_unequal_counts():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 8, generator=generator), torch.randn(300, 8, generator=generator)
    assert abs(kernel_distance(x, y)) < 0.1 < kernel_distance(x, y + 1)
    assert kernel_distance(x, y, seed=1) == kernel_distance(x, y, seed=1)


def test_monge_distance_on_a_line_is_the_closed_form():
    """Every direction is plus or minus one: three times the mean square between order statistics."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 1, generator=generator)
    y = x[torch.randperm(50, generator=generator)]
    assert monge_distance(x, y) == 0.0
    assert monge_distance(x, y + 2.0) == pytest.approx(3 * 2.0**2, rel=1e-5)
    assert monge_distance(x, 3 * y) == pytest.approx(3 * float((2 * x).square().mean()), rel=1e-5)


def test_monge_distance_is_that_of_a_slow_reference():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator) + 0.5
    directions = torch.randn(PROJECTIONS, 3, generator=torch.Generator().manual_seed(SEED)).tolist()
    total = 0.0
    for direction in directions:
        norm = math.hypot(*direction)
        one, other = (
            sorted(sum(a * b for a, b in zip(row, direction, strict=True)) / norm for row in side.tolist())
            for side in (x, y)
        )
        total += sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / 9
    assert monge_distance(x, y) == pytest.approx(3 * 3 * total / PROJECTIONS, rel=1e-5)


def test_monge_distance_of_many_is_that_of_their_distributions():
    """Of two Gaussians with one covariance 3 |m - n|^2; 3 F (s - t)^2 of two deviations: alpha = 3 F makes it so."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(1500, 16, generator=generator), torch.randn(2000, 16, generator=generator)
    shift = torch.full((16,), 0.5)
    assert monge_distance(x, y) < 0.2
    assert monge_distance(x, y + shift) == pytest.approx(3 * float(shift.square().sum()), rel=0.08)
    assert monge_distance(x, 2 * y) == pytest.approx(3 * 16 * 1.0, rel=0.05)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, monge_distance])
def test_features_that_cannot_be_compared_are_refused(distance):
    good = torch.randn(5, 4)
    with pytest.raises(ValueError, match="do not compare"):
        distance(good, torch.randn(5, 3))
    with pytest.raises(ValueError, match="not finite"):
        distance(good, good / 0)
    with pytest.raises(ValueError, match="two images"):
        distance(good, good[:1])
