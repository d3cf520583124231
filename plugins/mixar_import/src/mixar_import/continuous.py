"""Importers of systems that predict continuous tokens, beside MAR's (importers.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mixar_import.importers import Importer, renamed


class RenamingImporter(Importer):
    """Names that change inside, too."""

    inner: ClassVar[Mapping[str, str]] = {}
    """Regular expression of a part of a name -> what stands there here; all are applied, in this order."""
    computed: ClassVar[str] = "$^"
    """Regular expression of the names of what a model computes for itself, and its file holds all the same."""

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our names, without those that are computed."""

        def ours(name: str) -> str:
            for old, new in cls.inner.items():
                name = re.sub(old, new, name)
            return name

        kept = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(cls.computed, name)}
        return super().rename(renamed(kept, ours))


class FlowARImporter(RenamingImporter):
    """FlowAR-S.pth, FlowAR-L.pth and FlowAR-H.pth, over the KL-16 in the folder --tokenizer names."""

    recipes = ("flowar_s", "flowar_l", "flowar_h")
    names = {"flownet.": "head.", "": "backbone."}
    inner = {
        r"\.mlp\.fc1_g\.": ".mlp.w1.",
        r"\.mlp\.fc1_x\.": ".mlp.w3.",
        r"\.mlp\.fc2\.": ".mlp.w2.",
        r"\.ada_lin\.(1\.)?": ".modulation.1.",
        r"\.crossattn\.": ".",
    }
    computed = r"mask|.*\.rope\.freqs"
    tokenizer_key = "continuous_tokenizer"
    settings = ("continuous_tokenizer.scales=[1, 2, 4, 8, 16]",)


class DeTokARImporter(RenamingImporter):
    """l-DeTok's autoregressive models, over the l-DeTok in the folder --tokenizer names. None is released."""

    names = {"diffloss.": "head.", "": "backbone."}
    inner = {
        r"^transformer\.blocks\.": "layers.",
        r"^final_layer\.adaLN_modulation\.": "modulation.",
        r"^(layers\.\d+\.)adaLN_modulation\.": r"\1modulation.",
    }
    entry, averaged_entry = "model", "model_ema"
    tokenizer_key = "continuous_tokenizer"


class ACDiTImporter(RenamingImporter):
    """ACDiT-XL-img.pt and ACDiT-H-img.pt, over the KL autoencoder in the folder --tokenizer names.

    A token is row, column, channel there, and channel, row, column here: of patches of several latents, numbers move.
    """

    recipes = ("acdit_xl", "acdit_h")
    names = {"": "backbone."}
    inner = {
        r"^y_embedder\.embedding_table\.": "class_emb.",
        r"^blocks\.": "layers.",
        r"^final_layer\.linear\.": "out.",
        r"^final_layer\.norm_final\.": "norm.",
        r"^final_layer\.adaLN_modulation\.": "modulation.",
        r"^(layers\.\d+\.)adaLN_modulation\.": r"\1modulation.",
    }
    entry = "model"
    tokenizer_key = "continuous_tokenizer"
    #: of a latent: Stable Diffusion's autoencoder
    channels: ClassVar[int] = 4
    #: what has an entry for each number of a token, and in which dimension
    of_token: ClassVar[Mapping[str, int]] = {"x_embedder.weight": 1, "out.weight": 0, "out.bias": 0}

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().rename(tensors)
        for name, dim in ((f"backbone.{name}", dim) for name, dim in cls.of_token.items()):
            if name in ours and ours[name].ndim > dim and ours[name].shape[dim] % cls.channels == 0:
                numbers = ours[name].unflatten(dim, (-1, cls.channels))
                ours[name] = numbers.transpose(dim, dim + 1).flatten(dim, dim + 1).contiguous()
        return ours
