"""Cases of faster sampling from MAR: DiSA's falling head steps and its solvers, and LazyMAR's reuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.plan import Sampler
from mixar_core.types import Condition, Step, Z
from mixar_plugins.backbones.reuse import Reuse
from mixar_plugins.heads.denoisers import LazyDenoiser
from mixar_plugins.heads.diffusion import DiffusionHead
from mixar_plugins.heads.gaussian_diffusion import reverse_step
from mixar_plugins.heads.mlp import DenoisingMLP
from mixar_plugins.heads.solvers import SOLVERS, process_of
from mixar_plugins.samplers.cosine import FALLS, CosineConfig, CosineSampler
from mixar_plugins.samplers.reuse import LazyMARConfig, LazyMARSampler
from tests.parity import mar
from tests.parity.mar import Replay


class Heard:
    """What a head was asked with, step by step."""

    def __init__(self, head: DiffusionHead) -> None:
        self.z: list[Tensor] = []
        self.steps: list[Step] = []
        sample = head.sample

        def listening(z: Z, step: Step, *, noise: Noise) -> Tensor:
            halves = [z.cond_BKD] if z.uncond_BKD is None else [z.cond_BKD, z.uncond_BKD]
            self.z.append(torch.cat(halves).flatten(0, 1))
            self.steps.append(step)
            return sample(z, step, noise=noise)

        head.sample = listening  # type: ignore[method-assign]


def _sampled(
    model: MixAR,
    sampler: Sampler,
    io: Mapping[str, Tensor],
    *,
    cfg: float = 1.0,
    cfg_schedule: str = "linear",
    temperature: float = 0.0,
    head_steps: int,
    noise: Sequence[Tensor] = (),
) -> tuple[Tensor, Heard]:
    """The latents of a loop, and what its head was asked with."""
    model.sampler, steps = sampler, int(io["iters"])
    rows = io["labels"].shape[0]
    init = [io[f"init_{i}"] for i in range(steps)]
    settings = SamplingConfig(
        steps=steps, cfg=cfg, cfg_schedule=cfg_schedule, temperature=temperature, head_steps=head_steps
    )
    assert all(len(row) % rows == 0 for row in init)
    heard = Heard(model.head)  # type: ignore[arg-type]
    *_, last = model.generation_steps(
        Condition(io["labels"]), settings=settings, noise=Replay(io["orders"], init, noise)
    )
    del model.head.sample  # the listener
    return last.latents_BChw, heard


# ---------------------------------------------------------------- DiSA


def run_disa(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    high, low = config["diff_upper_steps"], config["diff_lower_steps"]
    model = mar.build({**config, "num_sampling_steps": high})
    mar.load(model, weights)
    head, steps, scale = model.head, int(io["iters"]), float(io["cfg_scale"])
    assert isinstance(head, DiffusionHead)
    out: dict[str, Tensor] = {}
    for count in range(low, high + 1):
        out[f"timesteps_{count}"] = torch.tensor(process_of("disa", count).timesteps)
        out[f"betas_{count}"] = torch.tensor(process_of("disa", count).betas)
        out[f"ddim_timesteps_{count}"] = torch.tensor(process_of("ddim", count).timesteps)
    out["default_timesteps"] = torch.tensor(process_of("ddpm", high).timesteps)
    out["train_timesteps"] = torch.tensor(process_of("disa", 1000).timesteps)
    falls = {
        name.replace("-", "_"): CosineConfig(solver="disa", head_steps_end=low, head_steps_fall=name) for name in FALLS
    }
    falls |= {"constant": CosineConfig(solver="disa"), "default": CosineConfig()}
    falls["ddim"] = CosineConfig(solver="ddim", head_steps_end=low)
    drawn = [
        io[f"noise_linear_cfg_temp1_{step}_{k}"].chunk(2)[0]
        for step in range(steps)
        for k in range(int(io["head_evals_linear_cfg_temp1"][step]) - 1)  # the last one's is not used
    ]
    guided = {"cfg": scale}
    loops: dict[str, dict[str, Any]] = {
        **{f"{fall}_nocfg_temp0": {} for fall in ("linear", "cosine", "two_stage", "constant")},
        "linear_cfg_temp0": guided,
        "linear_cfgconstant_temp0": {**guided, "cfg_schedule": "constant"},
        "linear_cfg_temp1": {**guided, "temperature": 1.0, "noise": drawn},
        "ddim_linear_cfg": {**guided, "temperature": 1.0},
        "default_cfg_temp0": guided,
    }
    for name, settings in loops.items():
        fall = next(fall for fall in falls if name.startswith(fall))
        sampler, first = CosineSampler(falls[fall]), low if fall == "constant" else high
        out[f"sampled_{name}"], heard = _sampled(model, sampler, io, head_steps=first, **settings)
        counts = [step.head_steps or 0 for step in heard.steps]
        out[f"head_steps_{fall}"] = torch.tensor(counts)
        solver = falls[fall].solver or "ddpm"
        out[f"head_evals_{name}"] = torch.tensor([len(process_of(solver, count)) for count in counts])
        if settings:
            out[f"cfg_{name}"] = torch.tensor([step.cfg for step in heard.steps])
        if name == "linear_cfg_temp0":
            out |= {f"z_{name}_{step}": z for step, z in enumerate(heard.z)}
    mse, bound = head.token_losses(io["train_z"], io["train_target"], io["train_t"], io["train_noise"])
    return {**out, "train_mse": mse, "train_vb": bound, "train_loss": mse + bound}


# ---------------------------------------------------------------- LazyMAR


class Watched(Reuse):
    """Also notes the places that pruning let go on, and the decoder's whole output."""

    kept: dict[int, Tensor]
    whole: dict[int, Tensor]
    passes = 0

    def _everywhere(self, rows: int) -> Tensor:
        return torch.arange(self.backbone.layout.tokens).expand(rows, -1)

    def z_of_full(self, positions_BK: Tensor) -> Tensor:
        self.whole[Watched.passes] = super().z_of_full(self._everywhere(len(positions_BK)))
        Watched.passes += 1
        return super().z_of_full(positions_BK)

    def z_between(self, x_BTD: Tensor, positions_BK: Tensor, *, guided: bool) -> Tensor:
        self.whole[Watched.passes] = super().z_between(x_BTD, self._everywhere(len(positions_BK)), guided=guided)
        Watched.passes += 1
        return super().z_between(x_BTD, positions_BK, guided=guided)

    def _pruned(self, *args: Any) -> tuple[Tensor, Tensor]:
        x, where_BR = super()._pruned(*args)
        self.kept[Watched.passes] = where_BR
        return x, where_BR


