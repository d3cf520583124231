from __future__ import annotations

import math

import numpy
import pytest
import torch

from mixar_core.perceptual import psnr_B
from mixar_eval.ssim import ssim_B


def test_psnr_is_that_of_images_from_0_to_1():
    black = torch.full((2, 3, 4, 4), -1.0)
    assert psnr_B(black, black).tolist() == pytest.approx([100.0, 100.0])
    assert psnr_B(black, black + 0.2).tolist() == pytest.approx([20.0, 20.0])  # off by 0.1 of the range
    assert psnr_B(black, black - 5.0).tolist() == pytest.approx([100.0, 100.0])


def slow_ssim(x: numpy.ndarray, y: numpy.ndarray) -> float:
    """Equation 13 of Wang et al. (2004), window by window, of one channel with values in [0, 1]."""
    window = numpy.array([[math.exp(-(i**2 + j**2) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    window /= window.sum()
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * covariance + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4))
            )
    return float(numpy.mean(found))


def test_ssim_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 17, 14, generator=generator) * 2 - 1
    decoded = (images * 0.7 + 0.3 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
    decoded[1, :, :8] = 1.0  # flat, where a variance may come out below 0
    images[1, :, :8] = 1.0
    pairs = zip(images.double().numpy() / 2 + 0.5, decoded.double().numpy() / 2 + 0.5, strict=True)
    expected = [numpy.mean([slow_ssim(x, y) for x, y in zip(*pair, strict=True)]) for pair in pairs]
    assert ssim_B(images, decoded).tolist() == pytest.approx(expected, abs=1e-5)
    assert 0.1 < expected[0] < 0.9
    assert ssim_B(images, images).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    with pytest.raises(ValueError, match="window of 11 pixels"):
        ssim_B(images[..., :10], decoded[..., :10])
