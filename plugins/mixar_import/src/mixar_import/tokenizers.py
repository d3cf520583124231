"""Importers of the discrete tokenizers of LlamaGen and VAR."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mixar_import.importers import Importer


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

        return super().rename({ours(name): tensor for name, tensor in tensors.items()})


class VARTokenizerImporter(Importer):
    """VAR's vae_ch160v4096z32.pth."""

    recipes = ("var_vae",)
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
