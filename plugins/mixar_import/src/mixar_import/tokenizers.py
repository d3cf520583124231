"""Importers of the tokenizers of LlamaGen, VAR, l-DeTok and TiTok, and of MaskGIT's that TiTok and RAR use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mixar_core.errors import UserError
from mixar_import.importers import Importer, LatentsImporter, renamed


class LlamaGenTokenizerImporter(Importer):
    """LlamaGen's vq_ds16_c2i.pt."""

    recipes = ("llamagen_vq",)
    names = {"quantize.": "quantizer."}
    left_out = ("quantize.codebook_used",)  # which codes were met lately
    entry = "model"

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its levels are numbered in running order, so that those of the decoder begin at the lowest resolution."""
        levels = [int(level) for name in tensors for level in re.findall(r"^decoder\.conv_blocks\.(\d+)\.", name)]
        last, middle = max(levels, default=0), ("block_1", "attn_1", "block_2")

        def ours(name: str) -> str:
            name = re.sub(r"^encoder\.conv_blocks\.(\d+)\.", r"encoder.down.\1.", name)
            name = re.sub(r"^decoder\.conv_blocks\.(\d+)\.", lambda found: f"decoder.up.{last - int(found[1])}.", name)
            name = re.sub(r"\.mid\.([012])\.", lambda found: f".mid.{middle[int(found[1])]}.", name)
            return re.sub(r"((?:up|down)\.\d+\.)res\.", r"\1block.", name)

        return super().rename(renamed(tensors, ours))


class VARTokenizerImporter(Importer):
    """VAR's vae_ch160v4096z32.pth."""

    recipes: ClassVar[tuple[str, ...]] = ("var_vae",)
    names = {
        "quantize.quant_resi.qresi_ls.": "quantizer.smooth.",
        "quantize.embedding.": "quantizer.stages.0.embedding.",
    }
    left_out = ("quantize.ema_vocab_hit_SV",)  # how often codes were met lately

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its attention has queries, keys and values in one convolution."""
        ours: dict[str, Tensor] = {}
        for name, tensor in super().rename(tensors).items():
            if ".qkv." in name and len(tensor) % 3 == 0:
                ours |= {name.replace("qkv", part): each for part, each in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                ours[name] = tensor
        return ours


class HARTTokenizerImporter(VARTokenizerImporter):
    """HART's tokenizer, whose sizes are not in its code: --recipe names one that extends hart_tokenizer."""

    recipes = ()


class DeTokImporter(LatentsImporter):
    """l-DeTok's detok-BB-gamm3.0-m0.7*.pth; --statistics names its stats.pkl."""

    recipes = ("detok_bb",)
    names = {
        "encoder.patch_embed.0.": "encoder.patch_embed.",
        "decoder.ffn.1.": "decoder.pixels.ffn.",
        "decoder.conv_out.": "decoder.pixels.conv_out.",
    }
    left_out = ("loss_module.", "discriminator.")
    entry, averaged_entry = "model", "model_ema"
    takes_statistics = True
    statistics_key = "detok-BB-gamm3.0-m0.7"
    """Of both released tokenizers."""

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its gated layers have gate and value in one matrix."""
        ours: dict[str, Tensor] = {}
        for name, tensor in super().rename(tensors).items():
            if ".mlp.w12." in name and len(tensor) % 2 == 0:
                gate, value = tensor.chunk(2)
                ours |= {name.replace(".w12.", ".w1."): gate, name.replace(".w12.", ".w3."): value}
            else:
                ours[name.replace(".mlp.w3.", ".mlp.w2.")] = tensor
        return ours

    def mean_and_std(self, statistics: Mapping[str, Tensor], channels: int) -> list[Tensor]:
        """Of the posterior's mean; the file lists those of its log-variance behind them."""
        found = [statistics.get(f"{self.statistics_key}.channel.{which}") for which in ("0", "1")]
        values = [each.flatten().float() for each in found if each is not None]
        if [len(each) for each in values] != [2 * channels, 2 * channels]:
            known = ", ".join(sorted({name.split(".channel.")[0] for name in statistics if ".channel." in name}))
            raise UserError(
                f"--statistics: has no mean and std of {2 * channels} channels each under {self.statistics_key}, "
                f"channel; it has {known or 'no statistics of channels'}"
            )
        return [each[:channels] for each in values]


