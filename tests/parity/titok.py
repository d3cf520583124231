"""TiTok's tokenizers: the first release's, the direct one, and the one with continuous tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_import.importers import ImporterConfig
from mixar_import.tokenizers import MaskGITVQGANImporter, TiTokImporter
from mixar_plugins.tokenizers.titok import TiTok, TiTokVAE
from tests.parity import kl
from tests.parity.case import NotACase, load_strictly
from tests.parity.detok import Replay


def tokenizer_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> TiTok | TiTokVAE:
    """The part that a case's config describes, with its weights."""
    model, sizes = config["config"]["model"]["vq_model"], config["MINI"]["vit"]
    encoder, decoder = (sizes[model[f"vit_{half}_model_size"]] for half in ("enc", "dec"))
    if model["vit_enc_patch_size"] != model["vit_dec_patch_size"]:
        raise NotACase("encoder and decoder have patches of other sizes")
    shared = {
        "tokens": model["num_latent_tokens"],
        "patch": model["vit_enc_patch_size"],
        "width": encoder["width"],
        "depth": encoder["layers"],
        "heads": encoder["heads"],
        "decoder_width": decoder["width"],
        "decoder_depth": decoder["layers"],
        "decoder_heads": decoder["heads"],
    }
    image_size = config["config"]["dataset"]["preprocessing"]["crop_size"]
    if model.get("quantize_mode", "vq") == "vae":
        built = build(
            "continuous-tokenizer", "titok-vae", weights, image_size, latent_channels=model["token_size"], **shared
        )
        assert isinstance(built, TiTokVAE)
        return built
    pixel = config["MINI"]["pixel"]
    built = build(
        "discrete-tokenizer",
        "titok",
        weights,
        image_size,
        codebook_size=model["codebook_size"],
        code_width=model["token_size"],
        normalised=model.get("use_l2_norm", False),
        legacy=model.get("is_legacy", True),
        commitment_weight=model["commitment_cost"],
        proxy_codes=pixel["num_embeddings"],
        proxy_width=pixel["z_channels"],
        proxy_channels=pixel["hidden_channels"],
        proxy_multipliers=tuple(pixel["channel_mult"]),
        proxy_blocks=pixel["num_res_blocks"],
        **shared,
    )
    assert isinstance(built, TiTok)
    return built


def build(kind: str, name: str, weights: Mapping[str, Tensor], image_size: int, **settings: Any) -> torch.nn.Module:
    """The registered part with these settings and a file's tensors."""
    part = plugin_manager().part(kind, name)
    tokenizer: torch.nn.Module = part.component(part.config(**settings), image_size=image_size).eval()
    load_strictly(tokenizer, TiTokImporter(ImporterConfig()).translate(weights)[0], kept=kl.STATISTICS)
    return tokenizer


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Images are in [0, 1] there, as the networks see them."""
    tokenizer, images = tokenizer_of(config, weights), io["images"] * 2 - 1
    if isinstance(tokenizer, TiTokVAE):
        return _continuous(tokenizer, images, io)
    quantized = tokenizer.quantize(images)
    vectors_BE1N, codes_BN = quantized.vectors_BEhw, io["codes"].flatten(1)
    given_BE1N = tokenizer.code_vectors(codes_BN).transpose(1, 2)[:, :, None]
    on_grid, end = tokenizer.decoder.on_grid(vectors_BE1N), tokenizer.decoder.end
    out = {
        "encoder_out": tokenizer.encoded(images),
        "indices": quantized.codes_BN[:, None],
        "quantized": vectors_BE1N,
        "decoded": (tokenizer.decode_vectors(vectors_BE1N) + 1) / 2,
        "decoded_codes": (tokenizer.decode_vectors(given_BE1N) + 1) / 2,
        "decoder_pixels": end(on_grid),
    }
    losses = tokenizer.train().quantize(images).losses
    out |= {f"train_{name}_loss": losses[name][None] for name in ("quantizer", "commitment", "codebook")}
    if tokenizer.config.legacy:  # the first stage of its training: which of the proxy's codes stand at each place
        logits_BVhw = end.get_submodule("ffn")(on_grid)
        entropy = F.cross_entropy(logits_BVhw.flatten(2), io["target_codes"])
        out["decoder_logits"] = logits_BVhw
        out["stage1_reconstruction_loss"] = entropy[None]
        out["stage1_total_loss"] = (entropy + losses["quantizer"])[None]
    return out


def _continuous(tokenizer: TiTokVAE, images: Tensor, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    posterior = tokenizer.posterior(images)
    mean, logvar = posterior.mean_BChw, posterior.logvar_BChw
    sample = mean + torch.exp(0.5 * logvar) * next(Replay([io["sample_draw_000_randn"]]).draws)
    return {
        "encoder_out": torch.cat([mean, logvar], dim=1),
        "mean": mean,
        "logvar": logvar,
        "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2)),
        "sample": sample,
        "decoded": (tokenizer.decode_raw(sample) + 1) / 2,
        "decoded_mode": (tokenizer.decode_raw(mean) + 1) / 2,
    }


SIZES = {
    "l32": {"tokens": 32, "width": 1024, "depth": 24, "heads": 16},
    "b64": {"tokens": 64, "width": 768, "depth": 12, "heads": 12},
    "s128": {"tokens": 128, "width": 512, "depth": 8, "heads": 8},
}


def _full_size(tensors: Mapping[str, Tensor], *, size: str) -> None:
    encoder = SIZES[size]
    decoder = {f"decoder_{name}": value for name, value in encoder.items() if name != "tokens"}
    with torch.device("meta"):
        build("discrete-tokenizer", "titok", tensors, 256, **encoder, **decoder)


def _maskgit_vqgan(tensors: Mapping[str, Tensor]) -> None:
    part = plugin_manager().part("discrete-tokenizer", "vq")
    with torch.device("meta"):
        config = part.config(legacy=True, downsample="pool", codebook_size=1024, code_width=256)
        tokenizer = part.component(config, image_size=256)
    load_strictly(tokenizer, MaskGITVQGANImporter.rename(tensors))


MANIFESTS = {
    **{f"titok_{size}_tokenizer": partial(_full_size, size=size) for size in SIZES},
    "maskgit_vqgan_imagenet_f16_256": _maskgit_vqgan,
}
