"""HART's residual head, the training of its generator, and its whole sampling loop.

The tokenizer is VAR's, whose last scale leaves a rest that is not smoothed and the head draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mixar_core.masking import masked_after_step, put, take
from mixar_core.types import Step, Z
from mixar_import.continuous import RenamingImporter
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mixar_plugins.heads.solvers import process_of
from mixar_plugins.networks.transformer import KeyValueCache
from mixar_plugins.priors.hart import HARTPrior, HARTPriorConfig
from mixar_plugins.priors.next import filtered, guided
from tests.parity.case import NotACase, load_strictly
from tests.parity.detok_generators import other_half
from tests.parity.latent_codes import var
from tests.parity.mar import Replay

PREFIX, RESIDUAL = "tokenizer::", "residual."
SCALE, ITERATIONS = 1.5, {"hybrid_steps": 3}
INPUTS = (
    *("images", "context*", "u_*", "exp_smooth_*", "init_*", "noise_*", "orders", "head_init*", "head_noise", "head_z"),
    *(
        "loss_noise",
        "loss_t",
        "loss_target",
        "train_drop_normal",
        "train_mask_rate",
        "train_noise",
        "train_t",
        "train_u",
    ),
)


class Renamed(RenamingImporter):
    """HART's names; no importer, because what is released draws for texts."""

    names = {"diffloss.": "residual.head.", "decoder_norm.": "residual.norm.", "head_nm.ada_lin.": "norm.modulation."}
    inner = {
        r"^head_nm\.ln_wo_grad\.": "norm.norm.",
        r"\.attn\.qkv_proj\.": ".attn.qkv.",
        r"\.ffn\.gate_proj\.": ".mlp.w1.",
        r"\.ffn\.up_proj\.": ".mlp.w3.",
        r"\.ffn\.down_proj\.": ".mlp.w2.",
    }
    computed = r"(.*\.)?(attn_bias_for_masking|lvl_1L|zero_k_bias)"

    @classmethod
    def rename(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A block has one norm there, for both of its branches."""
        ours: dict[str, Tensor] = {}
        for name, tensor in super().rename(tensors).items():
            both = ("norm1.", "norm2.") if name.startswith("blocks.") else ("ln_wo_grad.",)
            ours |= {name.replace("ln_wo_grad.", norm): tensor for norm in both}
        return ours


class _Generator:
    """What a case describes: tokenizer, transformer and head."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        as_released = {"disable_aln": True, "use_cross_attn": False, "attn_type": "llama", "mlp_type": "llama"}
        if any(config[key] != value for key, value in as_released.items()) or not config["use_context_norm"]:
            raise NotACase(f"one of {', '.join(as_released)} is as no case so far has it")
        plain = {"using_znorm": False, "quant_conv_ks": 3, **config["tokenizer"]}
        side = config["patch_nums"][-1] * 2 ** (len(plain["ch_mult"]) - 1)
        own = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
        self.tokenizer = var(plain, own, image_size=side)
        named = Renamed.rename({name: t for name, t in weights.items() if not name.startswith(PREFIX)})
        settings = HARTPriorConfig(
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            context_width=config["context_dim"],
            mlp_width=len(named["blocks.0.mlp.w1.weight"]),
        )
        self.prior = HARTPrior(settings, tokenizer=self.tokenizer, num_classes=0).eval()
        head = DiffusionHeadConfig(
            depth=config["diff_depth"],
            width=config["diff_width"],
            sampling_steps=int(config["num_sampling_steps"]),
            samples_per_token=config["diffusion_batch_mul"],
            clip=1.0,
            scale=0.6,
        )
        layout, width = self.tokenizer.layout, self.tokenizer.quantizer.width
        self.head = DiffusionHead(head, token_dim=width, width=settings.width, layout=layout).eval()
        self.norm = nn.RMSNorm(settings.width, eps=1e-6)
        residual = {n.removeprefix(RESIDUAL): t for n, t in named.items() if n.startswith(RESIDUAL)}
        load_strictly(nn.ModuleDict({"head": self.head, "norm": self.norm}), residual)
        others = {name: tensor for name, tensor in named.items() if not name.startswith(RESIDUAL)}
        load_strictly(self.prior, others, kept=["class_emb.weight"])

    def vectors(self, codes: Tensor) -> Tensor:
        """Of the last scale."""
        return self.tokenizer.scale_vectors(codes, len(self.tokenizer.layout.scales) - 1)

    def drawn(self, z: Tensor, guidance: float, init: Tensor, noise: Tensor) -> Tensor:
        """Residuals of rows (2 R, D), conditional first, both halves; guided by (1 + s) cond - s uncond, not at 1."""
        places = torch.arange(len(z))[None]
        if guidance == 1.0:
            replay = Replay(torch.empty(0), [init], [*noise])
            return self.head.sample(Z(z[None], places), Step(), noise=replay)[0]
        cond, uncond = z.chunk(2)
        replay, step = Replay(torch.empty(0), [init], [n[: len(cond)] for n in noise]), Step(cfg=1.0 + guidance)
        first = self.head.sample(Z(cond[None], places[:, : len(cond)], uncond[None]), step, noise=replay)[0]
        return torch.cat([first, other_half(self.head, cond, uncond, init, [*noise], 1.0 + guidance, 1.0)])


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    made = _Generator(config, weights)
    out: dict[str, Tensor] = {}
    for name in ("discrete", "hybrid", "hybrid_steps", "smooth"):
        out |= _loop(made, io, name)
    return {**out, **_head(made.head, made, io), **_training(made, io)}


def _head(head: DiffusionHead, made: _Generator, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    process, net, (cond, uncond) = process_of("ddpm", head.config.sampling_steps), head.net, io["head_z"].chunk(2)
    out = {
        "head_timesteps": torch.tensor(process.timesteps),
        "head_betas": torch.tensor(process.betas),
        "head_cfg_temp1": made.drawn(io["head_z"], SCALE, io["head_init"], io["head_noise"]),
        "head_cfg0_temp1": made.drawn(io["head_z"], 0.0, io["head_init"], io["head_noise"]),
        "head_none_temp1": made.drawn(io["head_z"], 1.0, io["head_init_all"], io["head_noise"]),
    }
    guided_z = Z(cond[None], torch.arange(len(cond))[None], uncond[None])
    still = Step(cfg=1.0 + SCALE, temperature=0.0)
    first = head.sample(guided_z, still, noise=Replay(torch.empty(0), [io["head_init"]]))[0]
    rows = other_half(head, cond, uncond, io["head_init"], [*io["head_noise"]], still.cfg, 0.0)
    out["head_cfg_temp0"] = torch.cat([first, rows])
    heard: list[tuple[Tensor, Tensor]] = []
    hook = net.register_forward_hook(lambda _, given, answer: heard.append((given[0], answer)))
    other_half(head, cond, uncond, io["head_init"], [*io["head_noise"]], still.cfg, 1.0)
    hook.remove()
    out |= {
        "head_cfg_temp1_x": torch.stack([x for x, _ in heard]),
        "head_cfg_temp1_net": torch.stack([y for _, y in heard]),
    }
    mse, bound = head.token_losses(io["head_z"], io["loss_target"], io["loss_t"], io["loss_noise"])
    return {**out, "loss_mse": mse, "loss_vb": bound, "loss_loss": mse + bound}


def _choose(logits_BKV: Tensor, uniform: Tensor) -> Tensor:
    """Codes (B, K): as many entries of the summed probabilities as are no more than the draw."""
    summed = logits_BKV.softmax(dim=-1).double().cumsum(dim=-1)
    return (summed <= uniform.double().view(*summed.shape[:2], 1) * summed[..., -1:]).sum(dim=-1)


def _loop(made: _Generator, io: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A sampling loop: all scales but the last at once, the last in some steps of its own."""
    prior, tokenizer = made.prior, made.tokenizer
    scales, out = tokenizer.layout.scales, {}
    images = io[f"u_{name}_0"].shape[0]
    vectors_BTF, positions_BT = io["context"][:images], io["context_position_ids"][:images]
    context_RTD = prior.context(torch.cat([vectors_BTF, torch.zeros_like(vectors_BTF)]))
    positions_RT = torch.cat([positions_BT, torch.zeros_like(positions_BT)])
    tokens = sum(grid.tokens for grid in scales) + context_RTD.shape[1]
    caches, calls = [KeyValueCache(tokens) for _ in prior.blocks], 0
    last, finest = len(scales) - 1, scales[-1]
    sum_BEhw = torch.zeros(images, tokenizer.quantizer.width, finest.height, finest.width)

    def draw(hidden: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Codes, and the vectors that go on."""
        nonlocal calls
        logits_BKV = guided(prior.read(hidden, context_RTD), 1.0 + SCALE * prior.progress(scale), images)
        if scale == 0:
            logits_BKV = logits_BKV[:, -1:]
        kept = filtered(logits_BKV, top_k=prior.top_k(scale))
        codes_BK = _choose(kept, io[f"u_{name}_{calls}"])
        out[f"idx_{name}_{calls}"] = codes_BK.flatten()
        vectors_BKE = tokenizer.scale_vectors(codes_BK, scale)
        if name == "smooth":
            prior.gumbel = lambda *_: -io[f"exp_smooth_{calls}"].log()  # type: ignore[method-assign]
            vectors_BKE = prior.mixed(logits_BKV, scale, None)  # type: ignore[arg-type]
            del prior.gumbel
        calls += 1
        return codes_BK, vectors_BKE

    hidden = prior.run(prior.enter(context_RTD, 0), prior.places_of_context(positions_RT), caches)
    for scale in range(1, last + 1):
        _, vectors_BKE = draw(hidden, scale - 1)
        sum_BEhw = sum_BEhw + tokenizer.spread(vectors_BKE, scale - 1)
        known_BKE = tokenizer.quantizer.shrink(sum_BEhw, scale).flatten(2).transpose(1, 2)
        x = prior.enter(prior.word_embed(known_BKE), scale).repeat(2, 1, 1)
        table = prior.places(scale, positions_RT[:, -1])
        if scale < last:
            hidden = prior.run(x, table, caches)
    left, tokens_BKE = masked_after_step(finest.tokens, ITERATIONS.get(name, 1)), torch.zeros(*known_BKE.shape)
    guidance = SCALE * prior.progress(last)
    for step, (before, after) in enumerate(pairwise([finest.tokens, *left])):
        now_BK = io["orders"][:images, after:before].sort(dim=1).values
        now_RK = now_BK.repeat(2, 1)
        there = table.gather(1, now_RK[..., None, None].expand(-1, -1, *table.shape[2:]))
        hidden = prior.run(take(x, now_RK), there, caches)
        codes_BK, vectors_BKE = draw(hidden, last)
        if name != "discrete":
            z = made.norm(prior.features(hidden, made.vectors(codes_BK).repeat(2, 1, 1))).flatten(0, 1)
            noise = torch.stack([io[f"noise_{name}_{step}_{k}"] for k in range(made.head.config.sampling_steps)])
            residual = made.drawn(z, guidance, io[f"init_{name}_{step}"], noise)
            out |= {f"z_{name}_{step}": z, f"residual_{name}_{step}": residual}
            out[f"head_cfg_{name}_{step}"] = torch.tensor([guidance])
            vectors_BKE = vectors_BKE + residual[: len(z) // 2].view_as(vectors_BKE)
        tokens_BKE = put(tokens_BKE, now_BK, vectors_BKE)
    sum_BEhw = sum_BEhw + tokens_BKE.transpose(1, 2).view_as(sum_BEhw)
    image = (tokenizer.decode_vectors(sum_BEhw).clamp(-1, 1) + 1) / 2
    return {**out, f"fhat_{name}": sum_BEhw, f"image_{name}": image}


def _training(made: _Generator, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prior, tokenizer, images = made.prior, made.tokenizer, io["images"]
    codes_BN, finest = tokenizer.encode(images), tokenizer.layout.scales[-1]
    coarse = codes_BN.shape[1] - finest.tokens
    known_BKE = tokenizer.quantizer.known_before(codes_BN)
    rest_BEhw = tokenizer.encoded(images) - sum([*tokenizer.quantizer.spreads(codes_BN)][:-1])
    rest_BKE = rest_BEhw.flatten(2).transpose(1, 2)
    hidden_count = min(-int(-finest.tokens * io["train_mask_rate"].item() // 1), finest.tokens - 32)
    kept_BK = io["orders"][:, hidden_count:].sort(dim=1).values
    first = tokenizer.layout.scales[0].tokens
    others = torch.arange(coarse - first).expand(len(images), -1)
    seen_BK = torch.cat([others, coarse - first + kept_BK], dim=1)
    vectors_BTF = io["context"] * (io["train_drop_normal"] >= 0.1)[:, None, None]
    hidden, context_BTD = prior.teach(vectors_BTF, io["context_position_ids"], take(known_BKE, seen_BK), seen_BK)
    logits_BKV, last = prior.read(hidden, context_BTD), slice(-kept_BK.shape[1], None)
    sampled_BK = _choose(filtered(logits_BKV[:, last], top_k=600, top_p=0.96), io["train_u"])
    z, target = made.norm(prior.features(hidden[:, last], made.vectors(sampled_BK))), take(rest_BKE, kept_BK)
    repeats = made.head.config.samples_per_token
    z, target = (x.flatten(0, 1).repeat(repeats, 1) for x in (z, target - made.vectors(sampled_BK)))
    mse, bound = made.head.token_losses(z, target, io["train_t"], io["train_noise"])
    batch_B = torch.arange(len(images)).repeat_interleave(kept_BK.shape[1])
    return {
        "train_teacher_input": known_BKE,
        "train_last_indices": codes_BN[:, coarse:],
        "train_rest": rest_BKE,
        "train_kept": torch.stack([batch_B, kept_BK.flatten()]),
        "train_logits_every16": logits_BKV[..., ::16],
        "train_sampled_last_indices": sampled_BK.flatten(),
        "train_diff_target": target,
        "train_diff_z": z,
        "train_diff_loss": (mse + bound).mean()[None],
    }
