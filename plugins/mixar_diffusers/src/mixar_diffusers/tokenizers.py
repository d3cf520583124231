"""Any autoencoder of diffusers that takes images (B, 3, H, W) to one map of latents and back.

Of those with a Gaussian (AutoencoderKL and its relatives) latents are that Gaussian; of the others (AutoencoderDC,
AutoencoderTiny, VQModel) they are what the encoder says, without noise. A pretrained VQModel's latents are those before
quantization, which is the first step of its decoder: so latent diffusion uses it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from mixar_core import ContinuousTokenizer, Grid, ImageSize, Posterior, UserError
from mixar_core.meta import without_values

#: of latents without noise: a deviation of 3e-7
LOGVAR = -30.0


@frozen
class AutoencoderConfig:
    """An autoencoder that is trained here.

    Args:
        model: the name of its class, such as AutoencoderKL.
        settings: of that class.
    """

    model: str
    settings: Mapping[str, Any] = field(factory=dict)


@frozen
class PretrainedConfig:
    """An autoencoder that was trained elsewhere, as `save_pretrained` leaves it; its weights in safetensors.

    Args:
        source: its folder, or owner/name at the Hugging Face hub.
        revision: at the hub: a commit, tag or branch.
        subfolder: of the source, such as `vae` of a whole pipeline.
    """

    source: str = field(metadata={"path": lambda text, path: path.exists() or text.startswith((".", "/", "~"))})
    revision: str | None = None
    subfolder: str | None = None


class DiffusersTokenizer(ContinuousTokenizer):
    """What both share: an autoencoder behind the interface of mixar.

    Args:
        model: the autoencoder; stride and latent channels are what it does with an image of this size. What of it no
            pixel depends on smoothly (a codebook, what encodes the mask of an inpainter) is not trained.
    """

    def __init__(self, model: nn.Module, *, image_size: ImageSize) -> None:
        channels, stride, unused = _tried(model, image_size)
        for name in unused:
            model.get_parameter(name).requires_grad_(False)
        super().__init__(image_size=image_size, stride=stride, latent_channels=channels)
        self.model = model

    @property
    def last_layer(self) -> nn.Parameter | None:
        """Of the decoder, where it has the usual name."""
        return dict(self.model.named_parameters()).get("decoder.conv_out.weight")

    @property
    def encoder_layer(self) -> nn.Parameter | None:
        """Of the encoder, where it has the usual name."""
        return dict(self.model.named_parameters()).get("encoder.conv_out.weight")

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """The encoder's Gaussian over raw latents (B, C, h, w), in the images' dtype even under autocast."""
        mean_BChw, logvar_BChw = _encoded(self.model, images_B3HW)
        dtype = images_B3HW.dtype
        if logvar_BChw is None:
            logvar_BChw = torch.full_like(mean_BChw, LOGVAR)
        return Posterior(mean_BChw.to(dtype), logvar_BChw.to(dtype))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), not clamped."""
        return _decoded(self.model, latents_BChw)


class Autoencoder(DiffusersTokenizer):
    """An autoencoder of diffusers by the name of its class, trained here from scratch."""

    def __init__(self, config: AutoencoderConfig, *, image_size: ImageSize) -> None:
        kind = _class_named(config.model)
        if config.model == "VQModel":  # its codebook learns by a loss that a continuous tokenizer does not have
            raise UserError("model VQModel: only a pretrained one; vq and residual-vq are tokenizers that learn codes")
        try:
            model = kind(**config.settings)
        except (TypeError, ValueError, AssertionError, IndexError) as error:
            raise UserError(f"settings: {config.model} does not take them: {_line(error)}") from error
        super().__init__(model, image_size=image_size)


class Pretrained(DiffusersTokenizer):
    """A pretrained autoencoder of diffusers: a local folder, or one at the hub."""

    brings_weights = True

    def __init__(self, config: PretrainedConfig, *, image_size: ImageSize) -> None:
        where = f"source {config.source}"
        folder = Path(config.source)
        if not folder.is_dir() and config.revision is None:
            at_the_hub = "no such folder; of one at the hub, give its revision: a commit, tag or branch"
            raise UserError(f"{where}: {'no such folder' if folder.is_absolute() else at_the_hub}")
        place = {"revision": config.revision, "subfolder": config.subfolder}
        import diffusers

        try:
            said = diffusers.AutoencoderKL.load_config(config.source, **place)  # of any class
            kind = _class_named(str(said.get("_class_name")))
            model = kind.from_pretrained(config.source, **place, use_safetensors=True, low_cpu_mem_usage=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: cannot be loaded: {_line(error)}") from error
        super().__init__(model, image_size=image_size)
        self._start_statistics()

    def _start_statistics(self) -> None:
        """Diffusers' (latents - shift) * scale, until the latents are measured: then that is what counts."""
        config: Any = self.model.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = config.get("shift_factor") or 0.0, 1.0 / (config.get("scaling_factor") or 1.0)
        self.latent_mean_C.copy_(torch.as_tensor(mean))
        self.latent_std_C.copy_(torch.as_tensor(std))


def _encoded(model: Any, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and logvar of the latents; no logvar where there is no noise. Each class has its own name for them."""
    found = model.encode(images_B3HW)
    if "latent_dist" in found:
        return found.latent_dist.mean, found.latent_dist.logvar
    return found["latents" if "latents" in found else "latent"], None


def _decoded(model: Any, latents_BChw: Tensor) -> Tensor:
    return model.decode(latents_BChw).sample


def _tried(model: nn.Module, image_size: ImageSize) -> tuple[int, int, list[str]]:
    """Channels and stride of an image's latents, and the parameters that get no gradient; tried without values.

    Raises:
        UserError: the model does not take images of this size to a map of latents, and back.
    """
    pixels = Grid.of_pixels(image_size)
    said = f"{type(model).__name__} and images of {pixels.written} pixels do not go together"
    images_B3HW = torch.zeros(1, 3, pixels.height, pixels.width, device="meta")
    try:
        empty = without_values(model)
        with torch.enable_grad():
            latents_BChw, logvar_BChw = _encoded(empty, images_B3HW)
            decoded = _decoded(empty, latents_BChw)
            (decoded.sum() if logvar_BChw is None else decoded.sum() + logvar_BChw.sum()).backward()
    except Exception as error:  # a video model has no place for these, for one
        raise UserError(f"{said}: {_line(error)}") from error
    *_, height, width = latents_BChw.shape
    stride = pixels.height // height
    if latents_BChw.ndim != 4 or decoded.shape != images_B3HW.shape or pixels != Grid(height * stride, width * stride):
        shapes = " and ".join("x".join(map(str, tensor.shape[1:])) for tensor in (latents_BChw, decoded))
        raise UserError(f"{said}: latents and decoded image are {shapes}")
    unused = [name for name, parameter in empty.named_parameters() if parameter.grad is None]
    return latents_BChw.shape[1], stride, unused


def _class_named(name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and hasattr(kind, "encode") and hasattr(kind, "decode")):
        there = sorted(word for word in dir(diffusers) if word.startswith("Autoencoder") or word == "VQModel")
        raise UserError(f"model {name}: no autoencoder of diffusers {diffusers.__version__}; it has {', '.join(there)}")
    return kind


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
