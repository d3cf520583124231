"""Importers of priors that draw codes one after the other."""

from __future__ import annotations

from mixar_import.continuous import RenamingImporter

#: what Llama's names are here
LLAMA = {
    r"\.attention\.wqkv\.": ".attn.qkv.",
    r"\.attention\.wo\.": ".attn.proj.",
    r"\.feed_forward\.": ".mlp.",
    r"\.attention_norm\.": ".norm1.",
    r"\.ffn_norm\.": ".norm2.",
    r"\.embedding_table\.": ".",
}


class LlamaGenImporter(RenamingImporter):
    """LlamaGen's c2i_*.pt, over its tokenizer in the folder --tokenizer names. Files of B and L for 384 pixels have the
    tensors of those for 256: --recipe llamagen_b_384 says which it is."""

    recipes = ("llamagen_b", "llamagen_l", "llamagen_xl_384", "llamagen_xxl_384", "llamagen_3b_384")
    inner = LLAMA
    computed = "freqs_cis"  # rotary positions, in the files of B, L and XL for 384 pixels
    entry = "model"
    tokenizer_key = "discrete_tokenizer"


class RandARImporter(RenamingImporter):
    """RandAR's randar_0.3b_*.safetensors and randar_0.7b_*.safetensors, over LlamaGen's tokenizer."""

    recipes = ("randar_l", "randar_xl")
    inner = LLAMA
    tokenizer_key = "discrete_tokenizer"


class VARImporter(RenamingImporter):
    """VAR's var_d16.pth to var_d30.pth, over its tokenizer in the folder --tokenizer names."""

    recipes = tuple(f"var_d{depth}" for depth in (16, 20, 24, 30))
    names = {"head_nm.": "norm."}
    inner = {
        r"\.ada_lin\.": ".modulation.",
        r"\.mat_qkv\.": ".qkv.",
        r"\.scale_mul_1H11$": ".steepness",
        r"\.ffn\.": ".mlp.",
    }
    computed = r"(.*\.)?(attn_bias_for_masking|lvl_1L|zero_k_bias)"
    tokenizer_key = "discrete_tokenizer"


class RARImporter(RenamingImporter):
    """RAR's rar_b.bin to rar_xxl.bin, over MaskGIT's VQGAN in the folder --tokenizer names."""

    recipes = tuple(f"rar_{size}" for size in ("b", "l", "xl", "xxl"))
    names = {"adaln_before_head.": "norm.", "lm_head.": "head."}
    inner = {r"\.adaLN_modulation\.": ".modulation."}
    tokenizer_key = "discrete_tokenizer"


class OpenMagvit2ARImporter(RenamingImporter):
    """Open-MAGVIT2's AR_256_B.ckpt, _L and _XL, over its tokenizer in the folder --tokenizer names."""

    recipes = tuple(f"magvit2_ar_{size}" for size in ("b", "l", "xl"))
    names = {"transformer.": ""}
    inner = LLAMA
    left_out = ("first_stage_model.",)  # the tokenizer, which has a file of its own
    entry = "state_dict"
    tokenizer_key = "discrete_tokenizer"


KINDS = {
    "llamagen": LlamaGenImporter,
    "var": VARImporter,
    "randar": RandARImporter,
    "rar": RARImporter,
    "open-magvit2-ar": OpenMagvit2ARImporter,
}
