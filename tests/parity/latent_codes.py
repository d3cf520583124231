"""LlamaGen's and VAR's tokenizers: encoder, quantizer and decoder, from images and from codes that are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_import.importers import Importer, ImporterConfig
from mixar_import.tokenizers import LlamaGenTokenizerImporter, VARTokenizerImporter
from mixar_plugins.tokenizers.hart import HARTResidual, HARTResidualConfig, HARTTokenizer
from mixar_plugins.tokenizers.llamagen import LlamaGenTokenizer
from mixar_plugins.tokenizers.var import VARTokenizer
from tests.parity.case import NotACase, load_strictly


def build(name: str, importer: type[Importer], tensors: Mapping[str, Tensor], **settings: Any) -> DiscreteTokenizer:
    """The registered part with these settings, and with a file's tensors."""
    part = plugin_manager().part("discrete-tokenizer", name)
    image_size = settings.pop("image_size")
    tokenizer = part.component(part.config(**settings), image_size=image_size).eval()
    load_strictly(tokenizer, importer(ImporterConfig()).translate(tensors)[0])
    assert isinstance(tokenizer, DiscreteTokenizer)
    return tokenizer


def llamagen(config: Mapping[str, Any], weights: Mapping[str, Tensor], *, image_size: int) -> LlamaGenTokenizer:
    """The part that a case's config describes."""
    if config["encoder_ch_mult"] != config["decoder_ch_mult"]:
        raise NotACase("encoder and decoder have other levels")
    tokenizer = build(
        "llamagen",
        LlamaGenTokenizerImporter,
        weights,
        image_size=image_size,
        channels=config["ch"],
        channel_multipliers=tuple(config["encoder_ch_mult"]),
        latent_channels=config["z_channels"],
        codebook_size=config["codebook_size"],
        code_width=config["codebook_embed_dim"],
        normalised=config["codebook_l2_norm"],
        commitment_weight=config["commit_loss_beta"],
        entropy_weight=config["entropy_loss_ratio"],
    )
    assert isinstance(tokenizer, LlamaGenTokenizer)
    return tokenizer


