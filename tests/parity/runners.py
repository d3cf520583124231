"""The table of case kinds. A new kind is one file with a `run` function, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from tests.parity import (
    acdit,
    conv_tokenizer,
    detok,
    detok_generators,
    ear,
    fast,
    flowar,
    generator,
    hart,
    kl,
    latent_codes,
    magvit2,
    mar,
    next_token,
    titok,
    titok_generator,
)
from tests.parity.case import Case, NotACase


@frozen
class Runner:
    """How cases of one kind are run.

    Args:
        kind: its name.
        recognised_by: keys of a case's config that only this kind has, all of them.
        inputs: names (or patterns) of the tensors that are given; every other one is expected as output.
        run: (config, seeded weights, tensors) to the computed outputs by name.
        manifests: released files by the name of their tensor list; the function takes the listed tensors (on `meta`,
            under their published names) and raises Mismatch unless they map one to one onto our full-size part.
    """

    kind: str
    recognised_by: tuple[str, ...]
    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, Any], Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
    manifests: Mapping[str, Callable[[Mapping[str, Tensor]], None]]


RUNNERS = (
    # has all that VAR's case has
    Runner("hart", ("diff_width", "context_token"), hart.INPUTS, hart.run, {}),
    Runner("kl", ("embed_dim", "ch"), ("images", "eps"), kl.run, kl.MANIFESTS),
    Runner(
        "conv-tokenizer", ("quantizer_type", "token_size"), ("images",), conv_tokenizer.run, conv_tokenizer.MANIFESTS
    ),
    Runner(
        "generator",
        ("cls", "codebook_splits"),
        ("tokens", "tokens_in", "mask", "labels"),
        generator.run,
        generator.MANIFESTS,
    ),
    Runner(
        "disa",
        ("diffloss_d", "diff_annealing_strategy"),
        (
            "labels",
            "orders",
            "iters",
            "cfg_scale",
            "init_*",
            "noise_*",
            "train_t",
            "train_noise",
            "train_target",
            "train_z",
        ),
        fast.run_disa,
        {},
    ),
    Runner(
        "lazymar",
        ("diffloss_d", "lazy_mar"),
        ("labels", "orders", "iters", "cfg_scale", "init_*", "head_init", "head_noise", "head_z"),
        fast.run_lazymar,
        {},
    ),
    Runner(
        "acdit",
        ("ar_len", "square_block"),
        ("latents", "labels", "t", "noise", "drop_uniform", "init_*"),
        acdit.run,
        acdit.MANIFESTS,
    ),
    Runner(
        "detok-mar",
        ("diffloss_d", "MAR_SIZE_DICT"),
        (
            *("latents", "labels", "orders", "mask_rate", "stats_*", "*_draw_*", "*_draws_*"),
            *("head_x", "head_timestep", "head_z"),
        ),
        detok_generators.run_mar,
        detok_generators.MANIFESTS,
    ),
    Runner(
        "detok-ar",
        ("diffloss_d", "SIZE_DICT"),
        ("latents", "labels", "orders", "stats_*", "*_draw_*"),
        detok_generators.run_ar,
        {},
    ),
    Runner(
        "mar",
        ("diffloss_d", "buffer_size"),
        ("latents", "labels", "orders", "iters", "t", "noise", "head_init", "head_noise", "head_z*", "init_*"),
        mar.run,
        mar.MANIFESTS,
    ),
    Runner(
        "ear",
        ("scoreloss_d", "buffer_size"),
        (
            *("latents", "labels", "orders", "mask_rate", "train_drop_uniform", "train_uniform", "uniform_?"),
            *("head_mask", "head_target", "head_uniform", "head_uniform_pair", "head_z"),
        ),
        ear.run,
        ear.MANIFESTS,
    ),
    Runner(
        "titok-generator",
        ("config", "tokenizer", "cls"),
        ("tokens", "labels", "*_draw_*"),
        titok_generator.run,
        titok_generator.MANIFESTS,
    ),
    Runner("titok", ("MINI", "config"), ("images", "codes", "target_codes", "*_draw_*"), titok.run, titok.MANIFESTS),
    Runner("detok", ("SIZE_DICT", "token_channels"), ("images", "stats_*", "*_draw_*"), detok.run, detok.MANIFESTS),
    Runner(
        "llamagen-tokenizer",
        ("codebook_embed_dim",),
        ("images", "codes"),
        latent_codes.run_llamagen,
        latent_codes.LLAMAGEN_MANIFESTS,
    ),
    Runner("hart-tokenizer", ("v_patch_nums", "quantizer_type", "vocab_size"), ("images",), latent_codes.run_hart, {}),
    Runner(
        "var-tokenizer",
        ("v_patch_nums", "test_mode"),
        ("images", "codes"),
        latent_codes.run_var,
        latent_codes.VAR_MANIFESTS,
    ),
    Runner(
        "flowar",
        ("diffloss_d", "scale", "cross"),
        (
            *("latents", "labels", "init_*", "train_t", "train_noise", "train_drop_uniform", "sde_noise"),
            *("head_t", "head_x", "head_z", "head_noise"),
        ),
        flowar.run,
        flowar.MANIFESTS,
    ),
    *(Runner(*row) for row in next_token.ROWS),
    Runner("magvit2", ("ddconfig", "lossconfig"), ("images", "codes", "latents"), magvit2.run, magvit2.MANIFESTS),
)


def run_case(
    case: Case, *, device: torch.device | str = "cpu", bf16: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Expected outputs of a case, and what was computed for each of them (None: nothing was), on the CPU.

    Args:
        device: where it is computed: parts and inputs are made there. bf16: under autocast.

    Raises:
        NotACase: the config is of no kind known here, or lacks something this kind needs.
        Mismatch: the part built from the config has other tensors.
    """
    runner = next((r for r in RUNNERS if set(r.recognised_by) <= case.config.keys()), None)
    if runner is None:
        raise NotACase(f"its config is of no known kind ({', '.join(r.kind for r in RUNNERS)})")
    expected = {n: t for n, t in case.io.items() if not any(fnmatch(n, pattern) for pattern in runner.inputs)}
    device, found = torch.device(device), dict[str, Tensor | None]()
    try:
        with torch.no_grad(), device, torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            computed = runner.run(case.config, case.weights, {n: tensor.to(device) for n, tensor in case.io.items()})
    except KeyError as error:
        raise NotACase(f"a case of kind {runner.kind} needs {error}") from error
    for name in expected:
        found[name] = computed[name].cpu() if name in computed else None
    return expected, found
