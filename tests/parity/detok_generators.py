"""l-DeTok's generators: its MAR, which is MAR's class over other latents, and its autoregressive transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixar_core.masking import split_by_order, take
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.types import NO_CLASS, Condition, Grid, Guidance, MaskSplit, Step, TokenLayout, Z
from mixar_import.continuous import DeTokARImporter
from mixar_plugins.backbones.detok_ar import DeTokARBackbone, DeTokARConfig
from mixar_plugins.backbones.masked import MaskedBackbone
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mixar_plugins.heads.gaussian_diffusion import reverse_step
from mixar_plugins.heads.solvers import process_of
from mixar_plugins.injectors.none import NoGuidance, NoGuidanceConfig
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
from tests.parity import mar
from tests.parity.case import load_strictly
from tests.parity.detok import tokenizer_of
from tests.parity.mar import Replay

PREFIX = "tokenizer."


def run_mar(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    sizes, side = config["MAR_SIZE_DICT"][config["model_size"]], config["img_size"] // config["tokenizer_patch_size"]
    as_mar = {
        "img_size": side,
        "vae_stride": 1,
        "patch_size": config["patch_size"],
        **{f"{half}_embed_dim": sizes["width"] for half in ("encoder", "decoder")},
        **{f"{half}_depth": sizes["layers"] for half in ("encoder", "decoder")},
        **{f"{half}_num_heads": sizes["heads"] for half in ("encoder", "decoder")},
        "mlp_ratio": 4.0,
        "vae_embed_dim": config["token_channels"],
        "class_num": config["num_classes"],
        "buffer_size": config["buffer_size"],
        **{key: config[key] for key in ("diffloss_d", "diffloss_w", "num_sampling_steps")},
    }
    model = mar.build(as_mar)
    mar.load(model, {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)})
    head, backbone = model.head, model.backbone
    assert isinstance(head, DiffusionHead) and isinstance(backbone, MaskedBackbone)
    tokens_BNC = model.patchify(io["latents"])
    hidden = -int(-tokens_BNC.shape[1] * io["mask_rate"].item() // 1)
    split = split_by_order(io["orders"], hidden)
    mask_BN = split.masked_BN.float()

    def both(condition: Condition) -> tuple[Tensor, Tensor]:
        encoded = backbone.encode(tokens_BNC, split, condition, Guidance())
        return encoded, backbone.decode(encoded, split, Guidance())

    encoded, z_BND = both(Condition(io["labels"]))
    out = {"tokens": tokens_BNC, "mask": mask_BN, "encoder_out": encoded, "decoder_z": z_BND}
    z_BND = both(Condition(io["labels"]).dropped(io["train_draw_000_rand"] < config["label_drop_prob"]))[1]
    losses = _losses(head, z_BND, tokens_BNC, io["train_draw_001_randint"], io["train_draw_002_randn"])
    out |= {f"train_{name}_per_token": loss for name, loss in losses.items()}
    weight = mask_BN.flatten().repeat(config["diffusion_batch_mul"])
    out["train_loss"] = ((losses["loss"] * weight).sum() / weight.sum())[None]
    return {**out, **_head(head, io), **_loops(model, config, weights, io, _mar_draws)}


def _losses(head: DiffusionHead, z_BND: Tensor, tokens_BNC: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Of each token, the whole batch repeated."""
    repeats = len(t) // z_BND.shape[:2].numel()
    z, target = (rows.flatten(0, 1).repeat(repeats, 1) for rows in (z_BND, tokens_BNC))
    mse, bound = head.token_losses(z, target, t, noise)
    return {"mse": mse, "vb": bound, "loss": mse + bound}