def run_llamagen(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`train2_*` is a second training pass; usage counts the codes of both, and code 0, with which its memory began."""
    tokenizer = llamagen(config, weights, image_size=io["images"].shape[-1])
    size = io["codes"].shape[1:]
    quantized = tokenizer.quantize(io["images"])
    vectors_BEhw = tokenizer.vectors_on_grid(io["codes"].flatten(1)).transpose(1, 2).unflatten(2, size)
    out = {
        "encoder_out": tokenizer.encoder(io["images"]),
        "pre_quant": tokenizer.encoded(io["images"]),
        "indices": quantized.codes_BN.unflatten(1, size),
        "quantized": quantized.vectors_BEhw,
        "decoded": tokenizer.decode_vectors(quantized.vectors_BEhw),
        "code_vectors": vectors_BEhw,
        "decoded_codes": tokenizer.decode_vectors(vectors_BEhw),
    }
    met = torch.zeros(1, dtype=torch.int64)
    for run, images in {"train": io["images"], "train2": io["images"].flip(0) * 0.5}.items():
        quantized = tokenizer.train().quantize(images)
        met = torch.cat([met, quantized.codes_BN.flatten()]).unique()
        losses = quantized.losses
        out |= {
            f"{run}_vq_loss": losses["codebook"][None],
            f"{run}_commit_loss": losses["commitment"][None],
            f"{run}_entropy_loss": losses["entropy"][None],
            f"{run}_codebook_usage": torch.tensor([len(met) / tokenizer.codebook_size]),
        }
    return out


def var(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], *, image_size: int, part: str = "var"
) -> VARTokenizer:
    """The part that a case's config describes."""
    if config["using_znorm"] or config["quant_conv_ks"] != 3 or config["share_quant_resi"] < 2:
        raise NotACase("using_znorm, quant_conv_ks or share_quant_resi is as no released file has it")
    tokenizer = build(
        part,
        VARTokenizerImporter,
        weights,
        image_size=image_size,
        channels=config["ch"],
        channel_multipliers=tuple(config.get("ch_mult", (1, 1, 2, 2, 4))),
        latent_channels=config["z_channels"],
        codebook_size=config["vocab_size"],
        scales=tuple(config["v_patch_nums"]),
        smoothing=config["share_quant_resi"],
        smoothed=abs(config["quant_resi"]),
        commitment_weight=config["beta"],
    )
    assert isinstance(tokenizer, VARTokenizer)
    return tokenizer


def run_var(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`f_hat`: the sums after each scale; `codes_var_input`: what a next-scale transformer is taught with."""
    tokenizer = var(config, weights, image_size=io["images"].shape[-1])
    quantizer = tokenizer.quantizer
    quantized = tokenizer.quantize(io["images"])
    decoded = tokenizer.decode_vectors(quantized.vectors_BEhw)
    return {
        "encoder_out": tokenizer.encoder(io["images"]),
        "pre_quant": tokenizer.encoded(io["images"]),
        **{f"indices_{scale}": codes for scale, codes in enumerate(quantizer.split(quantized.codes_BN))},
        "f_hat": sums(tokenizer, quantized.codes_BN),
        "decoded": decoded.clamp(-1, 1),
        "decoded_raw_every4": decoded[..., ::4, ::4],
        "codes_f_hat": sums(tokenizer, io["codes"]),
        "codes_decoded_every2": tokenizer.decode(io["codes"])[..., ::2, ::2],
        "codes_var_input": quantizer.known_before(io["codes"]),
        "phi_of_scale": torch.tensor([phi(tokenizer, scale) for scale in range(quantizer.count)]),
        "train_vq_loss": tokenizer.train().quantize(io["images"]).losses["quantizer"][None],
    }


def hart(config: Mapping[str, Any], weights: Mapping[str, Tensor], *, image_size: int) -> HARTTokenizer:
    """The part that a case's config describes."""
    tokenizer = var(config, weights, image_size=image_size, part="hart")
    assert isinstance(tokenizer, HARTTokenizer)
    return tokenizer


def run_hart(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The discrete route is VAR's; `train_*`: both training passes, and gradients of their loss."""
    images = io["images"]
    plain, tokenizer = (make(config, weights, image_size=images.shape[-1]) for make in (var, hart))
    quantizer, scales = tokenizer.quantizer, range(tokenizer.quantizer.count)
    discrete, codes_BN = plain.quantize(images), tokenizer.encode(images)
    summed, parts = sums(plain, discrete.codes_BN), sums(tokenizer, codes_BN)
    both = HARTResidual(HARTResidualConfig(), image_size=images.shape[-1], tokenizer=tokenizer).beside(codes_BN)
    residual, last = both.posterior(images).mean_BChw, parts[-1] - parts[-2]
    whole = parts[-1] + residual
    out = {
        "encoder_out": tokenizer.encoder(images),
        "quant_in": tokenizer.encoded(images),
        **{f"indices_{scale}": codes for scale, codes in enumerate(quantizer.split(discrete.codes_BN))},
        **{f"fhat_{scale}": summed[scale] for scale in scales},
        "decoded_discrete": plain.decode(discrete.codes_BN),
        "decoded_discrete_unclamped": plain.decode_vectors(discrete.vectors_BEhw),
        **{f"hybrid_indices_{scale}": codes for scale, codes in enumerate(quantizer.split(codes_BN))},
        "hybrid_rest": _rows(residual + last),
        "hybrid_last_embedding": _rows(last),
        "hybrid_residual_target": _rows(residual),
        "teacher_input": quantizer.known_before(codes_BN),
        **{f"next_input_{scale}": quantizer.shrink(summed[scale], scale + 1) for scale in scales[:-1]},
        f"next_input_{scales[-1]}": whole,
        "hybrid_fhat": whole,
        "hybrid_decoded": both.decode(both.encode(images)),
        "hybrid_decoded_unclamped": both.decode_raw(residual),
        "hybrid_fhat_discrete": parts[-1],
        "hybrid_decoded_discrete": tokenizer.decode(codes_BN),
    }
    return {**out, **_hart_training(tokenizer, images)}


def _hart_training(tokenizer: HARTTokenizer, images: Tensor) -> dict[str, Tensor]:
    with torch.enable_grad():
        features = tokenizer.encoded(images).detach().requires_grad_()
        quantized = tokenizer.quantizer.train()(features)
        loss = quantized.losses["quantizer"]
        loss.backward()
    codebook = tokenizer.get_parameter("quantizer.stages.0.embedding.weight").grad
    assert features.grad is not None and codebook is not None
    met = len(quantized.codes_BN.unique()) / tokenizer.codebook_size
    codes = {f"train_indices_{n}": each for n, each in enumerate(tokenizer.quantizer.split(quantized.codes_BN))}
    out = {**codes, "train_grad_codebook": codebook, "train_grad_features": features.grad}
    for route, vectors_BEhw in {"continuous": features.detach(), "discrete": quantized.vectors_BEhw.detach()}.items():
        out |= {
            f"train_{route}_quantized": vectors_BEhw,
            f"train_{route}_out": tokenizer.decode_vectors(vectors_BEhw),
            f"train_{route}_vq_loss": loss.detach()[None],
            f"train_{route}_usage_percent": torch.tensor([100 * met]),
        }
    reconstruction = F.mse_loss(out["train_discrete_out"], images)
    out["train_discrete_loss_recon"] = reconstruction[None]
    out["train_discrete_loss_total"] = (reconstruction + loss.detach())[None]
    return out


def _rows(vectors_BEhw: Tensor) -> Tensor:
    return vectors_BEhw.flatten(2).transpose(1, 2)


def sums(tokenizer: VARTokenizer, codes_BN: Tensor) -> Tensor:
    """The sum after each scale, (scales, B, E, h, w)."""
    return torch.stack([*tokenizer.quantizer.spreads(codes_BN)]).cumsum(dim=0)


def phi(tokenizer: VARTokenizer, scale: int) -> int:
    """The convolution that a scale's vectors are smoothed by."""
    return tokenizer.quantizer.smooth_of(scale, tokenizer.quantizer.count, len(tokenizer.quantizer.smooth))


def _full_llamagen(tensors: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        build("llamagen", LlamaGenTokenizerImporter, tensors, image_size=256)


def _full_var(tensors: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        build("var", VARTokenizerImporter, tensors, image_size=256)


LLAMAGEN_MANIFESTS = {"llamagen_vq_ds16_c2i": _full_llamagen}
VAR_MANIFESTS = {"var_vae_ch160v4096z32": _full_var}