class MaskGITVQGANImporter(Importer):
    """MaskGIT's VQGAN as TiTok and RAR use it: maskgit-vqgan-imagenet-f16-256.bin."""

    recipes = ("maskgit_vqgan",)
    names = {"quantize.": "quantizer."}

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its blocks are called otherwise than MaskBit's."""
        return super().rename(renamed(tensors, _maskgit_blocks))


class TiTokImporter(Importer):
    """TiTok's tokenizer_titok_*.bin, or model.safetensors of the same."""

    recipes: ClassVar[tuple[str, ...]] = (
        *("titok_l32", "titok_b64", "titok_s128"),
        *("titok_bl64_vq8k", "titok_bl128_vq8k", "titok_sl256_vq8k"),
    )
    names = {
        "latent_tokens": "encoder.latent_tokens",
        "quantize.": "quantizer.",
        "decoder.ffn.": "decoder.end.ffn.",
        "decoder.conv_out.": "decoder.end.conv_out.",
        "pixel_quantize.embedding.": "decoder.end.codes.",
        "pixel_decoder.": "decoder.end.decoder.",
    }

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Blocks of transformers have torch's names, and those of the pixel decoder other ones than MaskBit's."""

        def ours(name: str) -> str:
            if name.startswith("pixel_decoder."):
                return _maskgit_blocks(name)
            if name == "decoder.ffn.0.weight" and "decoder.ffn.2.weight" not in tensors:
                return "decoder.ffn.weight"
            if name == "decoder.ffn.0.bias" and "decoder.ffn.2.bias" not in tensors:
                return "decoder.ffn.bias"
            for old, new in _TORCH_BLOCKS.items():
                name = name.replace(old, new)
            return name

        return super().rename(renamed(tensors, ours))


class TiTokVAEImporter(LatentsImporter, TiTokImporter):
    """TiTok's titok_*_vae_c16.bin, with continuous tokens."""

    recipes = ("titok_ll32_vae_c16", "titok_bl64_vae_c16", "titok_bl128_vae_c16")


class OpenMagvit2Importer(Importer):
    """Open-MAGVIT2's imagenet_256_L.ckpt: its averaged weights, where it has such."""

    recipes = ("open_magvit2_256",)
    left_out = ("loss.",)
    entry = "state_dict"

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its middle and its resampling have other names than latent diffusion's."""

        def ours(name: str) -> str:
            name = re.sub(r"\.mid_block\.", ".mid.", name)
            return re.sub(r"\.(downsample|upsample)\.(?:conv1\.)?(weight|bias)$", r".\1.conv.\2", name)

        return super().rename(renamed(tensors, ours))

    def translate(
        self, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Averages stand under the names without their dots."""
        average = "model_ema."
        averaged = {name: tensor for name, tensor in tensors.items() if name.startswith(average)}
        kept = {name: tensor for name, tensor in tensors.items() if name not in averaged}
        found = {name: averaged.get(average + name.replace(".", "")) for name in kept if not name.startswith("loss.")}
        if not averaged:
            return super().translate(kept, statistics)
        if missing := [name for name, tensor in found.items() if tensor is None]:
            raise UserError(f"has averaged weights, but none of {missing[0]}")
        taken = {name: tensor for name, tensor in found.items() if tensor is not None}
        ours, remarks = super().translate({**kept, **taken}, statistics)
        return ours, [*remarks, "averaged weights taken (model_ema)"]


#: names inside a transformer's block
_TORCH_BLOCKS = {
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def _maskgit_blocks(name: str) -> str:
    name = re.sub(r"\.((?:down|up)\.\d+)\.block\.", r".\1.res_blocks.", f".{name}")
    return re.sub(r"\.mid\.(\d+)\.", r".mid.res_blocks.\1.", name)[1:]
