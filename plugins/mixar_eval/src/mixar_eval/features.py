"""The feature vectors of a set of images, collected batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.perceptual import FeatureExtractor
from mixar_core.pictures import to_uint8
from mixar_core.types import ImageBatch


@frozen(eq=False)
class Features:
    """What an extractor made of a set: vectors (A, F) and, where it classifies, logits (A, L); float32, on the CPU."""

    features_AF: Tensor
    logits_AL: Tensor | None = None

    def __len__(self) -> int:
        return self.features_AF.shape[0]


def as_saved(images_B3HW: Tensor) -> Tensor:
    """Images as a PNG holds them, float in [-1, 1] on 256 levels: what every metric must see.

    Args:
        images_B3HW: uint8, or float in [-1, 1] (values outside are clipped).
    """
    pixels = images_B3HW if images_B3HW.dtype == torch.uint8 else to_uint8(images_B3HW)
    return pixels.float() / 127.5 - 1.0


@torch.no_grad()
def collect_features(
    batches: Iterable[Tensor | ImageBatch],
    extractor: FeatureExtractor,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Features:
    """Run every batch through the extractor, as saved (see as_saved), in order.

    Args:
        batches: images (B, 3, H, W), uint8 or float in [-1, 1], or ImageBatches of them.
        extractor: on `device`.
        progress: called after each batch with its number of images.
    """
    features, logits = [torch.empty(0, extractor.feature_dim)], [torch.empty(0, extractor.logit_dim)]
    for batch in batches:
        images = batch.images_B3HW if isinstance(batch, ImageBatch) else batch
        found = extractor.outputs(as_saved(images.to(device)))
        features.append(found.features_BF.float().cpu())
        if found.logits_BL is not None:
            logits.append(found.logits_BL.float().cpu())
        if progress is not None:
            progress(len(images))
    return Features(torch.cat(features), torch.cat(logits) if extractor.logit_dim else None)
