"""The Inception-v3 of 2015 that FID and Inception Score are defined by, as torch-fidelity has it, from a local file."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor, Outputs
from mixar_core.pictures import to_uint8

#: sha256 of the released weights, pt_inception-2015-12-05-6726825d.pth: what published figures are made with
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_FILE = "pt_inception-2015-12-05-6726825d.pth"

#: The layers in order, cut where a map is taken: strides 2, 4, 8, 16, 32 of the 299 pixels the network sees.
_STAGES = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ("MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
    ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


@frozen
class InceptionConfig:
    """Where the weights lie.

    Args:
        weights_file: pt_inception-2015-12-05-6726825d.pth, which torch-fidelity's releases call
            weights-inception-2015-12-05-6726825d.pth.
        unknown_weights: whether a file of another checksum will do. Reports then call no figure comparable.
    """

    weights_file: str
    unknown_weights: bool = False


class Inception(FeatureExtractor):
    """Inception-v3 of 2015, as FID has it: 2,048 numbers and 1,008 unbiased logits an image; needs a weights file.

    Raises:
        UserError: the file is missing, not the published one, or does not fit.
    """

    feature_dim = 2048
    logit_dim = 1008
    is_inception = True

    def __init__(self, config: InceptionConfig) -> None:
        super().__init__()
        self.config = config
        content = _read(Path(config.weights_file).expanduser())
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.has_published_weights = self.sha256 == PUBLISHED_SHA256
        if not (self.has_published_weights or config.unknown_weights):
            raise UserError(
                f"extractor inception: {config.weights_file} is not {_FILE}: its sha256 is {self.sha256[:16]}..., not "
                f"{PUBLISHED_SHA256[:16]}...; unknown_weights=true takes it, and reports then call nothing comparable"
            )
        self.network = _network(content, config.weights_file)
        self.eval().requires_grad_(False)

    @property
    def label(self) -> str:
        """As torch-fidelity names it."""
        return "inception-v3-compat"

    def weights_digest(self) -> str:
        """Of the file, as others publish it too."""
        return self.sha256

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Feature vectors (B, 2048), float32 also under autocast, of the images rounded to 256 levels."""
        return self.outputs(images_B3HW).features_BF

    def outputs(self, images_B3HW: Tensor) -> Outputs:
        """Feature vectors (B, 2048) and logits without the last layer's bias (B, 1008)."""
        with torch.autocast(images_B3HW.device.type, enabled=False):
            features_BF, logits_BL = self.network(to_uint8(images_B3HW))
        return Outputs(features_BF, logits_BL)

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """Maps of five stages, (B, F_i, H_i, W_i), of the images enlarged or reduced to 299 pixels."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        pixels_B3HW = (images_B3HW.float() + 1.0) * 127.5
        resized = interpolate_bilinear_2d_like_tensorflow1x(pixels_B3HW, size=(299, 299), align_corners=False)
        x_BFHW, stages = (resized - 128.0) / 128.0, []
        for names in _STAGES:
            for name in names:
                x_BFHW = getattr(self.network, name)(x_BFHW)
            stages.append(x_BFHW)
        return stages


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        reason = error.strerror or "cannot be read"
        raise UserError(f"extractor inception: {path}: {reason}; needed: {_FILE}, from {URL_INCEPTION_V3}") from error


def _network(content: bytes, name: str) -> nn.Module:
    """torch-fidelity's network with these weights.

    It reads the file it is given with pickle's full powers. So it is given a copy, in memory, of what was read without.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    copy = io.BytesIO()
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it holds something else than tensors")
        torch.save(state, copy)
        copy.seek(0)
        layers = ["2048", "logits_unbiased"]
        return FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=copy)
    except (RuntimeError, ValueError, AttributeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"extractor inception: {name}: no weights of this network: {reason}") from error
