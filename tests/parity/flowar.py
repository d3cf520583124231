"""FlowAR's case: its backbone's training forward, its head and solvers, and the whole loop over scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.types import Condition, Grid, Guidance, MaskSplit, Step, TokenLayout, Z
from mixar_import.continuous import FlowARImporter
from mixar_plugins.backbones.flowar import FlowARBackbone, FlowARConfig
from mixar_plugins.heads.flowar import FlowARHead, FlowARHeadConfig
from mixar_plugins.injectors.none import NoGuidance, NoGuidanceConfig
from mixar_plugins.samplers.groups import GroupsConfig, GroupsSampler
from tests.parity.case import load_strictly
from tests.parity.mar import NoTokenizer

CLASSES = 1000  # whatever the config says


class Recorded(Noise):
    """What a case recorded, in turn; all rows, or those of the conditional half."""

    def __init__(self, *draws: Tensor) -> None:
        super().__init__(torch.Generator())
        self.draws = list(draws)

    def normal(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        return self.draws.pop(0)[: shape[0]].reshape(*shape)

    uniform = normal


class ListeningHead(FlowARHead):
    """Keeps what it was asked and what it drew: the z of every step, and of every evaluation the state and time."""

    def __init__(self, config: FlowARHeadConfig, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        self.heard: list[Z] = []
        self.drawn: list[Tensor] = []
        self.steps: list[Step] = []
        self.states: list[Tensor] = []

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        self.heard.append(z)
        self.steps.append(step)
        self.drawn.append(super().sample(z, step, noise=noise))
        return self.drawn[-1]

    def velocity(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        self.states.append(x)
        return super().velocity(x, time, condition)

    def both_halves(self, z: Z, step: Step, noise: Tensor) -> Tensor:
        """The original's result: its unconditional half goes alone from noise of its own until guidance begins, and
        then where the conditional one goes."""
        images, steps = len(z.cond_BKD), step.head_steps or self.flow.sampling_steps
        self.states.clear()
        cond = super().sample(z, step, noise=Recorded(noise))
        moved = [x[:images] for x in self.states]
        assert z.uncond_BKD is not None
        alone = Z(z.uncond_BKD, z.positions_BK)
        self.states.clear()
        uncond = super().sample(alone, Step(head_steps=steps), noise=Recorded(noise[images:]))
        begins = next(k for k, t in enumerate(self.times("euler", steps)) if t <= self.cfg_until or step.cfg == 1.0)
        if step.cfg != 1.0:
            uncond = self.states[begins] + cond - moved[begins]
        return torch.cat([cond, uncond])


def build(config: Mapping[str, Any], *, layout: TokenLayout | None = None, cfg_until: float = 1.0) -> MixAR:
    """The model of a case's constructor arguments; `layout`: the head's, if it is another."""
    scales = TokenLayout("pyramid", tuple(Grid(side, side) for side in config["scale"]))
    backbone = FlowARBackbone(
        FlowARConfig(
            width=config["encoder_embed_dim"],
            depth=config["encoder_depth"],
            heads=config["encoder_num_heads"],
            decoder_depth=config["decoder_depth"],
            mlp_ratio=config["mlp_ratio"],
        ),
        layout=scales,
        token_dim=config["vae_embed_dim"],
        num_classes=CLASSES,
    )
    head = FlowARHeadConfig(
        depth=config["diffloss_d"],
        width=config["diffloss_w"],
        cross=config["cross"],
        cfg_until=cfg_until,
    )
    return MixAR(
        backbone=backbone,
        head=ListeningHead(head, token_dim=backbone.token_dim, width=backbone.width, layout=layout or scales),
        injector=NoGuidance(NoGuidanceConfig(), tokenizer=None, width=backbone.width),
        sampler=GroupsSampler(GroupsConfig()),
        continuous_tokenizer=NoTokenizer(
            image_size=config["img_size"], stride=config["vae_stride"], latent_channels=config["vae_embed_dim"]
        ),
    ).eval()


def load(model: MixAR, weights: Mapping[str, Tensor]) -> None:
    """Put the original's tensors where they belong, strictly."""
    load_strictly(nn.ModuleDict({"backbone": model.backbone, "head": model.head}), FlowARImporter.rename(weights))


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int, heads: int, head: tuple[int, int]) -> None:
    config = {
        "img_size": 256,
        "vae_stride": 16,
        "vae_embed_dim": 16,
        "scale": (1, 2, 4, 8, 16),
        "mlp_ratio": 4.0,
        "encoder_embed_dim": width,
        "encoder_depth": depth,
        "encoder_num_heads": heads,
        "decoder_depth": depth,
        "diffloss_d": head[0],
        "diffloss_w": head[1],
        "cross": head[0] > 2,
    }
    with torch.device("meta"):
        model = build(config)
    load(model, tensors)


MANIFESTS = {
    "flowar_s": partial(_full_size, width=768, depth=6, heads=12, head=(2, 1024)),
    "flowar_l": partial(_full_size, width=1024, depth=8, heads=16, head=(12, 1024)),
    "flowar_h": partial(_full_size, width=1536, depth=15, heads=16, head=(12, 1536)),
}


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    return {**_training(config, weights, io), **_head(config, weights, io), **_sampling(config, weights, io)}


def _loaded(config: Mapping[str, Any], weights: Mapping[str, Tensor], **settings: Any) -> tuple[MixAR, ListeningHead]:
    model = build(config, **settings)
    load(model, weights)
    assert isinstance(model.head, ListeningHead)
    return model, model.head


