"""Importers: what a kind of published file is, told by a map of names and the recipes that such files fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.errors import UserError

#: MAR multiplies KL-16's latents by this
MAR_SCALE = 0.2325
_BITS = (10, 12, 14, 16, 18)


def renamed(tensors: Mapping[str, Tensor], ours: Callable[[str], str]) -> dict[str, Tensor]:
    """Tensors by what `ours` makes of their names.

    Raises:
        UserError: two become one.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (new := ours(name)) in found:
            raise UserError(f"has two tensors that are {new} here, one of them {name}")
        found[new] = tensor
    return found


@frozen
class ImporterConfig:
    """No settings: an importer's class says all, and sizes are those of a recipe."""


class Importer:
    """One kind of published file. Registered as a Part (kind `importer`) and built as `Class(config)`.

    A file is of the recipe, one of `recipes` or the user's, whose trained module has exactly the names and shapes of
    `translate`. Names of entries and wrappers are taken away before (`entries.state_dicts`).
    """

    recipes: ClassVar[tuple[str, ...]] = ()
    """Shipped recipes whose files these may be; empty where none is shipped, and `--recipe` must name one."""
    names: ClassVar[Mapping[str, str]] = {}
    """Published beginning of a name -> ours; the first that fits is replaced, and other names stay."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names that only the authors' training needed."""
    entry: ClassVar[str | None] = None
    """The entry that holds the state dict, as the authors write it."""
    averaged_entry: ClassVar[str | None] = None
    """The entry of averaged weights, where they write both."""
    tokenizer_key: ClassVar[Literal["continuous_tokenizer", "discrete_tokenizer"] | None] = None
    """The recipe's key of the tokenizer whose folder the user must name."""
    settings: ClassVar[tuple[str, ...]] = ()
    """ "key=value" over the recipe: what the tokenizer's folder does not bring, whose settings replace the recipe's."""
    takes_statistics: ClassVar[bool] = False
    """Whether statistics of the latents may be given."""

    def __init__(self, config: ImporterConfig) -> None:
        self.config = config

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our names, of a state dict by published ones.

        Raises:
            UserError: two become one.
        """

        def ours(name: str) -> str:
            old = next((old for old in cls.names if name.startswith(old)), "")
            return cls.names.get(old, "") + name.removeprefix(old)

        return renamed(tensors, ours)

    def translate(
        self, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """What the trained module gets, by our names, and what the user should read: what was left out or assumed.

        Args:
            tensors: the published state dict.
            statistics: `mean` and `std` of the latents, one value a channel; None where none are given.

        Raises:
            UserError: two names become one, or the statistics are not what they should be.
        """
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(self.left_out)}
        remarks = []
        for old in self.left_out:
            if count := sum(name.startswith(old) for name in tensors):
                remarks.append(f"{count} tensors {old}* dropped: the authors' training alone needed them")
        return self.rename(kept), remarks

    def sizes(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Where no shipped recipe has a file's sizes: "key=value" over the first of `recipes`, for kinds whose shapes
        tell all of them.

        Args:
            tensors: by our names.
        """
        return []


class LatentsImporter(Importer):
    """What continuous tokenizers share: mean and deviation of the latents, which the released files do not hold."""

    reads_latents: ClassVar[tuple[str, int]] = ("decoder.decoder_embed.weight", 2)
    """The decoder's first weight, by our name, and its dimensions; the second one is the channels."""
    latent_std: ClassVar[float] = 1.0

    def translate(
        self, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        ours, remarks = super().translate(tensors, statistics)
        name, dimensions = self.reads_latents
        weight = ours.get(name)
        if weight is None or weight.ndim != dimensions:  # not such a file, as the recipe will find
            return ours, remarks
        channels = weight.shape[1]
        mean_C, std_C = torch.zeros(channels), torch.full((channels,), self.latent_std)
        if statistics is not None:
            mean_C, std_C = self.mean_and_std(statistics, channels)
            if not (mean_C.isfinite().all() and std_C.isfinite().all() and (std_C > 0).all()):
                raise UserError("--statistics: mean and std must be finite, and std above 0")
        elif self.takes_statistics:
            remarks.append("no --statistics given: latents stay as they are, mean 0 and deviation 1 a channel assumed")
        return {**ours, "latent_mean_C": mean_C, "latent_std_C": std_C}, remarks

    def mean_and_std(self, statistics: Mapping[str, Tensor], channels: int) -> list[Tensor]:
        """Of each channel, as the file of statistics has them.

        Raises:
            UserError: it does not.
        """
        found = [statistics[key].float().flatten() for key in ("mean", "std") if key in statistics]
        if [len(values) for values in found] != [channels, channels]:  # LightningDiT stores them as (1, C, 1, 1)
            raise UserError(
                f"--statistics: has no mean and std of {channels} channels each; LightningDiT's latents_stats.pt has "
                "them"
            )
        return found


class AutoencoderImporter(LatentsImporter):
    """A KL autoencoder, whose shapes tell its sizes."""

    reads_latents = ("post_quant_conv.weight", 4)

    def sizes(self, tensors: Mapping[str, Tensor]) -> list[str]:
        width = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor.ndim == 4 and len(tensor)}
        levels = [level for level in range(16) if f"encoder.down.{level}.block.0.conv1.weight" in width]
        if not levels or not {"encoder.conv_in.weight", "quant_conv.weight"} <= width.keys():
            return []
        channels = width["encoder.conv_in.weight"]
        told = {
            "latent_channels": width["quant_conv.weight"] // 2,
            "channels": channels,
            "channel_multipliers": [width[f"encoder.down.{n}.block.0.conv1.weight"] // channels for n in levels],
            "blocks": sum(f"encoder.down.0.block.{block}.conv1.weight" in width for block in range(16)),
            "encoder_attention": [2**level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in width],
            "decoder_attention": [2**level for level in levels if f"decoder.up.{level}.attn.0.q.weight" in width],
        }
        return [f"continuous_tokenizer.{key}={value}" for key, value in told.items()]


class KL16Importer(AutoencoderImporter):
    """MAR's kl16.ckpt; the latents' deviation becomes 1 / 0.2325, by which MAR multiplies them."""

    recipes = ("kl16",)
    entry = "model"
    latent_std = 1 / MAR_SCALE


class VAVAEImporter(AutoencoderImporter):
    """VA-VAE's vavae-imagenet256-f16d32-dinov2.pt; --statistics names its latents_stats.pt."""

    recipes = ("va_vae",)
    entry = "state_dict"
    left_out = ("loss.", "foundation_model.", "linear_proj.")  # losses with their networks, DINOv2 and the map to it
    takes_statistics = True


class MarImporter(Importer):
    """MAR's checkpoint-last.pth, over the KL-16 in the folder --tokenizer names."""

    recipes: ClassVar[tuple[str, ...]] = ("mar_b", "mar_l", "mar_h")
    names = {"diffloss.": "head.", "": "backbone."}
    entry, averaged_entry = "model", "model_ema"
    tokenizer_key = "continuous_tokenizer"


class EarImporter(MarImporter):
    """EAR's checkpoint, wrapped as MAR's, over the KL-16 in the folder --tokenizer names. None is released."""

    recipes = ("ear_b", "ear_l", "ear_h")
    names = {"scoreloss.": "head.", "": "backbone."}


class DeTokMarImporter(MarImporter):
    """l-DeTok's mar_base.pth and mar_large.pth, over the l-DeTok in the folder --tokenizer names."""

    recipes = ("mar_b_detok", "mar_l_detok")


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
