"""The KL autoencoders of MAR (KL-16, LTH14/mar) and LightningDiT (VA-VAE, hustvl/LightningDiT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from mixar_core.errors import UserError
from mixar_import.importer import Importer, Published, Translation, count, shapes_of

#: MAR multiplies KL-16's latents by this
MAR_SCALE = 0.2325
#: entries of VA-VAE's file that its training needed: losses with their networks, DINOv2, and the map to its features
VAVAE_EXTRAS = ("loss.", "foundation_model.", "linear_proj.")

_SIZES = {"encoder.conv_in.weight": 4, "encoder.down.0.block.0.conv1.weight": 4, "quant_conv.weight": 4}


@frozen(kw_only=True)
class AutoencoderImportConfig:
    """What the tensors do not tell.

    Args:
        image_size: pixels of a side that the folder is for; a recipe that uses the tokenizer brings its own.
    """

    image_size: int = field(default=256, validator=ge(1))


class KL16Importer(Importer):
    """MAR's kl16.ckpt; the latents' deviation becomes 1 / 0.2325, by which MAR multiplies them."""

    entry = "model"

    def __init__(self, config: AutoencoderImportConfig) -> None:
        self.config = config

    def translate(self, published: Published) -> Translation:
        """A recipe that trains `continuous_tokenizer`."""
        part = {**autoencoder(published.tensors, what="KL-16 checkpoint"), "latent_std": 1 / MAR_SCALE}
        mean_C, std_C = torch.zeros(part["latent_channels"]), torch.full((part["latent_channels"],), 1 / MAR_SCALE)
        return _translation("kl16", part, self.config, published.tensors, mean_C, std_C)


class VAVAEImporter(Importer):
    """VA-VAE's vavae-imagenet256-f16d32-dinov2.pt; --statistics names its latents_stats.pt."""

    entry = "state_dict"
    takes_statistics = True

    def __init__(self, config: AutoencoderImportConfig) -> None:
        self.config = config

    def translate(self, published: Published) -> Translation:
        """A recipe that trains `continuous_tokenizer`. Entries of VAVAE_EXTRAS are dropped, by name."""
        tensors = {n: tensor for n, tensor in published.tensors.items() if not n.startswith(VAVAE_EXTRAS)}
        remarks = []
        for extra in VAVAE_EXTRAS:
            if dropped := sum(name.startswith(extra) for name in published.tensors):
                remarks.append(f"{dropped} tensors {extra}* dropped: VA-VAE's training alone needed them")
        part = autoencoder(tensors, what="VA-VAE checkpoint")
        channels = part["latent_channels"]
        if published.statistics is None:
            mean_C, std_C = torch.zeros(channels), torch.ones(channels)
            remarks.append("no --statistics given: latents stay as they are, mean 0 and deviation 1 a channel assumed")
        else:
            mean_C, std_C = _statistics(published.statistics, channels)
        return _translation("va_vae", part, self.config, tensors, mean_C, std_C, *remarks)


def autoencoder(tensors: Mapping[str, Tensor], *, what: str) -> dict[str, Any]:
    """The `kl` part's settings that a state dict's tensors tell."""
    sizes = shapes_of(tensors, _SIZES, what=what)
    channels = sizes["encoder.conv_in.weight"][0]
    levels = range(count(tensors, "encoder.down."))
    widths = [f"encoder.down.{level}.block.0.conv1.weight" for level in levels]
    sizes |= shapes_of(tensors, dict.fromkeys(widths, 4), what=what)
    return {
        "type": "kl",
        "latent_channels": sizes["quant_conv.weight"][0] // 2,
        "channels": channels,
        "channel_multipliers": [sizes[name][0] // channels for name in widths],
        "blocks": count(tensors, "encoder.down.0.block."),
        "encoder_attention": [2**level for level in levels if count(tensors, f"encoder.down.{level}.attn.")],
        "decoder_attention": [2**level for level in levels if count(tensors, f"decoder.up.{level}.attn.")],
        "mid_attention": "encoder.mid.attn_1.q.weight" in tensors,
    }


def _translation(
    base: str,
    part: dict[str, Any],
    config: AutoencoderImportConfig,
    tensors: Mapping[str, Tensor],
    mean_C: Tensor,
    std_C: Tensor,
    *remarks: str,
) -> Translation:
    recipe = {"trains": "continuous_tokenizer", "image_size": config.image_size, "continuous_tokenizer": part}
    statistics = {"latent_mean_C": mean_C, "latent_std_C": std_C}
    return Translation({"extends": base, **recipe}, {**tensors, **statistics}, remarks)


def _statistics(given: Mapping[str, Tensor], channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C,) as LightningDiT stores them: (1, C, 1, 1), entries `mean` and `std`."""
    found = []
    for key in ("mean", "std"):
        if key not in given:
            raise UserError(f"--statistics: has no {key}; LightningDiT's latents_stats.pt has mean and std")
        values = given[key].detach().float().flatten()
        if values.numel() != channels:
            raise UserError(f"--statistics: {key} has {values.numel()} values; the latents have {channels} channels")
        found.append(values)
    mean_C, std_C = found
    if not (mean_C.isfinite().all() and std_C.isfinite().all() and (std_C > 0).all()):
        raise UserError("--statistics: mean and std must be finite, and std above 0")
    return mean_C, std_C
