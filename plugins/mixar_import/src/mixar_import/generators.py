"""Importers of TiTok's generators."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mixar_import.importers import Importer, renamed


class TiTokGeneratorImporter(Importer):
    """TiTok's generator_titok_*.bin, or model.safetensors of the same, over the tokenizer in --tokenizer's folder."""

    recipes = ("titok_l32_generator", "titok_b64_generator", "titok_s128_generator")
    names = {"model.": ""}
    tokenizer_key = "discrete_tokenizer"

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes and classes are in one table, the class stands first, and BERT's queries, keys and values are apart."""
        ours = super().rename(tensors)
        for bert in ("embeddings.word_embeddings.weight", "embeddings.weight"):
            if bert in ours and "lm_head.weight" in ours:
                codes = len(ours["lm_head.weight"]) + 1  # and the mask token
                ours |= {"tok_emb.weight": ours[bert][:codes], "class_emb.weight": ours[bert][codes:]}
                del ours[bert]
        for bert in ("embeddings.position_embeddings.weight", "pos_embed"):
            if bert in ours:
                ours["pos_emb"] = ours.pop(bert).flatten(0, -2).roll(-1, dims=0)[None]
        for name in [name for name in ours if ".attention.self.query." in name]:
            parts = [ours.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
            if found := [part for part in parts if part is not None]:
                ours[name.replace("self.query.", "in_proj_")] = torch.cat(found)
        return renamed(ours, _renamed)


#: published patterns -> ours
_BERT = {
    r"^embeddings\.token_type_embeddings\.": "type_emb.",
    r"^embeddings\.LayerNorm\.": "first_layer.0.",
    r"^encoder\.layer\.(\d+)\.attention\.in_proj_": r"transformer.layers.\1.0.mha.in_proj_",
    r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"transformer.layers.\1.0.mha.out_proj.",
    r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.": r"transformer.layers.\1.0.norm.",
    r"^encoder\.layer\.(\d+)\.intermediate\.dense\.": r"transformer.layers.\1.1.net.0.",
    r"^encoder\.layer\.(\d+)\.output\.dense\.": r"transformer.layers.\1.1.net.2.",
    r"^encoder\.layer\.(\d+)\.output\.LayerNorm\.": r"transformer.layers.\1.1.norm.",
    r"^norm\.": "transformer.norm.",
}
#: parts of a U-ViT's block, by their places in ours; where a skip comes in, they stand one place further back
_UVIT = {
    "norm1.": (0, "norm."),
    "attn.qkv.": (0, "mha.in_proj_"),
    "attn.proj.": (0, "mha.out_proj."),
    "norm2.": (1, "norm."),
    "mlp.fc1.": (1, "net.0."),
    "mlp.fc2.": (1, "net.2."),
}


def _renamed(name: str) -> str:
    for old, new in _BERT.items():
        name = re.sub(old, new, name)
    if found := re.match(r"^(in_blocks\.\d+|mid_block|out_blocks\.\d+)\.(.*)$", name):
        where, inner = f"transformer.{found[1]}", found[2]
        if inner.startswith("skip_linear."):
            return f"{where}.0.{inner.removeprefix('skip_linear.')}"
        for old, (place, new) in _UVIT.items():
            if inner.startswith(old):
                return f"{where}.{place + found[1].startswith('out_')}.{new}{inner.removeprefix(old)}"
    return name
