"""EAR's case: the energy head, and the whole of EAR, whose backbone is MAR's decoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixar_core.masking import split_by_order
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.types import Condition, Grid, Guidance, Step, TokenLayout, Z
from mixar_import.importers import EarImporter
from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
from mixar_plugins.heads.energy import EnergyHead, EnergyHeadConfig
from mixar_plugins.injectors.none import NoGuidance, NoGuidanceConfig
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
from tests.parity.case import load_strictly
from tests.parity.mar import NoTokenizer, Replay


class ListeningHead(EnergyHead):
    """Keeps the z that it was given, rows conditional first, then unconditional."""

    def __init__(self, config: EnergyHeadConfig, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        self.heard: list[Tensor] = []

    def sample(self, z: Z, step: Step, *, noise: Any) -> Tensor:
        halves = [z.cond_BKD] if z.uncond_BKD is None else [z.cond_BKD, z.uncond_BKD]
        self.heard.append(torch.cat(halves).flatten(0, 1))
        return super().sample(z, step, noise=noise)


def build(config: Mapping[str, Any]) -> MixAR:
    """The model of a case's constructor arguments."""
    side = config["img_size"] // config["vae_stride"] // config["patch_size"]
    layout = TokenLayout("grid", (Grid(side, side),))
    backbone = MaskedBackbone(
        MaskedConfig(
            width=config["decoder_embed_dim"],
            depth=0,
            heads=config["decoder_num_heads"],
            decoder_depth=config["decoder_depth"],
            mlp_ratio=config["mlp_ratio"],
            buffer=config["buffer_size"],
            patch_size=config["patch_size"],
        ),
        layout=layout,
        token_dim=config["vae_embed_dim"] * config["patch_size"] ** 2,
        num_classes=config["class_num"],
    )
    settings = EnergyHeadConfig(
        depth=config["scoreloss_d"],
        width=config["scoreloss_w"],
        noise_channels=config["noise_channels"],
        samples_per_token=config["score_batch_mul"],
        alpha=float(config["alpha"]),
        train_temperature=config["train_temperature"],
    )
    return MixAR(
        backbone=backbone,
        head=ListeningHead(settings, token_dim=backbone.token_dim, width=backbone.width, layout=layout),
        injector=NoGuidance(NoGuidanceConfig(), tokenizer=None, width=backbone.width),
        sampler=CosineSampler(CosineConfig()),
        continuous_tokenizer=NoTokenizer(
            image_size=config["img_size"], stride=config["vae_stride"], latent_channels=config["vae_embed_dim"]
        ),
    ).eval()


def load(model: MixAR, weights: Mapping[str, Tensor]) -> None:
    """Put the original's tensors where they belong, strictly."""
    load_strictly(nn.ModuleDict({"backbone": model.backbone, "head": model.head}), EarImporter.rename(weights))


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int, heads: int, head: tuple[int, int]) -> None:
    config = {
        "img_size": 256,
        "vae_stride": 16,
        "patch_size": 1,
        "vae_embed_dim": 16,
        "class_num": 1000,
        "decoder_embed_dim": width,
        "decoder_depth": depth,
        "decoder_num_heads": heads,
        "mlp_ratio": 4.0,
        "buffer_size": 64,
        "scoreloss_d": head[0],
        "scoreloss_w": head[1],
        "score_batch_mul": 1,
        "alpha": 1,
        "noise_channels": 64,
        "train_temperature": 1.0,
    }
    with torch.device("meta"):
        model = build(config)
    load(model, tensors)


MANIFESTS = {
    "ear_base": partial(_full_size, width=768, depth=24, heads=12, head=(6, 1024)),
    "ear_large": partial(_full_size, width=1024, depth=32, heads=16, head=(8, 1280)),
    "ear_huge": partial(_full_size, width=1280, depth=40, heads=16, head=(12, 1536)),
}


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    model = build(config)
    load(model, weights)
    return {**_head(model.head, io), **_training(model, io), **_sampling(model, io)}