def _training(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    model, head = _loaded(config, weights)
    backbone = model.backbone
    assert isinstance(backbone, FlowARBackbone)
    scales, latents = backbone.layout.scales, io["latents"]
    grids = [F.interpolate(latents, size=(grid.height, grid.width), mode="area") for grid in scales]
    tokens_BNC = torch.cat([grid.flatten(2).transpose(1, 2) for grid in grids], dim=1)
    all_BN = torch.arange(backbone.layout.tokens).expand(len(latents), -1)
    condition = Condition(io["labels"]).dropped(io["train_drop_uniform"] < 0.1)
    entered = torch.cat([backbone.scale_input(n, tokens_BNC, condition) for n in range(len(scales))], dim=1)
    encoded: list[Tensor] = []
    backbone.encoder_norm.register_forward_hook(lambda *call: encoded.append(call[2]))
    z_BND = backbone(tokens_BNC, MaskSplit(all_BN[:, :0], all_BN), condition, Guidance())
    noise = Recorded(io["train_t"].T, io["train_noise"])
    loss_BN = head.loss(Z(z_BND, all_BN), tokens_BNC, noise=noise)
    groups, small = backbone.layout.by_scale, backbone.layout.by_scale[-1].start
    share = len(groups[-1]) / backbone.layout.tokens
    means = [share * loss_BN[:, group.start : group.stop].mean(dim=1) for group in groups]
    return {
        "train_input": entered[:1, :small],
        "train_encoder_out": encoded[0][:1, :small],
        "train_z": z_BND[:, :small],
        "train_loss": loss_BN.mean()[None],
        "train_loss_per_scale": torch.stack(means),
    }


def _head(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    side = int(io["head_x"].shape[1] ** 0.5)
    layout = TokenLayout("pyramid", (Grid(side, side),))
    places = torch.arange(layout.tokens).expand(len(io["head_x"]), -1)
    z_BKD, noise = io["head_z"], io["head_noise"]
    cond, uncond = (Z(half, at) for half, at in zip(z_BKD.chunk(2), places.chunk(2), strict=True))
    guided = cond._replace(uncond_BKD=uncond.cond_BKD)
    for name, until in (("09", 0.9), ("07", 0.7), ("1", 1.0)):
        head = _loaded(config, weights, layout=layout, cfg_until=until)[1]
        out[f"euler_25_cfg3_{name}"] = head.both_halves(guided, Step(cfg=3.0, head_steps=25), noise)
    head = _loaded(config, weights, layout=layout)[1]
    told = head.embed(z_BKD, places)
    moved = head.embed_time(1000.0 * io["head_t"])[:, None]
    out["head_velocity"] = head.velocity(io["head_x"], moved.expand(-1, layout.tokens, -1), told)
    loss_BK = head.loss(Z(z_BKD, places), io["head_x"], noise=Recorded(io["head_t"], noise))
    out["head_loss"] = loss_BK.mean(dim=1)
    for steps in (25, 50, 6, 7):
        out[f"euler_{steps}"] = head.sample(Z(z_BKD, places), Step(head_steps=steps), noise=Recorded(noise))
        out[f"euler_{steps}_times"] = torch.tensor(head.times("euler", steps)[:-1])
    draws = noise, *io["sde_noise"]
    sde = head.sample(guided, Step(cfg=3.0, head_steps=6, solver="sde"), noise=Recorded(*draws))
    # the other half takes the same slopes and noise of its own, which add up
    times, halves = head.times("sde", 6), len(sde)
    apart = draws[0][halves:] - draws[0][:halves]
    for now, then, drawn in zip(times[:-2], times[1:-1], draws[1:], strict=True):
        apart = apart + (2.0 * now * (now - then)) ** 0.5 * (drawn[halves:] - drawn[:halves])
    out["sde_6_cfg3_1"] = torch.cat([sde, sde + apart])
    return out


def _sampling(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, images, until, cfg, steps, last in (
        ("cfg", 1, 0.9, 2.4, 12, 5),
        ("guidance07", 1, 0.7, 4.3, 9, None),
        ("nocfg", 2, 1.0, 1.0, 25, None),
    ):
        model, head = _loaded(config, weights, cfg_until=until)
        model.sampler, layout = GroupsSampler(GroupsConfig(head_steps_end=last)), model.backbone.layout
        settings = SamplingConfig(cfg=cfg, cfg_schedule="linear", head_steps=steps)
        init = [io[f"init_{n}"] for n in range(len(layout.scales))]
        *_, final = model.generation_steps(Condition(io["labels"][:images]), settings=settings, noise=Recorded(*init))
        grid = layout.scales[-1]
        latents = final.latents_BChw[:, :, 0, -grid.tokens :]
        out[f"sample_{name}_latents"] = latents.unflatten(2, (grid.height, grid.width))
        out[f"sample_{name}_flow_steps"] = torch.tensor([step.head_steps for step in head.steps])
        out[f"sample_{name}_cfg"] = torch.tensor([step.cfg for step in head.steps])
        for n, (z, step) in enumerate(zip([*head.heard], [*head.steps], strict=True)):
            if cfg == 1.0:
                out[f"sample_{name}_scale_{n}"] = head.drawn[n]
                continue
            # where a step is not guided the original computes both halves all the same
            everything = model.backbone.start(Condition(io["labels"][:images]), Guidance(), guided=True)
            for before in range(n):
                everything.reveal(head.heard[before].positions_BK, head.drawn[before])
            z = everything.predict(z.positions_BK, Step(cfg=2.0))
            assert z.uncond_BKD is not None
            out[f"sample_{name}_z_{n}"] = torch.cat([z.cond_BKD, z.uncond_BKD])
            out[f"sample_{name}_scale_{n}"] = head.both_halves(z, step, init[n])
    return out
