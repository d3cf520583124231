"""Quantizers beyond MaskBit's two: the unit sphere, and the entropy as LlamaGen and Open-MAGVIT2 count it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixar_plugins.tokenizers.quantizers import (
    BinarySphericalQuantizer,
    LookupFreeQuantizer,
    LookupQuantizer,
    Quantizer,
    QuantizerWeights,
)
from mixar_plugins.tokenizers.var import nearest_tick

WEIGHTS = QuantizerWeights(entropy_weight=1.0, entropy_temperature=0.3, commitment_weight=0.25)


def encoded(width: int) -> Tensor:
    return torch.randn(2, width, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)


def makes() -> list[Quantizer]:
    return [
        BinarySphericalQuantizer(5, WEIGHTS, entropy_rule="exact"),
        LookupFreeQuantizer(5, WEIGHTS, entropy_rule="exact"),
        LookupQuantizer(12, 5, WEIGHTS, entropy_rule="exact", normalised=True),
    ]


@pytest.mark.parametrize("quantizer", makes(), ids=lambda quantizer: type(quantizer).__name__)
def test_exact_entropies_are_those_of_the_softmax_over_all_codes(quantizer: Quantizer) -> None:
    features = encoded(5)
    losses = quantizer.train()(features).losses
    rows = quantizer.prepare(features).permute(0, 2, 3, 1).flatten(0, 2)
    codebook = quantizer.vectors(torch.arange(quantizer.codes))
    p = (-torch.cdist(rows, codebook).square() / WEIGHTS.entropy_temperature).softmax(dim=-1)
    mean = p.mean(dim=0)
    torch.testing.assert_close(losses["per_sample_entropy"], torch.special.entr(p).sum(dim=-1).mean())
    torch.testing.assert_close(losses["average_entropy"], -(mean * (mean + 1e-5).log()).sum())


def test_binary_spherical_codes_are_the_nearest_points_of_the_sphere() -> None:
    quantizer = BinarySphericalQuantizer(5, WEIGHTS).eval()
    features = encoded(5)
    quantized = quantizer(features)
    vectors = quantized.vectors_BEhw.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(18))
    every = quantizer.vectors(torch.arange(32))
    nearest = torch.cdist(F.normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2), every).argmin(dim=1)
    assert torch.equal(nearest, quantized.codes_BN.flatten())


@pytest.mark.parametrize("quantizer", [makes()[0], makes()[2]], ids=["binary", "lookup"])
def test_on_the_sphere_length_does_not_count_and_has_no_gradient(quantizer: Quantizer) -> None:
    features = encoded(5)
    quantized = quantizer.train()(features)
    assert torch.equal(quantized.codes_BN, quantizer(3 * features).codes_BN)
    (quantized.vectors_BEhw * torch.randn(2, 5, 3, 3)).sum().backward()
    assert features.grad is not None
    torch.testing.assert_close((features.grad * features).sum(dim=1), torch.zeros(2, 3, 3), atol=1e-5, rtol=0)


def test_vars_convolutions_go_to_the_scales_that_are_nearest() -> None:
    assert [nearest_tick(scale, 10, 4) for scale in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [nearest_tick(scale, 4, 4) for scale in range(4)] == [0, 1, 2, 3]
    assert nearest_tick(0, 1, 3) == 0
