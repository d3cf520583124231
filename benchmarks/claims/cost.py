"""What guidance costs at the published sizes: MixAR-L with each injector, fresh weights, 256 tokens, alternating."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from attrs import frozen

import mixar
from benchmarks.claims.jobs import figures_of, write_figures
from benchmarks.runner import Desk
from mixar.plugins import plugin_manager
from mixar_core.masking import random_orders, take
from mixar_core.model import MixAR
from mixar_core.noise import Noise
from mixar_core.types import DrawnCodes, Step, TokenBatch
from mixar_eval.bench import Clock

#: recipes that are timed, and what they are called in the table; MAR-L has another head, so its backbone alone compares
ARMS = {"mixar_l": "dc-mix", "mixar_l_dc_sa": "dc-sa", "mixar_l_dc_ca": "dc-ca", "mar_l": "none (MAR-L)"}
#: of a plan of STEPS steps: shares of the tokens that are known, at which a step is timed
STEPS, HEAD_STEPS, SHARES = 64, 100, (0.0, 0.25, 0.5, 0.75)
ROUNDS = 5


def rows(desk: Desk) -> list[dict[str, Any]]:
    """What was timed: a row an arm and round."""
    file = figures_of("full-size", "cost", desk)
    return json.loads(file.read_text()) if file.is_file() else []


@frozen
class Cost:
    """A job: the rounds that are not timed yet."""

    name: str = "full-size"
    run: str = "full-size"
    needs: frozenset[str] = frozenset()
    threads: int = 2

    def done(self, desk: Desk) -> bool:
        """Whether all rounds are there."""
        return len(rows(desk)) >= len(ARMS) * (1 if desk.quick else ROUNDS)

    def perform(self, desk: Desk) -> None:
        """Every round times each arm once; figures are written after every round."""
        models = {arm: _model(recipe, desk) for recipe, arm in ARMS.items()}
        for model in models.values() if not desk.quick else ():  # what a first pass sets up is not counted
            _timed(model, desk)
        while not self.done(desk):
            found = rows(desk)
            about = {"seed": len(found) // len(ARMS)}
            found += [{"arm": arm, **about, **_timed(model, desk)} for arm, model in models.items()]
            write_figures(figures_of("full-size", "cost", desk), found)


def _model(recipe: str, desk: Desk) -> MixAR:
    """Backbone, injector and head as published, of fresh weights; tokenizers as small as may be, which do not run."""
    changes: dict[str, Any] = {"continuous_tokenizer.channels": 32, "ti_mix.schedule": "constant"}
    if recipe.startswith("mixar"):
        changes |= {"prior": None, "discrete_tokenizer.channels": 32}
    if desk.quick:
        changes |= {"backbone": {"width": 64, "depth": 1, "heads": 4}, "head": {"depth": 1, "width": 64}}
    torch.manual_seed(0)
    built = mixar.build(mixar.load_recipe(recipe, changes), plugin_manager(), load_weights=False)
    assert built.model is not None
    return built.model.to(desk.device)


def _timed(model: MixAR, desk: Desk) -> dict[str, float]:
    """Seconds of one image: all steps of the backbone, of the head, and of training, forward and backward."""
    device = torch.device(desk.device)
    images = 1 if desk.quick else (32 if device.type == "cuda" else 2)
    backbone, clock, noise = model.backbone, Clock(device), Noise.seeded(0, device=device)
    tokens, autocast = backbone.layout.tokens, partial(torch.autocast, device.type, torch.bfloat16)
    labels_B = torch.zeros(images, dtype=torch.int64, device=device)
    codes_BN = torch.zeros(images, tokens, dtype=torch.int64, device=device)
    codes = DrawnCodes(codes_BN) if model.injector.needs_codes else None
    x_BNC = torch.randn(images, tokens, backbone.token_dim, device=device)
    order_BN = random_orders(images, tokens, noise=noise, device=device)
    step = Step(cfg=2.0, head_steps=4 if desk.quick else HEAD_STEPS)
    model.eval()
    with torch.no_grad(), autocast():
        for share in SHARES:
            known, count = round(share * tokens), tokens // STEPS
            state = backbone.start(model.condition(labels_B), model.guidance(codes), guided=True)
            state.reveal(order_BN[:, :known], take(x_BNC, order_BN[:, :known]))
            with clock.part("backbone"):
                z = state.predict(order_BN[:, known : known + count], step)
            z = z._replace(tokens_BNC=x_BNC, known_BN=torch.zeros_like(order_BN, dtype=torch.bool))
            with clock.part("head"):
                model.head.sample(z, step, noise=noise)
    model.train()
    side = backbone.layout.shape
    latents = torch.randn(images, backbone.token_dim, side.height, side.width, device=device)
    batch = TokenBatch(latents, None if codes is None else codes_BN, labels_B)
    with clock.part("training"):
        with autocast():
            loss = model.loss(batch, noise=Noise.seeded(1, device=device)).total
        loss.backward()
    model.zero_grad(set_to_none=True)
    spent = {name: seconds / images for name, seconds in clock.seconds.items()}
    sampling_s = (spent["backbone"] + spent["head"]) * STEPS / len(SHARES)
    return {
        "parameters": sum(p.numel() for p in model.trained.parameters()),
        "head_parameters": sum(p.numel() for p in model.head.parameters()),
        "sampling_s": sampling_s,
        "head_share_of_time": spent["head"] / (spent["backbone"] + spent["head"]),
        "training_s": spent["training"],
    }


def compared(desk: Desk) -> list[dict[str, Any]]:
    """Timings, and each as a share of dc-mix's in the same round."""
    found = rows(desk)
    base = {row["seed"]: row for row in found if row["arm"] == "dc-mix"}

    def ratio(row: Mapping[str, Any], of: str) -> float:
        return row[of] / base[row["seed"]][of]

    return [
        {
            **row,
            "head_share": row["head_parameters"] / row["parameters"],
            "sampling_ratio": ratio(row, "sampling_s"),
            "training_ratio": ratio(row, "training_s"),
        }
        for row in found
    ]
