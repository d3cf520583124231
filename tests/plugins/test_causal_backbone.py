"""The causal backbone: who sees whom, and a cache that changes no number."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar.assembly import build as build_system
from mixar.recipe import load_recipe
from mixar_core.errors import UserError
from mixar_core.masking import put, random_orders, raster_orders, split_by_order, take
from mixar_core.model import Kept, MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.testing.common import build, normal
from mixar_core.training.engine import gather_policy
from mixar_core.training.objective import MixARObjective
from mixar_core.training.settings import TrainingConfig
from mixar_core.types import NO_CLASS, Condition, Grid, Guidance, ImageBatch, MaskSplit, Step, TokenLayout
from mixar_plugins.backbones.causal import CausalBackbone, CausalConfig
from mixar_plugins.networks.transformer import rotary_angles, rotate
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
from tests.toys import small_mixar

GRID = TokenLayout("grid", (Grid(3, 4),))
TOKENS, WIDTH, BATCH, CHANNELS = GRID.tokens, 16, 2, 3
SMALL = CausalConfig(width=WIDTH, depth=2, heads=2, buffer=3, dropout=0.0, attention_dropout=0.0)
DOORS = ("none", "fill", "prefix", "memory")
ORDERS = ("raster", "random")
CONDITION = Condition(torch.tensor([3, NO_CLASS]))
seeds = st.integers(0, 2**31 - 1)


def made(layout: TokenLayout = GRID, condition_width: int = 0, **changes) -> CausalBackbone:
    sizes = {"layout": layout, "token_dim": CHANNELS, "num_classes": 5, "condition_width": condition_width}
    return CausalBackbone(evolve(SMALL, **changes), memory=True, **sizes)


def causal(condition_width: int = 0, **changes) -> CausalBackbone:
    return build(lambda: made(condition_width=condition_width, **changes))


MODELS = {
    (order, positions): causal(order=order, positions=positions)
    for order in ORDERS
    for positions in ("rotary", "learned")
}


def guidance_of(door: str, seed: int = 0) -> Guidance:
    length = {"none": 0, "fill": TOKENS, "prefix": 5, "memory": 7}[door]
    vectors = normal(BATCH, length, WIDTH, seed=seed)
    return Guidance(**({} if door == "none" else {f"{door}_{['BND', 'BPD', 'BMD'][DOORS.index(door) - 1]}": vectors}))


def orders_of(order: str, seed: int = 0) -> Tensor:
    if order == "raster":
        return raster_orders(BATCH, TOKENS, device="cpu")
    return random_orders(BATCH, TOKENS, noise=Noise.seeded(seed), device="cpu")


def with_order(model: CausalBackbone, order_BN: Tensor, tokens_BNC: Tensor, guidance: Guidance, condition=CONDITION):
    """z (B, N, D) of all tokens, predicted in this order."""
    return model(tokens_BNC, MaskSplit(order_BN[:, :0], order_BN), condition, guidance)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("positions", ["rotary", "learned"])
@given(seeds, st.sampled_from(ORDERS), st.integers(0, TOKENS - 1), st.data())
@settings(max_examples=10)
@torch.no_grad()
def test_a_prediction_sees_neither_its_own_token_nor_later_ones(door, positions, seed, order, visible, data) -> None:
    model, guidance = MODELS[order, positions], guidance_of(door)
    split = split_by_order(orders_of(order, seed), TOKENS - visible)
    changed = data.draw(st.integers(0, TOKENS - visible - 1))
    tokens_BNC = normal(BATCH, TOKENS, CHANNELS)
    position_B1 = split.masked_BK[:, changed : changed + 1]
    other_BNC = put(tokens_BNC, position_B1, take(tokens_BNC, position_B1) + 1.0)
    z, other_z = (model(tokens, split, CONDITION, guidance) for tokens in (tokens_BNC, other_BNC))
    assert torch.equal(z[:, : changed + 1], other_z[:, : changed + 1])
    assert all(not torch.equal(z[:, later], other_z[:, later]) for later in range(changed + 1, TOKENS - visible))


@torch.no_grad()
def test_every_token_is_a_target_in_the_order_in_which_it_is_known() -> None:
    model = MODELS["random", "rotary"]
    order_BN = orders_of("random", 3)
    split = model.split(order_BN, 0.3)
    assert torch.equal(split.masked_BK, order_BN.flip(1)) and split.visible_BU.shape == (BATCH, 0)
    raster = MODELS["raster", "rotary"].split(orders_of("raster"), 0.3)
    assert torch.equal(raster.masked_BK, torch.arange(TOKENS).expand(BATCH, -1))
    assert [MODELS[order, "rotary"].order for order in ORDERS] == ["raster", "any"]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("door", DOORS)
@given(seeds, st.sampled_from(list(MODELS)), st.lists(st.integers(1, 5), min_size=1, max_size=6))
@settings(max_examples=6)
@torch.no_grad()
def test_cached_sampling_agrees_with_a_pass_over_what_was_drawn(door, guided, seed, key, counts) -> None:
    model, guidance, tokens_BNC = MODELS[key], guidance_of(door), normal(BATCH, TOKENS, CHANNELS, seed=seed % 1000)
    order_BN = orders_of(key[0], seed).flip(1)
    state = model.start(CONDITION, guidance, guided=guided)
    none = Condition(torch.full_like(CONDITION.labels_B, NO_CLASS))
    until = [0]
    for count in [*counts, TOKENS]:
        until.append(min(TOKENS, until[-1] + count))
    for known, after in pairwise(until):
        if after == known:
            continue
        positions_BK = order_BN[:, known:after]
        z = state.predict(positions_BK, Step(cfg=2.0 if guided else 1.0))
        assert torch.equal(z.positions_BK, positions_BK) and (z.uncond_BKD is not None) == guided
        for index in range(after - known):  # each from what is known alone: as if it came next
            next_BN = torch.cat(
                [order_BN[:, :known], positions_BK[:, index:], positions_BK[:, :index], order_BN[:, after:]], dim=1
            )
            cond_BD = with_order(model, next_BN, tokens_BNC, guidance)[:, known]
            torch.testing.assert_close(z.cond_BKD[:, index], cond_BD, atol=1e-5, rtol=1e-5)
            if z.uncond_BKD is not None:
                uncond_BD = with_order(model, next_BN, tokens_BNC, guidance, none)[:, known]
                torch.testing.assert_close(z.uncond_BKD[:, index], uncond_BD, atol=1e-5, rtol=1e-5)
        state.reveal(positions_BK, take(tokens_BNC, positions_BK))


@torch.no_grad()
def test_a_prediction_leaves_no_trace() -> None:
    model, tokens_BNC = MODELS["random", "rotary"], normal(BATCH, TOKENS, CHANNELS)
    first, second = orders_of("random", 5).split([5, 7], dim=1)
    state = model.start(CONDITION, guidance_of("fill"), guided=True)
    state.reveal(first, take(tokens_BNC, first))
    once = state.predict(second[:, :3], Step(cfg=2.0))
    unguided = state.predict(second, Step(cfg=1.0))
    again = state.predict(second[:, :3], Step(cfg=2.0))
    assert torch.equal(once.cond_BKD, again.cond_BKD) and torch.equal(once.uncond_BKD, again.uncond_BKD)
    assert unguided.uncond_BKD is None
    torch.testing.assert_close(unguided.cond_BKD[:, :3], once.cond_BKD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_code_speaks_for_its_own_position_alone() -> None:
    model, order_BN, tokens_BNC = MODELS["random", "rotary"], orders_of("random"), normal(BATCH, TOKENS, CHANNELS)
    fill_BND = normal(BATCH, TOKENS, WIDTH)
    other_BND = put(fill_BND, order_BN[:, 4:5], normal(BATCH, 1, WIDTH, seed=1))
    z, other_z = (with_order(model, order_BN, tokens_BNC, Guidance(fill_BND=fill)) for fill in (fill_BND, other_BND))
    assert [not torch.equal(z[:, i], other_z[:, i]) for i in range(TOKENS)] == [i == 4 for i in range(TOKENS)]


@torch.no_grad()
def test_a_fill_may_change_while_sampling_and_the_other_doors_may_not() -> None:
    model, order_BN, tokens_BNC = MODELS["random", "learned"], orders_of("random"), normal(BATCH, TOKENS, CHANNELS)
    state = model.start(CONDITION, guidance_of("fill"), guided=False)
    state.reveal(order_BN[:, :4], take(tokens_BNC, order_BN[:, :4]))
    state.guidance = guidance_of("fill", seed=1)
    z = state.predict(order_BN[:, 4:5], Step())
    uncached = with_order(model, order_BN, tokens_BNC, guidance_of("fill", seed=1))[:, 4:5]
    torch.testing.assert_close(z.cond_BKD, uncached, atol=1e-5, rtol=1e-5)
    for door in ("prefix", "memory"):
        state = model.start(CONDITION, guidance_of(door), guided=False)
        state.guidance = state.guidance
        with pytest.raises(UserError, match="prefix or memory"):
            state.guidance = guidance_of(door, seed=1)


@torch.no_grad()
def test_known_tokens_are_not_drawn_anew() -> None:
    model, order_BN = MODELS["random", "rotary"], orders_of("random")
    state = model.start(CONDITION, Guidance(), guided=False)
    state.reveal(order_BN, normal(BATCH, TOKENS, CHANNELS))
    with pytest.raises(UserError, match="cannot draw known tokens anew"):
        state.predict(order_BN[:, :2], Step(redraw=True))


@torch.no_grad()
def test_kept_tokens_in_raster_order_are_the_first_ones() -> None:
    model, tokens_BNC = MODELS["raster", "rotary"], normal(BATCH, TOKENS, CHANNELS)
    order_BN = torch.arange(TOKENS).expand(BATCH, -1)
    kept_BK = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(row)) for row in range(BATCH)])
    uncached = with_order(model, order_BN, tokens_BNC, Guidance())[:, 5:6]
    for calls in ([kept_BK], [order_BN[:, :2], order_BN[:, 2:5]]):
        state = model.start(CONDITION, Guidance(), guided=False)
        for positions_BK in calls:
            state.reveal(positions_BK, take(tokens_BNC, positions_BK))
        z = state.predict(order_BN[:, 5:6], Step())
        torch.testing.assert_close(z.cond_BKD, uncached, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="the first tokens only"):
        model.start(CONDITION, Guidance(), guided=False).reveal(kept_BK + 1, take(tokens_BNC, kept_BK))


@pytest.mark.parametrize("layout", [GRID, TokenLayout("sequence", (Grid(1, 12),))])
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_rotary_attention_knows_how_far_apart_two_positions_are(layout, first, second, shift) -> None:
    angles = rotary_angles(layout, 8)
    q, k = normal(8, seed=1), normal(8, seed=2)

    def score(a: int, b: int) -> Tensor:
        return (rotate(q, angles[a]) * rotate(k, angles[b])).sum()

    if layout.kind == "grid":  # down by rows, where both still lie in the grid
        first, second, shift = first % 4, second, 4 * (shift % 2)
    torch.testing.assert_close(score(first, second), score(first + shift, second + shift), atol=1e-5, rtol=1e-5)


def test_rotary_angles_are_those_of_row_and_column() -> None:
    angles = rotary_angles(GRID, 8)
    assert angles.shape == (TOKENS, 4)
    expected = torch.tensor([2.0, 0.02, 3.0, 0.03])  # position 11 is row 2, column 3; 10000^(0/4), 10000^(-2/4)
    torch.testing.assert_close(angles[11], expected)


def test_every_weight_gets_a_gradient_and_recomputing_changes_none() -> None:
    gradients = []
    for recompute in (False, True):
        model = causal(activation_checkpointing=recompute, positions="learned").train()
        order_BN, tokens_BNC = orders_of("random"), normal(BATCH, TOKENS, CHANNELS)
        z = with_order(model, order_BN, tokens_BNC, guidance_of("memory"), Condition(torch.tensor([1, NO_CLASS])))
        (z * normal(*z.shape, seed=1)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@torch.no_grad()
def test_a_condition_with_vectors_is_seen_by_every_prediction() -> None:
    model, order_BN, tokens_BNC = causal(condition_width=6), orders_of("random"), normal(BATCH, TOKENS, CHANNELS)
    vectors, labels_B = normal(BATCH, 3, 6), CONDITION.labels_B
    mask_BT = torch.tensor([[True, True, False]] * BATCH)
    z, other, unseen = (
        with_order(model, order_BN, tokens_BNC, Guidance(), Condition(labels_B, changed, mask_BT))
        for changed in (vectors, vectors + mask_BT[..., None], vectors + ~mask_BT[..., None])
    )
    assert torch.equal(z, unseen) and (z != other).any(dim=2).all()
    state = model.start(Condition(labels_B, vectors, mask_BT), Guidance(), guided=True)
    z0 = state.predict(order_BN[:, :1], Step(cfg=3.0))
    torch.testing.assert_close(z0.cond_BKD, z[:, :1], atol=1e-5, rtol=1e-5)
    assert not torch.equal(z0.cond_BKD, z0.uncond_BKD)


@pytest.mark.parametrize("layout", [GRID, TokenLayout("sequence", (Grid(1, 12),))])
@pytest.mark.parametrize("device", ["meta", "cpu"])
@torch.no_grad()
def test_it_runs_without_values_and_in_half_precision(device: str, layout: TokenLayout) -> None:
    with torch.device(device):
        model = made(layout, order="raster").eval()
    order_BN = torch.arange(TOKENS, device=device).expand(BATCH, -1)
    tokens_BNC, guidance = normal(BATCH, TOKENS, CHANNELS, device=device), Guidance()
    condition = Condition(CONDITION.labels_B.to(device))
    with torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu"):
        z = with_order(model, order_BN, tokens_BNC, guidance, condition)
        state = model.start(condition, guidance, guided=True)
        state.reveal(order_BN[:, :3], tokens_BNC[:, :3])
        cached = state.predict(order_BN[:, 3:5], Step(cfg=2.0)).cond_BKD
    assert z.shape == (BATCH, TOKENS, WIDTH) and cached.shape == (BATCH, 2, WIDTH)
    assert z.dtype == cached.dtype == torch.float32
    if device == "cpu":
        torch.testing.assert_close(cached[:, 0], z[:, 3], atol=0.05, rtol=0.05)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of heads"):
        CausalConfig(width=16, heads=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        CausalConfig(width=12, heads=2)
    assert CausalConfig(width=12, heads=2, positions="learned").heads == 2


def causal_mixar(injector: str, sampler: CosineConfig, **changes) -> MixAR:
    model = small_mixar(injector)
    sizes = {"layout": model.backbone.layout, "token_dim": 3, "num_classes": 5, "memory": injector == "dc-ca"}
    model.trained["backbone"] = build(lambda: CausalBackbone(evolve(SMALL, **changes), **sizes))
    model.sampler = CosineSampler(sampler)
    return model


RASTER, RANDOM = CosineConfig(order="raster", tokens_per_step=1), CosineConfig(tokens_per_step=3)


@pytest.mark.parametrize("injector", ["none", "dc-mix", "dc-sa", "dc-ca"])
@pytest.mark.parametrize("order, sampler", [("raster", RASTER), ("random", RANDOM)])
def test_a_mixar_trains_and_draws_with_it(injector: str, order: str, sampler: CosineConfig) -> None:
    model = causal_mixar(injector, sampler, order=order)
    images = ImageBatch(normal(3, 3, 16, 16).clamp(-1, 1), torch.tensor([0, 4, NO_CLASS]))
    objective = MixARObjective(model, SamplingConfig(cfg=2.0)).train()
    objective(
        objective.tokenize(images, noise=Noise.seeded(0)), step=0, steps=1, noise=Noise.seeded(0)
    ).total.backward()
    assert [name for name, parameter in model.trained.named_parameters() if parameter.grad is None] == []
    model.eval()
    latents = normal(3, 3, 4, 4)
    kept = Kept(latents, torch.arange(5).expand(3, -1))
    before = torch.get_rng_state()
    one, same = (
        model.generate(Condition(images.labels_B), settings=SamplingConfig(cfg=2.0), noise=Noise.seeded(1), kept=kept)
        for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.latents_BChw, same.latents_BChw) and one.latents_BChw.isfinite().all()
    assert torch.equal(one.latents_BChw.flatten(2)[:, :, :5], latents.flatten(2)[:, :, :5])


def test_a_plan_that_raster_order_cannot_follow_is_refused() -> None:
    for config in (CosineConfig(), CosineConfig(order="raster"), evolve(RASTER, tokens_per_step=2)):
        assert not CosineSampler(config).raster
        with pytest.raises(UserError, match="predicts row by row"):
            model = causal_mixar("none", config, order="raster").eval()
            model.generate(CONDITION, settings=SamplingConfig(), noise=Noise.seeded(0))
    assert CosineSampler(RASTER).raster


def test_compiled_blocks_draw_the_same() -> None:
    torch.compiler.reset()
    settings, drawn = SamplingConfig(cfg=2.0), []
    for compiled in (False, True):
        model = causal_mixar("dc-ca", CosineConfig(tokens_per_step=8)).eval()
        for block in model.backbone.blocks() if compiled else ():
            block.compile(backend="eager", fullgraph=True)
        drawn.append(model.generate(CONDITION, settings=settings, noise=Noise.seeded(0)).latents_BChw)
    torch.compiler.reset()
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=1e-4)


def test_the_shipped_recipe_fits(registry) -> None:
    model = build_system(load_recipe("digits_causal", registry=registry), registry, meta=True).model
    assert model is not None and isinstance(model.backbone, CausalBackbone)
    with pytest.raises(UserError, match="order raster"):
        build_system(load_recipe("digits_causal", {"backbone.order": "raster"}, registry=registry), registry, meta=True)


def test_fsdp_gathers_its_blocks_as_a_backbones() -> None:
    config = TrainingConfig(steps=1, batch_size=1, precision="bf16")
    for block in MODELS["random", "rotary"].blocks():
        assert gather_policy(block, config, torch.device("cuda")).param_dtype == torch.bfloat16


class TwoAtOnce(CosineSampler):
    """Promises to go row by row, and draws two tokens a step."""

    def __init__(self) -> None:
        super().__init__(CosineConfig(order="raster", tokens_per_step=2))
        self.raster = True


def test_a_plan_of_several_tokens_a_step_is_refused_whatever_its_sampler_promises() -> None:
    model = causal_mixar("none", CosineConfig(order="raster", tokens_per_step=1), order="raster").eval()
    model.sampler = TwoAtOnce()
    with pytest.raises(UserError, match="2 tokens in one step; the backbone predicts row by row, one token a step"):
        model.plan(model.condition(torch.tensor([0])), SamplingConfig(), noise=Noise.seeded(0))
