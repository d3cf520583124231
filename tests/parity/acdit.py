"""ACDiT's case: masks and positions, the training forward, and the sampling of block after block."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.types import NO_CLASS, Condition, Denoise, Grid, Guidance, MaskSplit, Step, TokenLayout, Z
from mixar_import.continuous import ACDiTImporter
from mixar_plugins.backbones.acdit import ACDiTBackbone, ACDiTConfig
from mixar_plugins.heads.denoising import DenoisingHead, DenoisingHeadConfig, linear_betas, process_of
from mixar_plugins.injectors.none import NoGuidance, NoGuidanceConfig
from mixar_plugins.samplers.groups import GroupsConfig, GroupsSampler
from tests.parity.case import load_strictly
from tests.parity.flowar import Recorded
from tests.parity.mar import NoTokenizer

STEPS = 6


class ListeningHead(DenoisingHead):
    """Keeps the timestep and the answer of every call, and of which group it was."""

    def __init__(self, config: DenoisingHeadConfig, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        self.calls: list[tuple[int, int, Tensor]] = []
        self.group = 0

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        assert z.denoise is not None
        asked = z.denoise.predict

        def predict(noised: Tensor, t: Tensor) -> Tensor:
            self.calls.append((self.group, int(t[0, 0]), asked(noised, t)))
            return self.calls[-1][2]

        drawn = super().sample(z._replace(denoise=Denoise(predict)), step, noise=noise)
        self.group += 1
        return drawn


def build(config: Mapping[str, Any], *, channels: int, solver: str = "dpm++", clip: float | None = None) -> MixAR:
    """The model of a case's constructor arguments."""
    side, block = int(config["spatial_len"] ** 0.5), int(config["block_size"] ** 0.5)
    layout, patch = TokenLayout("grid", (Grid(side, side),)), config["patch_size"]
    sizes = ACDiTConfig(
        width=config["hidden_size"],
        depth=config["depth"],
        mlp_ratio=config["mlp_ratio"],
        block=block,
        patch_size=patch,
    )
    backbone = ACDiTBackbone(sizes, layout=layout, token_dim=channels * patch**2, num_classes=config["num_classes"])
    head = DenoisingHeadConfig(sampling_steps=STEPS, solver=solver, clip=clip)  # type: ignore[arg-type]
    return MixAR(
        backbone=backbone,
        head=ListeningHead(head, token_dim=backbone.token_dim, width=backbone.width, layout=layout),
        injector=NoGuidance(NoGuidanceConfig(), tokenizer=None, width=backbone.width),
        sampler=GroupsSampler(GroupsConfig()),
        continuous_tokenizer=NoTokenizer(image_size=side * patch, stride=1, latent_channels=channels),
    ).eval()


def load(model: MixAR, weights: Mapping[str, Tensor]) -> None:
    """Put the original's tensors where they belong, strictly."""

    class OfCase(ACDiTImporter):
        channels = model.continuous_tokenizer.latent_channels

    load_strictly(nn.ModuleDict({"backbone": model.backbone, "head": model.head}), OfCase.rename(weights))


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int) -> None:
    sizes = {"hidden_size": width, "depth": depth, "mlp_ratio": 4.0, "num_classes": 1000}
    with torch.device("meta"):
        model = build({"spatial_len": 1024, "block_size": 256, "patch_size": 1, **sizes}, channels=4)
    load(model, tensors)


