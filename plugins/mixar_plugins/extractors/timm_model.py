"""Any image model of the timm library as a feature extractor, with weights from a local file: DINOv2, for example."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from attrs.validators import deep_iterable, ge, gt, min_len, optional
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import file_sha256

_POSITIVE: Any = deep_iterable(gt(0.0))


@frozen
class TimmConfig:
    """Which model.

    Args:
        model: timm's name of it, for example `vit_small_patch14_dinov2.lvd142m`.
        weights_file: its weights, as timm publishes them: .safetensors, or a .pth of tensors alone.
        size: side to which images are resized; None: what the weights were trained at.
        mean, std: of pixels from 0 to 1, channel by channel, that it was trained with; None: those that timm knows.
        layers: which of its maps are given, 0 being the first and -1 the last: of a vision transformer the tokens after
            each block; None: all of them.
        norm: maps of a vision transformer after its last norm, as its own output is.
    """

    model: str
    weights_file: str = field(metadata={"path": True})
    size: int | None = field(default=None, validator=optional(ge(8)))
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = field(default=None, validator=optional(_POSITIVE))
    layers: tuple[int, ...] | None = field(default=None, validator=optional(min_len(1)))
    norm: bool = False


class TimmExtractor(FeatureExtractor):
    """Any timm model with a local weights file: its pooled features, and maps where timm can give them.

    Raises:
        UserError: timm is not installed, or has no such model; the file does not fit it, or it has no such layer.
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
        mean, std = config.mean or described["mean"], config.std or described["std"]
        self.register_buffer("mean_311", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std_311", torch.tensor(std)[:, None, None], persistent=False)
        self.mean_311: Tensor
        self.std_311: Tensor
        self.eval().requires_grad_(False)
        if config.layers is not None:
            self._try_layers()

    @property
    def label(self) -> str:
        """Names the model, the size at which it sees images, and pixels' statistics that are not its own."""
        config = self.config
        other = f", mean {config.mean}, std {config.std}" if config.mean or config.std else ""
        return f"timm {config.model} at {self.size} px{other}"

    def weights_digest(self) -> str:
        """Of the file."""
        return self.sha256

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Pooled feature vectors (B, F), float32 also under autocast."""
        with torch.autocast(images_B3HW.device.type, enabled=False):
            return self.network(self._seen(images_B3HW))

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """Maps (B, F_i, H_i, W_i) in the order of the network, of the images resized to `size`; as `layers` says."""
        config, network = self.config, self.network
        if not hasattr(network, "forward_intermediates"):
            raise UserError(f"extractor timm: {config.model} gives no feature maps; vectors only")
        layers = None if config.layers is None else [*config.layers]
        maps: list[Tensor] = network.forward_intermediates(
            self._seen(images_B3HW), indices=layers, norm=config.norm, intermediates_only=True
        )
        return maps

    def _try_layers(self) -> None:
        """See that there are such layers, which is known once one is asked for."""
        try:
            with torch.no_grad():
                self.maps(torch.zeros(1, 3, self.size, self.size))
        except AssertionError as error:
            where = f"extractor timm: layers {self.config.layers} of {self.config.model}"
            raise UserError(f"{where}: {error}") from error

    def _seen(self, images_B3HW: Tensor) -> Tensor:
        size = (self.size, self.size)
        resized_B3HW = F.interpolate(images_B3HW.float(), size, mode="bicubic", antialias=True)
        return (resized_B3HW / 2.0 + 0.5 - self.mean_311) / self.std_311


def _network(config: TimmConfig) -> Any:
    try:
        import timm  # seconds to import
    except ImportError as error:
        raise UserError("extractor timm: package timm is not installed: pip install 'mixar[perceptual]'") from error
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