def run_lazymar(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    model = mar.build(config)
    mar.load(model, weights)
    head, scale, count = model.head, float(io["cfg_scale"]), int(config["num_sampling_steps"])
    assert isinstance(head, DiffusionHead)
    out = {"head_timesteps": torch.tensor(process_of("lazymar", count).timesteps)}

    backbone_only = LazyMARSampler(LazyMARConfig())
    both = LazyMARSampler(LazyMARConfig(solver="lazymar"))
    for name, sampler, cfg_schedule in (
        ("lazy", both, "linear"),
        ("lazy_cfgconstant", both, "constant"),
        ("head_only", CosineSampler(CosineConfig(solver="lazymar")), "linear"),
        ("backbone_only", backbone_only, "linear"),
        ("plain", CosineSampler(CosineConfig()), "linear"),
    ):
        out[f"sampled_{name}"], heard = _sampled(
            model, sampler, io, cfg=scale, cfg_schedule=cfg_schedule, head_steps=count
        )
        if name == "lazy":
            out["cfg"] = torch.tensor([step.cfg for step in heard.steps])
            out["fresh"] = torch.tensor([int(step.refresh) for step in heard.steps])
            out |= {f"z_{step}": z for step, z in enumerate(heard.z)}
    return {**out, **_watched(model, both, io, scale, count), **_lazy_head(head, io, scale, count)}


def _watched(model: MixAR, sampler: Sampler, io: Mapping[str, Tensor], scale: float, count: int) -> dict[str, Tensor]:
    """What pruning lets go on, and the decoder's whole output."""
    from mixar_plugins.backbones import masked_state

    Watched.kept, Watched.whole, Watched.passes = {}, {}, 0
    masked_state.Reuse = Watched  # type: ignore[misc]
    try:
        _sampled(model, sampler, io, cfg=scale, head_steps=count)
    finally:
        masked_state.Reuse = Reuse  # type: ignore[misc]
    counts = {step: where_BR.shape[1] for step, where_BR in Watched.kept.items()}
    return {
        "kept_count": torch.tensor([*counts.values()]),
        **{f"kept_{step}": where_BR for step, where_BR in Watched.kept.items()},
        **{f"z_full_{step}": z for step, z in Watched.whole.items()},
    }


def _lazy_head(head: DiffusionHead, io: Mapping[str, Tensor], scale: float, count: int) -> dict[str, Tensor]:
    """The head alone: its input and its guided output at every step, the halves below each other."""
    out: dict[str, Tensor] = {}
    cond, uncond = io["head_z"].chunk(2)
    z = Z(cond[None], torch.arange(len(cond))[None], uncond[None])
    for name, temperature in (("temp0", 0.0), ("temp09", 0.9), ("temp1", 1.0)):
        Asked.rows, Asked.x, Asked.out, Asked.scale = [], [], [], scale
        noise = Replay(torch.empty(0), [io["head_init"]], [row.chunk(2)[0] for row in io["head_noise"][:-1]])
        solver = SOLVERS["lazymar"]
        SOLVERS["lazymar"] = attrs.evolve(solver, denoise=Asked)
        try:
            drawn = head.sample(z, Step(cfg=scale, temperature=temperature, solver="lazymar"), noise=noise)
        finally:
            SOLVERS["lazymar"] = solver
        # the original carries the unconditional half along, which nothing looks at, with noise of its own
        other, others, process = io["head_init"], [], process_of("lazymar", count)
        for k, said, added in zip(reversed(range(count)), Asked.out, io["head_noise"], strict=True):
            others.append(other)
            eps, variance = said.chunk(2)[1].chunk(2, dim=-1)
            other = reverse_step(process, k, other, eps, variance, added.chunk(2)[1], temperature)
        out["head_rows_per_step"] = torch.tensor(Asked.rows)
        out[f"head_cfg_{name}"] = torch.cat([drawn[0], other])
        out[f"head_cfg_{name}_x"] = torch.cat([torch.stack(Asked.x), torch.stack(others)], dim=1)
        out[f"head_cfg_{name}_model_out"] = torch.stack(Asked.out)
    return out


class Asked(LazyDenoiser):
    """Also notes what it was asked, for how many rows, and what it said."""

    rows: ClassVar[list[int]]
    x: ClassVar[list[Tensor]]
    out: ClassVar[list[Tensor]]
    scale: ClassVar[float]

    def __call__(
        self, net: DenoisingMLP, k: int, x_BKC: Tensor, time: Tensor, cond: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        said: list[Tensor] = []
        hook = net.final_layer.register_forward_hook(lambda module, given, result: said.append(result))
        eps, uncond, variance = super().__call__(net, k, x_BKC, time, cond)
        hook.remove()
        assert uncond is not None
        both = said[0].flatten(0, 1)  # one half of a step that is not full
        self.rows.append(len(both))
        self.x.append(x_BKC[0])
        guided = (uncond + self.scale * (eps - uncond))[0].repeat(2, 1)
        self.out.append(torch.cat([guided, both.chunk(2, dim=-1)[1].repeat(len(guided) // len(both), 1)], dim=-1))
        return eps, uncond, variance