def _head(head: DiffusionHead, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    net = head.net
    out = {
        "head_net": net.denoise(io["head_x"], net.time_embed(io["head_timestep"]), net.cond_embed(io["head_z"])),
    }
    rows = len(io["head_z"])
    for name, temperature in (("t1", 1.0), ("t0", 0.0)):
        draws = io[f"head_{name}_draws_randn"]
        z, noise = Z(io["head_z"][None], torch.arange(rows)[None]), Replay(torch.empty(0), [draws[0]], [*draws[1:]])
        out[f"head_{name}"] = head.sample(z, Step(temperature=temperature), noise=noise)[0]
    cond, uncond = io["head_z"].chunk(2)
    first, *steps = _draws(io, "head_cfg39")
    noise = Replay(torch.empty(0), [first], [drawn[: len(cond)] for drawn in steps])
    guided = Z(cond[None], torch.arange(len(cond))[None], uncond[None])
    drawn = head.sample(guided, Step(cfg=3.9, temperature=0.9), noise=noise)[0]
    return {**out, "head_cfg39": torch.cat([drawn, other_half(head, cond, uncond, first, steps, 3.9, 0.9)])}


def other_half(
    head: DiffusionHead, cond: Tensor, uncond: Tensor, x: Tensor, draws: list[Tensor], cfg: float, temperature: float
) -> Tensor:
    """What the original computes for the unconditional rows, beside: the same predicted noise, but their own state,
    variance and noise on the way."""
    net, process, own = head.net, process_of("ddpm", head.config.sampling_steps), x
    for k, noise in zip(reversed(range(len(process))), draws, strict=True):
        time = net.time_embed(torch.tensor([process.timesteps[k]]))
        predicted = net.denoise(x.repeat(2, 1), time, net.cond_embed(torch.cat([cond, uncond])))
        (eps, there), (variance, theirs) = (part.chunk(2) for part in predicted.chunk(2, dim=-1))
        eps = there + cfg * (eps - there)
        own = reverse_step(process, k, own, eps, theirs, noise[len(x) :], temperature, head.config.clip)
        x = reverse_step(process, k, x, eps, variance, noise[: len(x)], temperature, head.config.clip)
    return own * head.config.scale


def _draws(io: Mapping[str, Tensor], run: str) -> list[Tensor]:
    return [io[name] for name in sorted(io) if name.startswith(f"{run}_draw_")]


def _mar_draws(draws: list[Tensor], rows: Sequence[int], steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Starting noise and steps' noise, of the conditional half: a start, then one a head step, the last for nothing."""
    init, noise = [], []
    for count in rows:
        first, *rest = draws[: 1 + steps]
        del draws[: 1 + steps]
        init.append(first[:count])
        noise += [drawn[:count] for drawn in rest[:-1]]
    return init, noise


def _loops(
    model: MixAR,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    io: Mapping[str, Tensor],
    shared_out: Any,
    only: str = "",
) -> dict[str, Tensor]:
    """Whole sampling loops, and their images."""
    own = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    tokenizer, out = tokenizer_of(config["tokenizer"], own, io["stats_mean"], io["stats_std"]), {}
    for name, asked in config["settings"].items():
        if name not in io or not name.startswith(f"sampled_{only}"):
            continue
        labels = io["labels"] if asked.get("labels", True) else torch.full_like(io["labels"], NO_CLASS)
        settings = {key: asked[key] for key in ("cfg", "cfg_schedule", "temperature") if key in asked}
        sampling, draws = SamplingConfig(steps=asked.get("num_iter", 64), **settings), _draws(io, name)
        orders = io["orders"] if only == "" else io["orders"].flip(1)
        if only == "random":
            orders = draws.pop(0).argsort(dim=1).flip(1)
        plan = model.plan(Condition(labels), sampling, noise=Replay(orders))
        rows = [planned.positions_BK.numel() for planned in plan.steps]
        init, noise = shared_out(draws, rows, int(config["num_sampling_steps"]))
        assert not draws
        replay = Replay(orders, init, noise if sampling.temperature else [])
        *_, last = model.generation_steps(Condition(labels), settings=sampling, noise=replay)
        out[name] = last.latents_BChw
        out[f"{name}_image"] = (tokenizer.decode(last.latents_BChw) + 1) / 2
    return out


def _full_size(tensors: Mapping[str, Tensor], *, name: str) -> None:
    mar.MANIFESTS[name](tensors)


#: the same names and shapes as MAR's
MANIFESTS = {f"detok_mar_{size}": partial(_full_size, name=f"mar_{size}") for size in ("base", "large")}


def build_ar(config: Mapping[str, Any], order: str) -> MixAR:
    """The model of a case's constructor arguments, in raster or random order."""
    sizes, side = config["SIZE_DICT"][config["model_size"]], config["img_size"] // config["tokenizer_patch_size"]
    layout = TokenLayout("grid", (Grid(side, side),))
    settings = DeTokARConfig(width=sizes["width"], depth=sizes["layers"], heads=sizes["heads"], order=order)  # type: ignore[arg-type]
    backbone = DeTokARBackbone(
        settings, layout=layout, token_dim=config["token_channels"], num_classes=config["num_classes"]
    )
    head = DiffusionHeadConfig(
        depth=config["diffloss_d"], width=config["diffloss_w"], sampling_steps=int(config["num_sampling_steps"])
    )
    return MixAR(
        backbone=backbone,
        head=DiffusionHead(head, token_dim=backbone.token_dim, width=backbone.width, layout=layout),
        injector=NoGuidance(NoGuidanceConfig(), tokenizer=None, width=backbone.width),
        sampler=CosineSampler(CosineConfig(order=order, tokens_per_step=1, cfg_by="before")),  # type: ignore[arg-type]
        continuous_tokenizer=mar.NoTokenizer(image_size=side, stride=1, latent_channels=config["token_channels"]),
    ).eval()


def run_ar(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    out: dict[str, Tensor] = {}
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)}
    for order in ("raster", "random"):
        model = build_ar(config, order)
        load_strictly(nn.ModuleDict({"backbone": model.backbone, "head": model.head}), DeTokARImporter.rename(own))
        backbone, head, tokens_BNC = model.backbone, model.head, model.patchify(io["latents"])
        assert isinstance(head, DiffusionHead)
        raster_BN = torch.arange(tokens_BNC.shape[1]).expand(len(tokens_BNC), -1)

        def z_of(order_BN: Tensor, condition: Condition, backbone: Any = backbone, tokens: Tensor = tokens_BNC) -> Any:
            return backbone(tokens, MaskSplit(order_BN[:, :0], order_BN), condition, Guidance())

        order_BN = raster_BN if order == "raster" else io["orders"]
        out[f"{order}_z"] = z_of(order_BN, Condition(io["labels"]))
        if order == "random":
            out["shuffled_tokens"] = take(tokens_BNC, order_BN)
        draws = _draws(io, f"train_{order}")
        order_BN = raster_BN if order == "raster" else draws.pop(0).argsort(dim=1)
        dropped = Condition(io["labels"]).dropped(draws[0] < config["label_drop_prob"])
        losses = _losses(head, z_of(order_BN, dropped), take(tokens_BNC, order_BN), *draws[1:])
        out[f"train_{order}_loss"] = losses["loss"].mean()[None]
        out |= _loops(model, config, weights, io, _mar_draws, only=order)
    return out
