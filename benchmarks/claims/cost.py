"""What guidance costs at the published sizes: MixAR-L with each injector, fresh weights, 256 tokens, alternating."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from attrs import frozen

import mixar
from benchmarks.claims.jobs import Desk
from mixar.plugins import plugin_manager
from mixar_core.masking import random_orders, take
from mixar_core.model import MixAR
from mixar_core.noise import Noise
from mixar_core.storage import write_text
from mixar_core.types import DrawnCodes, Step, TokenBatch

#: recipes that are timed, and what they are called in the table; MAR-L has another head, so its backbone alone compares
ARMS = {"mixar_l": "dc-mix", "mixar_l_dc_sa": "dc-sa", "mixar_l_dc_ca": "dc-ca", "mar_l": "none (MAR-L)"}
#: of a plan of STEPS steps: shares of the tokens that are known, at which a step is timed
STEPS, HEAD_STEPS, SHARES = 64, 100, (0.0, 0.25, 0.5, 0.75)
ROUNDS = 5


@frozen
class Cost:
    """A job: the rounds that are not timed yet."""

    name: str = "full-size"
    run: ClassVar[str] = "full-size"
    needs: ClassVar[frozenset[str]] = frozenset()
    threads: ClassVar[int] = 2

    def done(self, desk: Desk) -> bool:
        """Whether all rounds are there."""
        return len(rows(desk)) >= len(ARMS) * (1 if desk.quick else ROUNDS)


def rows(desk: Desk) -> list[dict[str, Any]]:
    """What was timed: a row an arm and round."""
    file = desk.figures("full-size", "cost")
    return json.loads(file.read_text()) if file.is_file() else []


def perform(desk: Desk) -> None:
    """Every round times each arm once; figures are written after every round."""
    found = rows(desk)
    models = {arm: _model(recipe, desk) for recipe, arm in ARMS.items()}
    rounds = 1 if desk.quick else ROUNDS
    first = len(found) // len(ARMS)
    if not desk.quick:
        for model in models.values():  # what a first pass sets up is not counted
            _timed(model, desk)
    for number in range(first, rounds):
        found += [{"arm": arm, "seed": number, **_timed(model, desk)} for arm, model in models.items()]
        file = desk.figures("full-size", "cost")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(found) + "\n")


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
    cuda = desk.device.startswith("cuda")
    images = 1 if desk.quick else (32 if cuda else 2)
    backbone, tokens, noise = model.backbone, model.backbone.layout.tokens, Noise.seeded(0, device=desk.device)
    labels_B = torch.zeros(images, dtype=torch.int64, device=desk.device)
    codes_BN = torch.zeros(images, tokens, dtype=torch.int64, device=desk.device)
    codes = DrawnCodes(codes_BN) if model.injector.needs_codes else None
    x_BNC = torch.randn(images, tokens, backbone.token_dim, device=desk.device)
    order_BN = random_orders(images, tokens, noise=noise, device=desk.device)
    step = Step(cfg=2.0, head_steps=4 if desk.quick else HEAD_STEPS)
    spent = {"backbone": 0.0, "head": 0.0}
    model.eval()
    with torch.no_grad(), torch.autocast(desk.device.split(":")[0], torch.bfloat16):
        for share in SHARES:
            known, count = round(share * tokens), tokens // STEPS
            state = backbone.start(model.condition(labels_B), model.guidance(codes), guided=True)
            state.reveal(order_BN[:, :known], take(x_BNC, order_BN[:, :known]))
            positions_BK = order_BN[:, known : known + count]
            z, seconds = _seconds(partial(state.predict, positions_BK, step), cuda)
            spent["backbone"] += seconds
            z = z._replace(tokens_BNC=x_BNC, known_BN=torch.zeros_like(order_BN, dtype=torch.bool))
            spent["head"] += _seconds(partial(model.head.sample, z, step, noise=noise), cuda)[1]
    scale = STEPS / len(SHARES) / images
    backbone_s, head_s = spent["backbone"] * scale, spent["head"] * scale

    model.train()
    side = backbone.layout.shape
    latents = torch.randn(images, backbone.token_dim, side.height, side.width, device=desk.device)
    batch = TokenBatch(latents, None if codes is None else codes_BN, labels_B)

    def training() -> None:
        with torch.autocast(desk.device.split(":")[0], torch.bfloat16):
            loss = model.loss(batch, noise=Noise.seeded(1, device=desk.device)).total
        loss.backward()

    _, training_s = _seconds(training, cuda)
    model.zero_grad(set_to_none=True)
    of_head = sum(p.numel() for p in model.head.parameters())
    return {
        "parameters": sum(p.numel() for p in model.trained.parameters()),
        "head_parameters": of_head,
        "sampling_s": backbone_s + head_s,
        "head_share_of_time": head_s / (backbone_s + head_s),
        "training_s": training_s / images,
    }


def _seconds(call: Callable[[], Any], cuda: bool) -> tuple[Any, float]:
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = call()
    if cuda:
        torch.cuda.synchronize()
    return result, time.perf_counter() - began