def _head(head: Any, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws, scores, losses and the gradient of the head alone, on rows."""
    out = {}
    with torch.enable_grad():
        z = io["head_z"].clone().requires_grad_()
        first, second = (head.draw(z, uniform) for uniform in io["head_uniform_pair"].chunk(2))
        energy = head.energy(io["head_target"], first, second)
        (out["head_grad_z"],) = torch.autograd.grad(energy.mean(), z)
    mask = io["head_mask"]
    for mode in ("train", "eval"):  # the same here: temperature belongs to sampling alone
        out |= {f"head_{mode}_sample_1": first, f"head_{mode}_sample_2": second, f"head_{mode}_score": -energy}
        out[f"head_{mode}_loss"] = energy.mean()[None]
        out[f"head_{mode}_loss_masked"] = ((energy * mask).sum() / mask.sum())[None]
    rows = io["head_z"][None]
    places = torch.arange(rows.shape[1])[None]
    for name, temperature in (("temp00", 0.0), ("temp07", 0.7), ("temp10", 1.0)):
        noise = _uniform(io["head_uniform"])
        out[f"head_sampled_{name}"] = head.sample(Z(rows, places), Step(temperature=temperature), noise=noise)[0]
    (cond, uncond), noise = rows.chunk(2, dim=1), _uniform(io["head_uniform"][: rows.shape[1] // 2])
    guided = Z(cond, places[:, : cond.shape[1]], uncond)
    out["head_sampled_cfg"] = head.sample(guided, Step(cfg=3.0, temperature=0.7), noise=noise)[0]
    return {name: tensor.detach() for name, tensor in out.items()}


def _training(model: MixAR, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole training forward: all tokens go through the head, masked ones count."""
    head, backbone = model.head, model.backbone
    assert isinstance(head, EnergyHead) and isinstance(backbone, MaskedBackbone)
    tokens_BNC = model.patchify(io["latents"])
    images, tokens, _ = tokens_BNC.shape
    split = split_by_order(io["orders"], int(-(-tokens * io["mask_rate"].item() // 1)))
    condition = Condition(io["labels"]).dropped(io["train_drop_uniform"] < 0.1)
    z_BND = backbone.decode(backbone.encode(tokens_BNC, split, condition, Guidance()), split, Guidance())
    # two draws of each of the repeats, each over all tokens of the batch
    uniform = io["train_uniform"].view(2, -1, images, tokens, io["train_uniform"].shape[-1])
    first, second = head.draw(z_BND, uniform[0]), head.draw(z_BND, uniform[1])
    mask = split.masked_BN.float()
    loss = (head.energy(tokens_BNC, first, second) * mask).sum() / (len(uniform[0]) * mask.sum())
    return {"train_mask": mask, "train_z": z_BND, "train_loss": loss[None]}


def _sampling(model: MixAR, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole sampling loops of eight steps."""
    out, head = {}, model.head
    assert isinstance(head, ListeningHead)
    draws = [io[f"uniform_{step}"] for step in range(8)]
    for name, cfg, schedule, temperature in (
        ("nocfg", 1.0, "linear", 1.0),
        ("linear_cfg", 3.0, "linear", 0.7),
        ("constant_cfg", 3.0, "constant", 0.7),
    ):
        head.heard.clear()
        settings = SamplingConfig(steps=len(draws), cfg=cfg, cfg_schedule=schedule, temperature=temperature)
        noise = _uniform(*draws, orders=io["orders"])
        *_, last = model.generation_steps(Condition(io["labels"]), settings=settings, noise=noise)
        out[f"sampled_{name}"] = last.latents_BChw
        out |= {f"z_{name}_{step}": z for step, z in enumerate(head.heard)}
    return out


def _uniform(*draws: Tensor, orders: Tensor | None = None) -> Replay:
    """Noise whose numbers uniform in [0, 1) under `head_uniform` were recorded."""
    return Replay(torch.empty(0, 0) if orders is None else orders, uniform=draws)
