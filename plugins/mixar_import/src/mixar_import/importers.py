"""The importers: autoencoders of MAR and LightningDiT, MAR, and MaskBit's tokenizers and generators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mixar_core.errors import UserError
from mixar_import.importer import Importer

#: MAR multiplies KL-16's latents by this
MAR_SCALE = 0.2325
_BITS = (10, 12, 14, 16, 18)


class AutoencoderImporter(Importer):
    """What the two KL autoencoders share: mean and deviation of the latents, which the released files do not hold."""

    def translate(
        self, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        ours, remarks = super().translate(tensors, statistics)
        moments = ours.get("post_quant_conv.weight")
        if moments is None or moments.ndim != 4:  # not such a file, as the recipe will find
            return ours, remarks
        mean_C, std_C, assumed = self.latents(moments.shape[1], statistics)
        return {**ours, "latent_mean_C": mean_C, "latent_std_C": std_C}, [*remarks, *assumed]

    def sizes(self, tensors: Mapping[str, Tensor]) -> list[str]:
        width = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim == 4 and len(tensor)}
        levels = [level for level in range(16) if f"encoder.down.{level}.block.0.conv1.weight" in width]
        if not levels or not {"encoder.conv_in.weight", "quant_conv.weight"} <= width.keys():
            return []
        channels = width["encoder.conv_in.weight"]
        told = {
            "latent_channels": width["quant_conv.weight"] // 2,
            "channels": channels,
            "channel_multipliers": [
                width[f"encoder.down.{level}.block.0.conv1.weight"] // channels for level in levels
            ],
            "blocks": sum(f"encoder.down.0.block.{block}.conv1.weight" in width for block in range(16)),
            "encoder_attention": [2**level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in width],
            "decoder_attention": [2**level for level in levels if f"decoder.up.{level}.attn.0.q.weight" in width],
        }
        return [f"continuous_tokenizer.{key}={value}" for key, value in told.items()]

    def latents(self, channels: int, statistics: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor, list[str]]:
        """Mean and deviation (C,) of the latents, and what was assumed."""
        raise NotImplementedError


class KL16Importer(AutoencoderImporter):
    """MAR's kl16.ckpt; the latents' deviation becomes 1 / 0.2325, by which MAR multiplies them."""

    recipes = ("kl16",)
    entry = "model"

    def latents(self, channels: int, statistics: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor, list[str]]:
        return torch.zeros(channels), torch.full((channels,), 1 / MAR_SCALE), []


class VAVAEImporter(AutoencoderImporter):
    """VA-VAE's vavae-imagenet256-f16d32-dinov2.pt; --statistics names its latents_stats.pt."""

    recipes = ("va_vae",)
    entry = "state_dict"
    left_out = ("loss.", "foundation_model.", "linear_proj.")  # losses with their networks, DINOv2 and the map to it
    takes_statistics = True

    def latents(self, channels: int, statistics: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor, list[str]]:
        """As LightningDiT stores them: entries `mean` and `std`, (1, C, 1, 1)."""
        if statistics is None:
            assumed = "no --statistics given: latents stay as they are, mean 0 and deviation 1 a channel assumed"
            return torch.zeros(channels), torch.ones(channels), [assumed]
        for key in ("mean", "std"):
            if key not in statistics:
                raise UserError(f"--statistics: has no {key}; LightningDiT's latents_stats.pt has mean and std")
            if (count := statistics[key].numel()) != channels:
                raise UserError(f"--statistics: {key} has {count} values; the latents have {channels} channels")
        mean_C, std_C = (statistics[key].float().flatten() for key in ("mean", "std"))
        if not (mean_C.isfinite().all() and std_C.isfinite().all() and (std_C > 0).all()):
            raise UserError("--statistics: mean and std must be finite, and std above 0")
        return mean_C, std_C, []


class MarImporter(Importer):
    """MAR's checkpoint-last.pth, over the KL-16 in the folder --tokenizer names."""

    recipes = ("mar_b", "mar_l", "mar_h")
    names = {"diffloss.": "head.", "": "backbone."}
    entry, averaged_entry = "model", "model_ema"
    tokenizer_key = "continuous_tokenizer"


class MaskBitTokenizerImporter(Importer):
    """MaskBit's maskbit_tokenizer_*bit.bin: lookup-free, 10 to 18 bits."""

    recipes = tuple(f"maskbit_tokenizer_{bits}bit" for bits in _BITS)
    names = {"quantize.": "quantizer."}


class VQGANPlusTokenizerImporter(MaskBitTokenizerImporter):
    """MaskBit's vqgan_plus_*bit.bin: a learned codebook, 10 and 12 bits."""

    recipes = ("vqgan_plus_10bit", "vqgan_plus_12bit")


class MaskGITTokenizerImporter(MaskBitTokenizerImporter):
    """MaskBit's maskgit_tokenizer.bin: MaskGIT's, with the older decoder."""

    recipes = ("maskgit_tokenizer",)


class MaskBitGeneratorImporter(Importer):
    """MaskBit's maskbit_generator_*bit.bin, over the tokenizer in the folder --tokenizer names."""

    recipes = tuple(f"maskbit_generator_{bits}bit" for bits in _BITS)
    names = {"token_emb.": "input_proj."}  # its older name
    tokenizer_key = "discrete_tokenizer"


class MaskGITGeneratorImporter(MaskBitGeneratorImporter):
    """A generator with embedded tokens (MaskGIT's), over the tokenizer in the folder --tokenizer names."""

    recipes = ()  # none is released
