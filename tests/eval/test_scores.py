from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import Tensor, nn

from mixar_core.perceptual import FeatureExtractor, Outputs
from mixar_eval.distances import Gaussian, GaussianSum, frechet_distance, frechet_of, kernel_distance
from mixar_eval.features import as_saved, extract
from mixar_eval.scores import inception_score, precision_recall


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def class_ordered_logits(classes: int = 10, each: int = 100) -> Tensor:
    """Certain of its class, image after image of one class, then of the next."""
    labels = torch.arange(classes).repeat_interleave(each)
    return 8.0 * torch.eye(classes)[labels] + normal(classes * each, classes)


def shuffled(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]


def test_inception_score_is_the_closed_form_and_does_not_collapse_for_ordered_samples():
    certain = 50.0 * torch.eye(4).repeat(25, 1)
    assert inception_score(certain, splits=1).mean == pytest.approx(4.0, rel=1e-6)
    assert inception_score(torch.zeros(20, 4), splits=2).mean == pytest.approx(1.0, rel=1e-6)
    ordered = class_ordered_logits()
    score = inception_score(ordered)
    again = inception_score(shuffled(ordered))
    assert score.mean == pytest.approx(again.mean, rel=0.02) and score.mean > 5
    with pytest.raises(ValueError, match="9 images make no 10 splits"):
        inception_score(ordered[:9])


def test_distances_do_not_depend_on_the_order_of_samples():
    ordered, real = class_ordered_logits(), normal(700, 10, seed=3)
    mixed = shuffled(ordered)
    assert frechet_distance(mixed, real) == pytest.approx(frechet_distance(ordered, real), rel=1e-9)
    assert kernel_distance(mixed[:600], real[:600]) == pytest.approx(kernel_distance(mixed[:600].flip(0), real[:600]))
    assert precision_recall(mixed, real) == precision_recall(ordered, real)


def slow_precision(features: Tensor, reference: Tensor, k: int) -> float:
    radii = [sorted(math.dist(a, b) for b in reference.tolist())[k] for a in reference.tolist()]
    near = [
        any(math.dist(x, a) <= radius for a, radius in zip(reference.tolist(), radii, strict=True))
        for x in features.tolist()
    ]
    return sum(near) / len(near)


def test_precision_and_recall_are_those_of_the_paper():
    drawn, real = 0.7 * normal(40, 3, seed=1) + 0.8, normal(50, 3, seed=2)
    found = precision_recall(drawn, real, neighborhood=2)
    assert found.precision == pytest.approx(slow_precision(drawn, real, 2))
    assert found.recall == pytest.approx(slow_precision(real, drawn, 2))
    assert found.precision != found.recall and 0 < found.recall < found.precision < 1
    alike = precision_recall(real, real)
    assert (alike.precision, alike.recall) == (1.0, 1.0)
    with pytest.raises(ValueError, match="among 3 images none has 3 neighbours"):
        precision_recall(drawn, real[:3])


def test_a_gaussian_is_that_of_numpy_however_it_is_summed_up(tmp_path):
    features = 0.3 * normal(90, 6) + 5.0
    gaussian = Gaussian.of(features, extractor="toy")
    numpy.testing.assert_allclose(gaussian.mean_F, features.double().mean(dim=0))
    numpy.testing.assert_allclose(gaussian.covariance_FF, numpy.cov(features.double().numpy(), rowvar=False))
    total = GaussianSum(6)
    for part in features.split(32):
        total.add(part)
    summed = total.gaussian()
    assert summed.count == gaussian.count == 90
    assert abs(frechet_of(summed, gaussian)) < 1e-9
    gaussian.save(tmp_path / "stats.npz")
    with numpy.load(tmp_path / "stats.npz", allow_pickle=False) as stored:
        assert stored["mu"].shape == (6,) and stored["sigma"].shape == (6, 6) and stored["sigma"].dtype == "float64"
        assert int(stored["count"]) == 90 and str(stored["extractor"]) == "toy"
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"]


def test_two_known_gaussians_have_the_closed_form_to_a_millionth():
    """Of commuting covariances: |m - n|^2 + sum (sqrt a - sqrt b)^2 over the common axes."""
    axes = torch.linalg.qr(normal(40, 40).double()).Q
    a, b = torch.logspace(-6, 1, 40, dtype=torch.float64), torch.logspace(0, -7, 40, dtype=torch.float64)
    mean = 0.4 * normal(40, seed=1).double().abs()
    one = Gaussian(mean, axes @ torch.diag(a) @ axes.T)
    other = Gaussian(mean + 0.01, axes @ torch.diag(b) @ axes.T)
    expected = 40 * 0.01**2 + float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_of(one, other) == pytest.approx(expected, rel=1e-6)
    assert abs(frechet_of(one, one)) < 1e-3
    with pytest.raises(ValueError, match="statistics of 40 and of 2 numbers"):
        frechet_of(one, Gaussian.of(normal(5, 2)))


class Means(FeatureExtractor):
    """The channels' means, as vectors and, doubled, as logits."""

    feature_dim = logit_dim = 3

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight), requires_grad=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.weight * images_B3HW.mean(dim=(2, 3))

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        return [images_B3HW]

    def outputs(self, images_B3HW: Tensor) -> Outputs:
        return Outputs(self(images_B3HW), 2.0 * self(images_B3HW))


def test_features_are_of_what_a_png_holds_however_images_come():
    exact = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    saved = ((exact.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(as_saved(exact), as_saved(saved)) and not torch.equal(as_saved(exact), exact)
    assert torch.equal(as_saved(as_saved(exact)), as_saved(exact))
    found = extract(exact, Means())
    assert len(found["features"]) == 5 and torch.equal(found["logits"], 2 * found["features"])
    torch.testing.assert_close(found["features"], saved.float().mean(dim=(2, 3)) / 127.5 - 1)
    assert torch.equal(extract(as_saved(saved), Means())["features"], extract(saved, Means())["features"])


def test_an_identity_is_of_the_weights():
    assert Means().identity == Means().identity != Means(2.0).identity
    assert "Means" in Means().identity and not Means().gives_fid
