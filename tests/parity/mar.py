"""MAR's case: masking, encoder, decoder, diffusion loss, the head's sampling, and the whole sampling loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mixar.plugins import plugin_manager
from mixar_core.masking import masked_after_step, split_by_order
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.types import Condition, Grid, Guidance, Posterior, Step, TokenLayout, Z
from mixar_import.importers import MarImporter
from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
from mixar_plugins.heads.diffusion import DiffusionHead
from mixar_plugins.heads.gaussian_diffusion import cosine_betas, schedule
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
from tests.parity.case import load_strictly


class Replay(Noise):
    """Noise that a case recorded: what is drawn under `head_init`, `head_step`, `head_uniform` comes from lists."""

    def __init__(
        self,
        orders: Tensor,
        init: Sequence[Tensor] = (),
        steps: Sequence[Tensor] = (),
        uniform: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(torch.Generator())
        self.orders = orders
        self.queues = {"head_init": list(init), "head_step": list(steps), "head_uniform": list(uniform)}

    def normal(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        drawn = self.queues[name].pop(0)
        rows = drawn.shape[0]  # the original's rows are images and their tokens, batch-major
        assert (shape[0] * shape[1], *shape[2:]) == tuple(drawn.shape), f"{name}: {rows} rows, {tuple(shape)} asked for"
        return drawn.view(*shape)

    def uniform(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        if name == "head_uniform":
            return self.normal(shape, device, name=name)
        assert name == "orders"
        return self.orders.argsort(dim=1).float()  # whose argsort is the recorded orders


class NoTokenizer(ContinuousTokenizer):
    """Stands where MAR's own loop stops: at the latents."""

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        raise NotImplementedError

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        return latents_BChw


def build(config: Mapping[str, Any]) -> MixAR:
    """The model of a case's constructor arguments."""
    side = config["img_size"] // config["vae_stride"]
    patch = config["patch_size"]
    backbone = MaskedBackbone(
        MaskedConfig(
            width=config["encoder_embed_dim"],
            depth=config["encoder_depth"],
            heads=config["encoder_num_heads"],
            decoder_width=config["decoder_embed_dim"],
            decoder_depth=config["decoder_depth"],
            decoder_heads=config["decoder_num_heads"],
            mlp_ratio=config["mlp_ratio"],
            buffer=config["buffer_size"],
            patch_size=patch,
        ),
        layout=TokenLayout("grid", (Grid(side // patch, side // patch),)),
        token_dim=config["vae_embed_dim"] * patch**2,
        num_classes=config["class_num"],
    )
    registry = plugin_manager()
    head_part, none_part = registry.part("head", "diffusion"), registry.part("injector", "none")
    head = head_part.component(
        head_part.config(
            depth=config["diffloss_d"],
            width=config["diffloss_w"],
            sampling_steps=int(config["num_sampling_steps"]),
        ),
        token_dim=backbone.token_dim,
        width=backbone.width,
        layout=backbone.layout,
    )
    injector = none_part.component(none_part.config(), tokenizer=None, width=backbone.width)
    tokenizer = NoTokenizer(
        image_size=config["img_size"], stride=config["vae_stride"], latent_channels=config["vae_embed_dim"]
    )
    sampler = CosineSampler(CosineConfig())
    model = MixAR(backbone=backbone, head=head, injector=injector, sampler=sampler, continuous_tokenizer=tokenizer)
    return model.eval()


def load(model: MixAR, weights: Mapping[str, Tensor]) -> None:
    """Put the original's tensors where they belong, strictly."""
    load_strictly(nn.ModuleDict({"backbone": model.backbone, "head": model.head}), MarImporter.rename(weights))


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int, heads: int, head: tuple[int, int]) -> None:
    config = {
        "img_size": 256,
        "vae_stride": 16,
        "patch_size": 1,
        **{f"{half}_embed_dim": width for half in ("encoder", "decoder")},
        **{f"{half}_depth": depth for half in ("encoder", "decoder")},
        **{f"{half}_num_heads": heads for half in ("encoder", "decoder")},
        "mlp_ratio": 4.0,
        "vae_embed_dim": 16,
        "class_num": 1000,
        "buffer_size": 64,
        "diffloss_d": head[0],
        "diffloss_w": head[1],
        "num_sampling_steps": "100",
    }
    with torch.device("meta"):
        model = build(config)
    load(model, tensors)


MANIFESTS = {
    "mar_base": partial(_full_size, width=768, depth=12, heads=12, head=(6, 1024)),
    "mar_large": partial(_full_size, width=1024, depth=16, heads=16, head=(8, 1280)),
    "mar_huge": partial(_full_size, width=1280, depth=20, heads=16, head=(12, 1536)),
}


@torch.no_grad()
def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    model = build(config)
    load(model, weights)
    head, backbone = model.head, model.backbone
    assert isinstance(head, DiffusionHead) and isinstance(backbone, MaskedBackbone)
    out: dict[str, Tensor] = {}

    tokens_BNC = model.patchify(io["latents"])
    split = split_by_order(io["orders"], int(io["mask"][0].sum()))
    encoded = backbone.encode(tokens_BNC, split, Condition(io["labels"]), Guidance())
    z_BND = backbone.decode(encoded, split, Guidance())
    mse, bound = head.token_losses(z_BND.flatten(0, 1), tokens_BNC.flatten(0, 1), io["t"], io["noise"])
    mask = split.masked_BN.float()
    out |= {"tokens": tokens_BNC, "mask": mask, "encoder_out": encoded, "decoder_z": z_BND, "mse": mse, "vb": bound}
    out["loss"] = mse + bound
    out["masked_loss"] = ((out["loss"] * mask.flatten()).sum() / mask.sum())[None]

    s = schedule(int(config["num_sampling_steps"]))
    out["respaced_timesteps"], out["respaced_betas"] = torch.tensor(s.timesteps), torch.tensor(s.betas)
    out["alphas_cumprod"] = torch.tensor((1.0 - cosine_betas()).cumprod())
    for name, temperature, uncond in (
        ("temp0", 0.0, None),
        ("temp09", 0.9, None),
        ("temp1", 1.0, None),
        ("cfg25", 1.0, 1),
    ):
        noise = Replay(io["orders"], [io["head_init"]], io["head_noise"])
        z_1RD, uncond_1RD = io["head_z"][None], None if uncond is None else io["head_z_uncond"][None]
        z = Z(z_1RD, torch.arange(z_1RD.shape[1])[None], uncond_1RD)
        step = Step(cfg=1.0 if uncond is None else 2.5, temperature=temperature)
        out[f"head_{name}"] = head.sample(z, step, noise=noise)[0]

    steps, tokens = int(io["iters"]), backbone.layout.tokens
    left = [tokens, *masked_after_step(tokens, steps)]
    out["tokens_per_step"] = torch.tensor([a - b for a, b in pairwise(left)])
    for key, init, cfg, cfg_schedule in (
        ("nocfg", "nocfg", 1.0, "linear"),
        ("linear_cfg25", "linear", 2.5, "linear"),
        ("constant_cfg17", "constant", 1.7, "constant"),
    ):
        noise = Replay(io["orders"], [io[f"init_{init}_{i}"] for i in range(steps)])
        settings = SamplingConfig(steps=steps, cfg=cfg, cfg_schedule=cfg_schedule, temperature=0.0)
        *_, last = model.generation_steps(Condition(io["labels"]), settings=settings, noise=noise)
        out[f"sampled_{key}"] = last.latents_BChw
    return out
