"""Structural similarity of images and what a tokenizer makes of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Window and constants of SSIM as published, for values in [0, 1].
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def ssim_B(images_B3HW: Tensor, decoded_B3HW: Tensor) -> Tensor:
    """Structural similarity of each image, (B,), at most 1 (Wang et al., 2004), of images in [-1, 1].

    As published: a Gaussian window of 11 x 11 pixels with deviation 1.5, wherever it lies wholly inside the image; of
    red, green and blue on their own, then averaged.

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(images_B3HW.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM has a window of {_WINDOW} pixels; the images are {tuple(images_B3HW.shape[-2:])}")
    x, y = (side.float().clamp(-1.0, 1.0) / 2.0 + 0.5 for side in (images_B3HW, decoded_B3HW))
    mean_x, mean_y, square_x, square_y, product = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2.0 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _blurred(maps_5B3HW: Tensor) -> Tensor:
    """Each map under the window: columns, then rows, as the window is a product of both."""
    offsets = torch.arange(_WINDOW, device=maps_5B3HW.device, dtype=torch.float32) - _WINDOW // 2
    weights = torch.exp(-offsets.square() / (2.0 * _SIGMA**2))
    weights = weights / weights.sum()
    x = maps_5B3HW.flatten(0, 2)[:, None]
    x = F.conv2d(F.conv2d(x, weights[None, None, :, None]), weights[None, None, None, :])
    return x[:, 0].unflatten(0, maps_5B3HW.shape[:3])
