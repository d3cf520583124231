"""Every registered part keeps its kind's contract. A new part is one line in SMALL; without it the suite fails."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixar import Part
from mixar.plugins import plugin_manager
from mixar_core import testing
from mixar_core.testing.parts import IMAGE_SIZE, StandInTokenizer
from tests import networks
from tests.plugins import test_next_priors

CONV = {"channels": 32, "channel_multipliers": (1, 1, 2), "blocks": 1}  # 32: group norm has 32 groups
LFQ = {**CONV, "bits": 6}
SMALL_HEAD = {"depth": 1, "width": 16}
FLOWAR_HEAD = {"depth": 1, "width": 64}
MASKED = {"width": 16, "depth": 1, "heads": 2, "buffer": 2}
HALVES = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
DETOK = {**HALVES, "latent_channels": 4}
TITOK = {**HALVES, "tokens": 6}
VQ = {**CONV, "codebook_size": 32, "code_width": 8}
CAUSAL = {"width": 16, "depth": 2, "heads": 2, "buffer": 2}
BERT = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "steps": 4}
PRIOR = {"bits": 6, "stride": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "steps": 4}


def write_parquet(folder: Path) -> dict[str, Any]:
    images = [{"bytes": _png(20 * row), "path": None} for row in range(8)]
    split = ["train", "validation"] * 4
    table = pa.table({"image": images, "label": [row % 3 for row in range(8)], "split": split})
    pq.write_table(table, folder / "images.parquet")
    return {"path": str(folder / "images.parquet")}


def write_folder(folder: Path) -> dict[str, Any]:
    for index, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(_png(50 * index))
    return {"path": str(folder)}


def write_unlabelled_folder(folder: Path) -> dict[str, Any]:
    for index, name in enumerate(("train", "val")):
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(_png(50 * index))
    return {"path": str(folder)}


def write_class_folders(folder: Path) -> dict[str, Any]:
    for number in range(8):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        (folder / "ab"[number % 2] / f"{number}.png").write_bytes(_png(20 * number))
    return {"path": str(folder), "validation": 0.3}


def write_inception(folder: Path) -> dict[str, Any]:
    return {"weights_file": str(networks.write_inception(folder / "inception.pth")), "unknown_weights": True}


def write_timm(folder: Path) -> dict[str, Any]:
    weights = networks.write_timm(folder / "model.safetensors")
    return {"model": networks.TIMM_MODEL, "weights_file": str(weights), "size": 64}


def write_for_datasets(folder: Path) -> dict[str, Any]:
    return {"path": "imagefolder", "data_dir": write_folder(folder)["path"], "cache_dir": str(folder / "cache")}


def write_for_streaming(folder: Path) -> dict[str, Any]:
    return {**write_for_datasets(folder), "streaming": True}


def _png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (value, value, value)).save(file, "PNG")
    return file.getvalue()


#: kind -> name -> settings of small ones to check; a function of a folder where files must lie there first.
SMALL: dict[str, dict[str, list[dict[str, Any] | Callable[[Path], dict[str, Any]]]]] = {
    "continuous-tokenizer": {
        "kl": [
            {**CONV, "latent_channels": 4, "latent_mean": 0.5, "latent_std": 2.0, "encoder_attention": (4,)},
            {**CONV, "latent_channels": 4, "norm": "none", "mid_attention": False, "encoder_attention": ()},
            {**CONV, "latent_channels": 4, "norm": "none", "encoder_attention": (), "scales": (1, 2, 4)},
        ],
        "titok-vae": [{**TITOK, "latent_channels": 4}],
        "detok": [{**DETOK, "gamma": 1.0}, {**DETOK, "mask_ratio": 0.5, "gamma": 0.0}],
    },
    "discrete-tokenizer": {
        "lfq": [LFQ, {**LFQ, "norm": "none"}, {**LFQ, "spherical": True}],
        "vq": [
            VQ,
            {**VQ, "legacy": True, "downsample": "pool"},
        ],
        "rvq": [{**VQ, "depth": 3}, {**VQ, "depth": 2, "shared": False}],
        "pyramid": [
            {**VQ, "scales": (1, 2, 4), "smoothing": 2},
            {**VQ, "scales": (1, 3, 4), "smoothing": 0, "shared": False, "upsample": "nearest"},
        ],
        "titok": [
            {**TITOK, "codebook_size": 32, "code_width": 8, "legacy": False},
            {
                **TITOK,
                "codebook_size": 32,
                "code_width": 8,
                "proxy_codes": 8,
                "proxy_width": 4,
                "proxy_channels": 32,
                "proxy_multipliers": (1, 1, 2),
                "proxy_blocks": 1,
            },
        ],
        "magvit2": [{**LFQ, "entropy_weight": 0.1}],
        "llamagen": [{**VQ, "latent_channels": 4, "entropy_weight": 0.1}],
        "hart": [
            {
                **CONV,
                "codebook_size": 32,
                "latent_channels": 8,
                "scales": (1, 2, 4),
                "smoothing": 2,
                "codes_alone": 0.5,
            }
        ],
        "var": [{**CONV, "codebook_size": 32, "latent_channels": 8, "scales": (1, 2, 4), "smoothing": 2}],
    },
    "prior": {
        "maskbit": [PRIOR, {**PRIOR, "prenorm": True, "splits": 1, "sampling_annealing": True}],
        "maskgit": [{**PRIOR, "splits": 1}, {**PRIOR, "splits": 2}],
        "titok": [{**BERT, "guidance_scale": 2.0}],
        "titok-uvit": [BERT],
        "ground-truth": [{}],
    },
    "backbone": {
        "causal": [
            CAUSAL,
            {**CAUSAL, "positions": "learned"},
            {**CAUSAL, "order": "raster", "activation_checkpointing": True},
        ],
        "acdit": [{"width": 64, "depth": 1, "block": 1}],
        "detok-ar": [
            {"width": 16, "depth": 1, "heads": 2},
            {"width": 16, "depth": 1, "heads": 2, "order": "raster", "activation_checkpointing": True},
        ],
        "flowar": [{"width": 16, "depth": 1, "heads": 2, "activation_checkpointing": True}],
        "masked": [
            MASKED,
            {**MASKED, "decoder_width": 24, "decoder_depth": 1, "activation_checkpointing": True},
            {**MASKED, "depth": 0, "decoder_depth": 2, "mlp_dropout": 0.0},
        ],
    },
    "conditioner": {},
    "injector": {
        "none": [{}],
        "dc-mix": [{}, {"projection": True}],
        "dc-sa": [{}],
        "dc-ca": [{}],
    },
    "head": {
        "diffusion": [
            {**SMALL_HEAD, "samples_per_token": 2, "sampling_steps": 4},
            *({**SMALL_HEAD, "sampling_steps": 4, "solver": name} for name in ("disa", "lazymar", "ddim", "dpm++")),
        ],
        "denoising": [{"sampling_steps": 4}, {"sampling_steps": 3, "solver": "ddim", "clip": 1.0}],
        "flow": [
            {**SMALL_HEAD, "samples_per_token": 2, "sampling_steps": 3},
            {**SMALL_HEAD, "solver": "heun", "time": "logit-normal", "sampling_steps": 2},
        ],
        "flowar": [
            {**FLOWAR_HEAD, "sampling_steps": 4},
            {**FLOWAR_HEAD, "sampling_steps": 3, "cross": True, "samples_per_token": 2, "solver": "sde"},
        ],
        "joint": [{**SMALL_HEAD, "heads": 2, "sampling_steps": 3, "samples_per_token": 2}],
        "mixture": [{**SMALL_HEAD, "components": 3, "candidates": 4}, {"depth": 0, "width": 8, "components": 1}],
        "energy": [{**SMALL_HEAD, "noise_channels": 4}, {**SMALL_HEAD, "alpha": 1.5, "train_temperature": 0.9}],
        "categorical": [{**SMALL_HEAD, "bins": 8}],
        "mse": [SMALL_HEAD],
    },
    "sampler": {
        "cosine": [
            {},
            {"order": "raster"},
            {"order": "raster", "tokens_per_step": 1},
            {"order": "subsample", "cfg_by": "before"},
            {"order": "halton", "tokens_per_step": 3},
            {"head_steps_end": 7, "head_steps_fall": "cosine", "solver": "disa"},
        ],
        "groups": [{}, {"head_steps_end": 5}],
        "gtr": [{}, {"shares": (1.0, 1.0, 1.0), "detail": 0.3}],
        "lazymar": [{}, {"full": 0, "period": 1, "order": "halton"}],
        "recap": [{"head_steps_share": 1.0}, {"head_steps_share": 1.0, "begin": 0.0}],
    },
    "dataset": {
        "parquet": [write_parquet],
        "image-folder": [write_folder, write_unlabelled_folder, write_class_folders],
        "datasets": [write_for_datasets, write_for_streaming],
    },
    "extractor": {
        "efficientnet-lite0": [{}, {"size": 64, "maps_scale": 2}],
        "efficientnet-lite1": [{"size": 64, "maps_scale": 2}],
        "efficientnet-lite2": [{"size": 64}],
        "inception": [write_inception],
        "timm": [write_timm],
    },
    "discriminator": {
        "patchgan": [{"channels": 8, "layers": 2}, {"channels": 4, "layers": 1}],
        "maskbit": [{"channels": 32, "stages": 2, "pool": 2}, {"channels": 8, "stages": 3, "pool": None}],
    },
    "optimizer": {
        "adamw": [{}],
        "muon": [{}, {"momentum": 0.5, "iterations": 3}],
        "schedule-free": [{}, {"power": 1.0, "rate_power": 0.0}],  # where its package is installed
    },
    "callback": {
        "progress": [{}],
        "tensorboard": [{}],
        "sample-grid": [{}],
        "throughput": [{}, {"peak_tflops": 1.0}],
        "stall-watch": [{}, {"window": 0.0}],
        "health": [{}],
        # The package need not be there; with a stand-in for it, the contract is checked in tests/plugins.
        "wandb": [{"mode": "disabled"}],
    },
}


#: What only runs (`demo`), and importers, which need files (tests/weights), have tests of their own.
UNCHECKED = {"importer"}  # tests/weights

REGISTRY = plugin_manager()
CASES = [
    pytest.param(kind, name, settings, id=f"{kind}-{name}-{index}")
    for kind, parts in SMALL.items()
    for name, variants in parts.items()
    for index, settings in enumerate(variants)
]


def ours() -> list[Part]:
    """Parts that come with mixar."""
    return [
        part for kind in SMALL for part in REGISTRY.parts(kind) if REGISTRY.plugin_of(part).name in ("builtin", "eval")
    ]


def test_every_part_is_checked() -> None:
    checked = {(kind, name) for kind in SMALL for name in SMALL[kind]}
    checked |= {("prior", name.partition(",")[0]) for name in test_next_priors.SETTINGS}  # beside codes of their kind
    checked |= {
        ("continuous-tokenizer", "hart-residual")
    }  # beside codes of its kind: tests/registry/test_hart_residual
    assert {(part.kind, part.name) for part in ours()} == checked


def test_no_part_but_these_is_checked_less() -> None:
    """What a class says of itself excuses it from a part of its contract."""
    excuses = {"sees_truth": {"ground-truth"}, "deterministic": {"mse"}, "brings_weights": set(), "squares_only": set()}
    for excuse, allowed in excuses.items():
        assert {part.name for part in ours() if getattr(part.component, excuse, False)} == allowed, excuse
    assert all(getattr(part.component, "meta_safe", True) for part in ours())


def test_every_kind_is_checked() -> None:
    assert plugin_manager().kinds.keys() == SMALL.keys() | UNCHECKED


@pytest.mark.parametrize(("kind", "name", "settings"), CASES)
def test_part_keeps_its_contract(kind: str, name: str, settings: Any, tmp_path: Path) -> None:
    if callable(settings):
        settings = settings(tmp_path)
    if name == "schedule-free":
        pytest.importorskip("schedulefree")
    part = REGISTRY.part(kind, name)
    testing.check_part(part.component, part.config(**settings))


@pytest.mark.parametrize("name", ["maskbit", "maskgit"])
def test_priors_do_without_classes(name: str) -> None:
    part = REGISTRY.part("prior", name)
    config = part.config(**PRIOR)
    testing.check_prior(partial(part.component, config, tokenizer=StandInTokenizer(), num_classes=0, data=None))
