"""The linear probe: in closed form what the slow way finds, and a ratio of shares with its interval."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar_core.types import NO_CLASS
from mixar_eval.probe import RIDGES, Named, Probe, fit_probe, ratio_of


def clusters(count: int, *, classes: int = 3, width: int = 5, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Vectors about the mean of their class; the first class has half of them."""
    draw = torch.Generator().manual_seed(seed)
    means = 1.3 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (count,), generator=draw)
    labels[: count // 2] = 0
    return means[labels] + torch.randn(count, width, generator=draw), labels.tolist()


def slow(features: Tensor, labels: list[int], ridge: float) -> tuple[Tensor, Tensor]:
    """Coefficients (F + 1, L) of weighted ridge regression by its normal equations, and of whom it names the class."""
    counts = torch.tensor(labels).bincount().double()
    weights = (1 / (counts * len(counts)))[torch.tensor(labels)]
    mean = (weights[:, None] * features).sum(dim=0)
    scale = (weights[:, None] * (features - mean).square()).sum(dim=0).sqrt()
    x, y = (features - mean) / scale, torch.nn.functional.one_hot(torch.tensor(labels)).double()
    centre = (weights[:, None] * y).sum(dim=0)
    solved = torch.linalg.solve(
        (weights[:, None] * x).T @ x + ridge * torch.eye(x.shape[1]), (weights[:, None] * x).T @ (y - centre)
    )
    return x @ solved + centre, weights


def test_the_probe_is_ridge_regression_with_the_strength_that_leaving_one_out_prefers() -> None:
    features, labels = clusters(60)
    features = features.double()
    probe, truth = fit_probe(features, labels, 3), torch.tensor(labels)

    def left_out(ridge: float) -> float:
        """By solving again without each image, its place in mean, scale and class weights kept."""
        counts = truth.bincount().double()
        weights = (1 / (counts * 3))[truth]
        mean = (weights[:, None] * features).sum(dim=0)
        x = (features - mean) / (weights[:, None] * (features - mean).square()).sum(dim=0).sqrt()
        y = torch.nn.functional.one_hot(truth).double()
        centre, share = (weights[:, None] * y).sum(dim=0), 0.0
        for row in range(60):
            w = weights.clone()
            w[row] = 0.0
            solved = torch.linalg.solve(
                (w[:, None] * x).T @ x + ridge * torch.eye(5), (w[:, None] * x).T @ (y - centre)
            )
            share += float(weights[row]) * float((x[row] @ solved + centre).argmax() == truth[row])
        return share

    best = max(reversed(RIDGES), key=lambda ridge: round(left_out(ridge), 9))
    expected, _ = slow(features, labels, best)
    found = (features - probe.mean_F) @ probe.weights_FL + probe.bias_L
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    named = probe.named(features, labels)
    assert named.counts == tuple(truth.bincount().tolist()) and named.share is not None and named.share > 0.8
    unseen = probe.named(*clusters(300, seed=1)).share
    assert unseen is not None and 0.6 < unseen <= 1.0


def test_every_class_weighs_the_same_and_images_without_one_nothing() -> None:
    features, labels = clusters(80)
    with_others = torch.cat([features, 100.0 * torch.ones(2, 5)])
    probe = fit_probe(with_others, [*labels, NO_CLASS, NO_CLASS], 3)
    torch.testing.assert_close(probe.weights_FL, fit_probe(features, labels, 3).weights_FL)
    assert sum(probe.named(with_others, [*labels, NO_CLASS, NO_CLASS]).counts) == 80
    twice = torch.cat([features, *[features[row : row + 1] for row, label in enumerate(labels) if label == 0]])
    doubled = fit_probe(twice, [*labels, *[0] * labels.count(0)], 3)
    torch.testing.assert_close(doubled.mean_F, probe.mean_F)  # the first class is no heavier for being there twice
    assert (
        Named((5, 1), (10, 1)).share == 0.75 and Named((0, 3), (0, 4)).share == 0.75 and Named((0,), (0,)).share is None
    )
    with pytest.raises(ValueError, match="there are not two"):
        fit_probe(features, [1] * 80, 3)


def test_a_class_that_no_training_image_has_is_never_named() -> None:
    features, labels = clusters(80)
    probe = fit_probe(features, labels, 4)
    assert probe.named(features, [3] * 80).right[3] == 0


def test_a_ratios_interval_is_that_of_the_delta_method_where_images_are_many() -> None:
    one, other = Named((600, 300), (1000, 1000)), Named((900, 700), (1000, 1000))
    found = ratio_of(one, other)
    assert found is not None and found.value == pytest.approx(0.45 / 0.8)
    deviations = [
        math.sqrt(sum(r / n * (1 - r / n) / n for r, n in zip(side.right, side.counts, strict=True))) / 2
        for side in (one, other)
    ]
    half = 1.96 * math.hypot(deviations[0] / 0.45, deviations[1] / 0.8)
    assert found.low == pytest.approx(found.value * math.exp(-half), rel=0.01)
    assert found.high == pytest.approx(found.value * math.exp(half), rel=0.01)
    assert ratio_of(one, Named((0, 0), (5, 5))) is None and ratio_of(one, Named((0, 0), (0, 0))) is None
    of_one_class = ratio_of(Named((3, 9), (4, 0)), Named((2, 2), (4, 4)))  # the class that both have
    assert of_one_class is not None and of_one_class.value == pytest.approx(1.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4))
def test_a_ratio_lies_in_its_interval(pairs: list[tuple[int, int]]) -> None:
    named = Named(tuple(right for right, _ in pairs), tuple(right + more for right, more in pairs))
    found = ratio_of(named, named)
    if found is not None:
        assert found.low <= found.value == 1.0 <= found.high
    both = named + named
    assert both.share == pytest.approx(named.share) if named.share is not None else both.share is None


def test_a_probe_is_linear() -> None:
    probe = Probe(torch.zeros(2).double(), torch.eye(2).double(), torch.tensor([0.0, 0.5]).double())
    named = probe.named(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.2, 0.0]]), [0, 1, 0])
    assert named == Named((1, 1), (2, 1))