MANIFESTS = {
    "acdit_xl": partial(_full_size, width=1152, depth=28),
    "acdit_h": partial(_full_size, width=1280, depth=32),
}


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    channels = io["latents"].shape[1]
    model = build(config, channels=channels)
    load(model, weights)
    backbone, head = model.backbone, model.head
    assert isinstance(backbone, ACDiTBackbone) and isinstance(head, ListeningHead)
    groups, side, patch = len(backbone.groups or ()), backbone.layout.scales[0].width, config["patch_size"]
    order_N, images = backbone.place_N, len(io["latents"])

    def theirs(tokens_BKC: Tensor) -> Tensor:
        """In blocks, the numbers of a patch with its channels last."""
        blocks = tokens_BKC.unflatten(1, (groups, -1)) if tokens_BKC.shape[1] == len(order_N) else tokens_BKC[:, None]
        return blocks.unflatten(-1, (channels, patch**2)).transpose(-1, -2).flatten(-2)

    def ours(blocks: Tensor) -> Tensor:
        return blocks.unflatten(-1, (patch**2, channels)).transpose(-1, -2).flatten(-2).flatten(1, 2)

    tokens_BNC = model.patchify(io["latents"])
    out = {"tokens": theirs(tokens_BNC[:, order_N]), "position_ids": torch.stack([order_N // side, order_N % side])}
    first, second = backbone.table.unflatten(-1, (-1, 2)).unbind(-1)
    out["rope_cos"] = torch.cat([first[:, 0], second[:, 0]], dim=1)
    out["rope_sin"] = torch.cat([-first[:, 1], second[:, 1]], dim=1)
    out["alphas_cumprod"] = torch.tensor(np.cumprod(1.0 - linear_betas()), dtype=torch.float32)
    out |= _masks(groups, len(order_N) // groups)

    def denoise(condition: Condition) -> Denoise:
        order_BN = order_N.expand(images, -1)
        z = backbone(tokens_BNC, MaskSplit(order_BN[:, :0], order_BN), condition, Guidance())
        assert z.denoise is not None
        return z.denoise

    dropped_B = io["drop_uniform"] < config["class_dropout_prob"]
    out["forward_mask"] = dropped_B.long()
    condition = Condition(io["labels"])
    told = denoise(condition.dropped(dropped_B))
    target, eps = tokens_BNC[:, order_N], ours(io["noise"])
    noise = Recorded((io["t"].float() + 0.5) / 1000.0, eps)
    loss_BN = head.loss(Z(target, order_N.expand(images, -1), denoise=told), target, noise=noise)
    t_BK1 = io["t"].repeat_interleave(len(order_N) // groups, dim=1)[..., None]
    noised = head.sqrt_cumprod[t_BK1] * target + head.sqrt_one_minus_cumprod[t_BK1] * eps
    out |= {"loss": loss_BN.mean()[None], "noised": theirs(noised)}
    shared = io["t"][:, :1].expand(-1, groups)
    nobody = Condition(torch.full_like(io["labels"], NO_CLASS))
    for name, predict, t in (
        ("model_out", told, io["t"]),
        ("model_out_shared_t", denoise(condition), shared),
        ("model_out_no_label", denoise(nobody), io["t"]),
    ):
        out[name] = theirs(predict.predict(noised, t)).flatten(1, 2)
    return {**out, **_sampling(config, weights, io, theirs, ours)}


def _masks(groups: int, block: int) -> dict[str, Tensor]:
    """Who sees whom: in training all clean tokens, then all noised ones; in sampling a clean block and a noised one."""
    block_N = torch.arange(groups * block) // block
    clean, noised = block_N <= block_N[:, None], torch.cat([block_N < block_N[:, None], block_N == block_N[:, None]], 1)
    none = torch.zeros(len(block_N), len(block_N), dtype=torch.bool)
    out = {"attention_mask": torch.cat([torch.cat([clean, none], dim=1), noised]).long()}
    for i in range(1, groups):
        seen = torch.ones(2 * block, (i + 1) * block, dtype=torch.int64)
        seen[:block, i * block :] = 0
        out[f"inference_mask_{i}"] = seen
    return out


def _sampling(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor], theirs: Any, ours: Any
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, cfg in (("dpm_cfg", 1.5), ("dpm_nocfg", 1.0), ("ddim_cfg", 1.5)):
        kind = {"dpm": "dpm++", "ddim": "ddim"}[name.partition("_")[0]]
        model = build(config, channels=io["latents"].shape[1], solver=kind, clip=1.0 if kind == "ddim" else None)
        load(model, weights)
        head, backbone = model.head, model.backbone
        assert isinstance(head, ListeningHead) and isinstance(backbone, ACDiTBackbone)
        groups = len(backbone.groups or ())
        init = [ours(io[f"init_{block}"]) for block in range(groups)]
        settings = SamplingConfig(cfg=cfg, cfg_schedule="constant")
        *_, last = model.generation_steps(Condition(io["labels"]), settings=settings, noise=Recorded(*init))
        out[f"latents_{name}"] = last.latents_BChw
        out[f"sampled_{name}"] = theirs(model.patchify(last.latents_BChw)[:, backbone.place_N])
        steps = [(t, int(group > 0 and n % STEPS == 0), group) for n, (group, t, _) in enumerate(head.calls)]
        out[f"calls_{name}"] = torch.tensor(steps)
        if name == "dpm_cfg":
            for n, (group, _, answer) in enumerate(head.calls):
                out[f"eps_{name}_{group}_{n % STEPS}"] = theirs(answer)[:, 0]
        process = process_of(kind, STEPS)
        out[f"{name.partition('_')[0]}_timesteps"] = torch.tensor(process.timesteps[::-1].copy())
        if kind == "dpm++":
            sigmas = ((1.0 - process.alphas_cumprod) / process.alphas_cumprod) ** 0.5
            out["dpm_sigmas"] = torch.tensor([*sigmas[::-1], 0.0], dtype=torch.float32)
    return out
