"""Any image model of the timm library as a feature extractor, with weights from a local file: DINOv2, for example."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from attrs.validators import ge, optional
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import file_sha256


@frozen
class TimmConfig:
    """Which model.

    Args:
        model: timm's name of it, for example `vit_small_patch14_dinov2.lvd142m`.
        weights_file: its weights, as timm publishes them: .safetensors, or a .pth of tensors alone.
        size: side to which images are resized; None: what the weights were trained at.
    """

    model: str
    weights_file: str
    size: int | None = field(default=None, validator=optional(ge(8)))


class TimmExtractor(FeatureExtractor):
    """Any timm model with a local weights file: its pooled features, and maps where timm can give them.

    Raises:
        UserError: timm has no such model, or the file does not fit it.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        network = _network(config)
        self.sha256 = file_sha256(Path(config.weights_file).expanduser())
        described = network.pretrained_cfg
        self.size: int = config.size or described["input_size"][-1]
        self.feature_dim = network.head_hidden_size
        self.network = network
        self.register_buffer("mean_311", torch.tensor(described["mean"])[:, None, None], persistent=False)
        self.register_buffer("std_311", torch.tensor(described["std"])[:, None, None], persistent=False)
        self.mean_311: Tensor
        self.std_311: Tensor
        self.eval().requires_grad_(False)

    @property
    def label(self) -> str:
        """Names the model and the size at which it sees images."""
        return f"timm {self.config.model} at {self.size} px"

    def weights_digest(self) -> str:
        """Of the file."""
        return self.sha256

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Pooled feature vectors (B, F), float32 also under autocast."""
        with torch.autocast(images_B3HW.device.type, enabled=False):
            return self.network(self._seen(images_B3HW))

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """Maps (B, F_i, H_i, W_i), shallow to deep, of the images resized to `size`."""
        if not hasattr(self.network, "forward_intermediates"):
            raise UserError(f"extractor timm: {self.config.model} gives no feature maps; vectors only")
        return self.network.forward_intermediates(self._seen(images_B3HW), intermediates_only=True)

    def _seen(self, images_B3HW: Tensor) -> Tensor:
        size = (self.size, self.size)
        resized_B3HW = F.interpolate(images_B3HW.float(), size, mode="bicubic", antialias=True)
        return (resized_B3HW / 2.0 + 0.5 - self.mean_311) / self.std_311


def _network(config: TimmConfig) -> Any:
    import timm  # seconds to import

    path = Path(config.weights_file).expanduser()
    if ":" in config.model or not timm.is_model(config.model):  # a colon would send timm to a hub
        raise UserError(f"extractor timm: {config.model}: timm {timm.__version__} has no model of that name")
    if not path.is_file():
        raise UserError(f"extractor timm: weights_file {path}: no such file")
    # timm's own loading fits position embeddings to the size and unpickles tensors alone. custom_load would hand the
    # file to a model's reader of other formats. The classifier goes afterwards: num_classes=0 would accept a file with
    # half of the weights.
    overlay = {"file": str(path), "custom_load": False}
    settings: dict[str, Any] = {}
    try:
        described = timm.get_pretrained_cfg(config.model)
        if config.size is not None and described is not None and described.fixed_input_size:
            settings["img_size"] = config.size
        network: Any = timm.create_model(config.model, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError, SafetensorError, pickle.PickleError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"extractor timm: {path} does not fit {config.model}: {reason}") from error
    network.reset_classifier(0)
    return network
