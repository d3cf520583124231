"""Small files in the authors' wrapping, of the parity cases' seeded weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import torch
from attrs import evolve
from torch import Tensor

from tests.parity.case import Case, load_case

CASES = Path(__file__).parents[1] / "parity" / "cases"
#: the recipes whose sizes these files have: no shipped one is so small
RECIPES = {
    "mar": """
        extends: mar_b
        image_size: 16
        num_classes: 10
        head: {depth: 2, width: 40}
        backbone: {width: 48, depth: 2, heads: 4, buffer: 4}
        sampling: {steps: 64, cfg: 1.0}
    """,
    "kl16": """
        extends: kl16
        continuous_tokenizer: {latent_channels: 6, channels: 32, channel_multipliers: [1, 2], encoder_attention: [2]}
    """,
    "vavae": """
        extends: va_vae
        continuous_tokenizer:
          {latent_channels: 8, channels: 32, channel_multipliers: [1, 2],
          encoder_attention: [2], decoder_attention: [2]}
    """,
    "maskbit_tokenizer": """
        extends: maskbit_tokenizer_10bit
        discrete_tokenizer: {bits: 6, channels: 32, channel_multipliers: [1, 1, 2]}
    """,
    "maskbit_generator": """
        extends: maskbit_generator_10bit
        image_size: 32
        num_classes: 10
        prior: {bits: 6, stride: 4, width: 32, depth: 2, heads: 4, mlp_dim: 64}
    """,
    "vqgan_plus": """
        extends: vqgan_plus_10bit
        discrete_tokenizer: {codebook_size: 32, code_width: 8, channels: 32, channel_multipliers: [1, 2]}
    """,
    "maskgit_tokenizer": """
        extends: maskgit_tokenizer
        discrete_tokenizer:
          {codebook_size: 64, code_width: 8, channels: 32, channel_multipliers: [1, 2], downsample: conv}
    """,
    "maskgit_generator": """
        extends: maskbit_generator_10bit
        image_size: 16
        num_classes: 10
        prior: {type: maskgit, bits: 6, splits: 1, stride: 2, width: 32, depth: 2, heads: 4, mlp_dim: 64}
    """,
}


def weights(
    name: str, *, shapes: Mapping[str, tuple[int, ...]] | None = None, salt: str | None = None
) -> dict[str, Tensor]:
    """A case's state dict as its authors' code saves it; `shapes` replaces some."""
    case: Case = load_case(CASES / name)
    keys = {**case.keys, **{key: (shape, "float32") for key, shape in (shapes or {}).items()}}
    tensors = evolve(case, keys=keys, salt=salt or case.salt).weights
    if "quantize.codebook" in keys:
        codes, bits = keys["quantize.codebook"][0]
        powers = 2 ** torch.arange(bits, dtype=torch.int32)
        tensors["quantize.bits_to_indices"] = powers
        tensors["quantize.codebook"] = ((torch.arange(codes)[:, None] & powers) != 0).float() * 2 - 1
    if "bits_to_indices" in keys:
        tensors["bits_to_indices"] = 2 ** torch.arange(keys["bits_to_indices"][0][0], dtype=torch.int32)
    assert tensors.keys() == keys.keys()
    return tensors


def mar() -> dict[str, object]:
    """MAR's checkpoint: other weights under `model` than under `model_ema`, and all else that its training saves."""
    return {
        "model": weights("mar", salt="last step"),
        "model_ema": weights("mar"),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0, "_growth_tracker": 7},
        "args": argparse.Namespace(model="mar_tiny", lr=None, betas=(0.9, 0.95), pin_mem=True, output_dir="out"),
    }


def write_all(folder: Path) -> None:
    """One file of every kind with its recipe, and the statistics of VA-VAE's latents."""
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(dedent(recipe))
    vavae = {
        **weights("vavae"),
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(2, 3),
        "foundation_model.model.cls_token": torch.zeros(1, 1, 4),
        "linear_proj.weight": torch.zeros(4, 8, 1, 1),
    }
    codes = {"quantize.embedding.weight": (64, 8)}
    for name, content in {
        "checkpoint-last.pth": mar(),
        "kl16.ckpt": {"model": weights("kl16")},
        "vavae.pt": {"state_dict": vavae, "epoch": 3, "pytorch-lightning_version": "1.9"},
        "latents_stats.pt": {"mean": torch.arange(8.0).view(1, 8, 1, 1), "std": torch.full((1, 8, 1, 1), 2.0)},
        "maskbit_tokenizer.bin": weights("maskbit_tokenizer"),
        "maskbit_generator.bin": weights("maskbit_generator"),
        "vqgan_plus.bin": weights("vqgan_plus_tokenizer"),
        "maskgit_tokenizer.bin": weights("maskgit_tokenizer_legacy", shapes=codes),
        "maskgit_generator.bin": weights("maskgit_generator"),
    }.items():
        torch.save(content, folder / name)
