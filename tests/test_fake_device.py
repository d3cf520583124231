"""Every shipped recipe trains and draws on a GPU that is not there, and on `meta`; what would fail there is caught."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.optim import AdamW

from mixar.assembly import build
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import PART_KEYS, Recipe, load_recipe
from mixar.run import make_objective
from mixar_core.data.loader import BatchShard
from mixar_core.distributed import Processes
from mixar_core.mixture import TIMixConfig
from mixar_core.noise import Noise
from mixar_core.training.ema import EMA
from mixar_core.training.engine import Engine
from mixar_core.training.objective import MixARObjective, Objective
from mixar_core.training.optimizer import Optimizer, weights_of
from mixar_core.training.settings import TrainingConfig
from mixar_core.types import NO_CLASS, ImageBatch, TokenBatch
from mixar_plugins.optimizers.muon import Muon, MuonConfig
from tests.fake_device import GPU, META, DeviceNoise, HostNoise, OnlyOn, backward, fake_gpu, place
from tests.toys import small_mixar

BATCH = 2
#: trained with all their blocks: of every other recipe two of each stack (see `shorten`)
WHOLE = ("mixar_l",)


def shipped() -> list[Any]:
    """Every shipped recipe as a parameter; where several differ in numbers alone, all but one of them are slow."""
    registry, seen, parameters = plugin_manager(), set(), []
    for name in sorted(registry.recipes(), key=lambda name: (name not in WHOLE, name)):
        recipe = load_recipe(name, registry=registry)
        chosen = [(key, getattr(recipe, key)) for key in PART_KEYS if key not in ("data", "callbacks")]
        alike = repr(
            [(key, choice.type, without_numbers(attrs.asdict(choice.config))) for key, choice in chosen if choice]
        )
        parameters.append(pytest.param(name, marks=[pytest.mark.slow] if (recipe.trains, alike) in seen else []))
        seen.add((recipe.trains, alike))
    return parameters


def without_numbers(value: Any) -> Any:
    """A setting's kind and what is not a number in it."""
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_numbers(item) for item in value[:1]]
    return type(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


SHIPPED = shipped()
#: few steps of every sampler, because a third is as the second; and guidance, to which some recipes have set none
FEW_STEPS = {
    "mixar": ["sampling.steps=2", "sampling.prior_steps=2", "sampling.cfg=2"],
    "prior": ["prior.steps=2", "prior.guidance_scale=2"],
}

CHECKPOINTING = "activation_checkpointing"


def made(name: str, registry: Registry, *overrides: str) -> tuple[Recipe, Objective]:
    """A recipe with samplers of few steps, and its objective on `meta`; TI-Mix asks the prior in every step."""
    whole = load_recipe(name, registry=registry)
    few = [*FEW_STEPS.get(whole.trains, [])]
    if whole.trains == "prior" and not hasattr(whole.prior.config, "steps"):  # a code a step, or a scale
        few[0] = "prior.temperature=1" if whole.prior.type in ("var", "hart") else "image_size=64"
    if whole.head is not None and hasattr(whole.head.config, "sampling_steps"):  # others draw in one go
        few.append("sampling.head_steps=2")
    if whole.sampler is not None and getattr(whole.sampler.config, "tokens_per_step", None):
        few.append(f"sampler.tokens_per_step={128 if whole.image_size == 256 else 8}")
    recipe = load_recipe(name, registry=registry, overrides=[*few, *overrides])
    objective = make_objective(build(recipe, registry, meta=True), registry)
    if isinstance(objective, MixARObjective) and (prior := objective.model.prior) is not None and prior.predicts:
        objective.model.ti_mix = TIMixConfig(start=0.5)
    return recipe, objective


def images_for(recipe: Recipe, device: torch.device) -> ImageBatch:
    images_B3HW = torch.zeros(BATCH, 3, recipe.image_size, recipe.image_size, device=device)
    return ImageBatch(images_B3HW, torch.zeros(BATCH, dtype=torch.int64, device=device))


def checkpoint(objective: Objective) -> None:
    """Turn activation checkpointing on in every part that offers it."""
    for part in objective.modules():
        if hasattr(getattr(part, "config", None), CHECKPOINTING):
            part.config = attrs.evolve(part.config, **{CHECKPOINTING: True})


def shorten(objective: Objective) -> None:
    """Two blocks of every stack of equal ones: the third meets what the second met, and costs as much time."""
    for part in list(objective.modules()):
        if isinstance(part, nn.ModuleList) and len(part) > 2 and len({repr(block) for block in part}) == 1:
            del part[2:]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_on_a_gpu(registry: Registry, name: str) -> None:
    recipe, objective = made(name, registry)
    if name not in WHOLE:
        shorten(objective)
    with fake_gpu():
        place(objective, GPU)
        train_on_a_gpu(recipe, objective, precision="float32")
        shorten(objective)
        checkpoint(objective)
        train_on_a_gpu(recipe, objective, precision="bf16")
        draw(recipe, objective, GPU)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_on_meta(registry: Registry, name: str) -> None:
    recipe, objective = made(name, registry)
    if name not in WHOLE:
        shorten(objective)
    place(objective, META)
    train_on_meta(recipe, objective)
    shorten(objective)
    draw(recipe, objective, META)


@pytest.mark.parametrize("change", ["image_size=512", "num_classes=10000", "num_classes=0"])
@pytest.mark.parametrize("name", ["mixar_l", "maskbit_generator_14bit"])
def test_big_images_many_classes_and_none_on_a_gpu(registry: Registry, name: str, change: str) -> None:
    recipe, objective = made(name, registry, change)
    shorten(objective)
    with fake_gpu():
        place(objective, GPU)
        train_on_a_gpu(recipe, objective, precision="bf16")
        draw(recipe, objective, GPU)


TOGETHER = "also_trained=[continuous_tokenizer, discrete_tokenizer, prior]"


def test_parts_trained_together_stay_on_their_device(registry: Registry) -> None:
    recipe, objective = made("digits_quick", registry, TOGETHER)
    place(objective, META)
    train_on_meta(recipe, objective)
    recipe, objective = made("digits_quick", registry, TOGETHER)
    shorten(objective)
    with fake_gpu():
        place(objective, GPU)
        for optimizer in (Muon(MuonConfig()), None):
            train_on_a_gpu(recipe, objective, precision="bf16", optimizer=optimizer)
        draw(recipe, objective, GPU)


def train_on_a_gpu(recipe: Recipe, objective: Objective, *, precision: str, optimizer: Optimizer | None = None) -> None:
    """A whole step: from images through the frozen tokenizers to the clipped gradient, AdamW and the average."""
    config = attrs.evolve(recipe.training or TrainingConfig(steps=2), micro_batch=None, compile=False, clip=1.0)
    engine = Engine(objective, config, Processes(0, 1, GPU), steps=2, warmup=1, optimizer=optimizer)
    engine.config = attrs.evolve(config, precision=precision)
    source = SimpleNamespace(share=BatchShard(0, BATCH, BATCH), seed=0)
    with OnlyOn(GPU):
        given = engine.gradients(images_for(recipe, GPU), source, step=1, counts={})
        engine.update(1, attrs.evolve(given, norm=2.0))
    assert "loss" in given.losses
    moved = [p for p in engine.parameters if p.grad is not None]
    assert moved and all(p.device == GPU and p.dtype == torch.float32 for p in moved)


def train_on_meta(recipe: Recipe, objective: Objective) -> None:
    """A step in float32, since `meta` has no autocast, and by an AdamW that knows `meta`."""
    objective.train()
    optimizer = AdamW([weight.parameter for weight in weights_of(objective.trained, objective.no_weight_decay())])
    ema, noise, images = EMA(objective.trained, 0.9), DeviceNoise(), images_for(recipe, META)
    with OnlyOn(META):
        batch = objective.tokenize(images, noise=noise) if objective.takes_tokens else images
        losses = objective(batch, step=1, steps=2, noise=noise)
        losses.total.backward()
        ema.update()
    optimizer.step()  # counts its steps on the CPU
    assert losses.total.shape == () and losses.total.dtype == torch.float32


@torch.no_grad()
def draw(recipe: Recipe, objective: Objective, device: torch.device) -> None:
    """Codes and images, decoded: of a MixAR with guidance, and without; of the others as their preview has them."""
    objective.eval()
    images = images_for(recipe, device)
    if isinstance(objective, MixARObjective):
        model = objective.model
        condition = model.condition(images.labels_B)
        first = model.generate(condition, settings=recipe.sampling, noise=HostNoise())
        settings = attrs.evolve(recipe.sampling, steps=1, cfg=1.0, temperature=0.0)
        second = model.generate(condition, settings=settings, noise=HostNoise(), codes_BN=first.codes_BN)
        rows = {"guided": first.images_B3HW, "not guided": second.images_B3HW}
    else:
        rows = dict(objective.preview(images, noise=HostNoise()))
    assert len(rows) > 1
    for row in rows.values():
        assert row.shape == images.images_B3HW.shape and row.device == device
    objective.finish([(images, len(images))], lambda values: values)


class Faulty(nn.Module):
    """A block with a fault behind it."""

    def __init__(self, block: nn.Module, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.fault = block, fault

    def forward(self, x_BTD: Tensor, *given: Tensor | None) -> Tensor:
        return self.fault(self.block(x_BTD, *given))


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a table on the CPU": lambda x: x + torch.arange(x.shape[-1]),
    "a number on the CPU": lambda x: x * torch.tensor(2.0),
    "a copy to the CPU and back": lambda x: x.cpu().to(x.device),
    "a shape by values": lambda x: x[:, : x[x > 0].shape[0]],
    "a branch by values": lambda x: x if x.sum() > 0 else -x,
}


def faulty(registry: Registry, fault: str) -> tuple[Recipe, MixARObjective]:
    recipe, objective = made("digits_quick", registry)
    assert isinstance(objective, MixARObjective)
    blocks = objective.model.backbone.decoder_blocks
    blocks[0] = Faulty(blocks[0], FAULTS[fault])
    return recipe, objective


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("a table on the CPU", AssertionError, "makes a tensor on cpu"),
        ("a number on the CPU", AssertionError, "makes a tensor on cpu"),
        ("a copy to the CPU and back", AssertionError, "makes a tensor on cpu"),
        ("a shape by values", DynamicOutputShapeException, "nonzero"),
        ("a branch by values", DataDependentOutputException, "scalar"),
    ],
)
def test_a_fault_is_caught_in_training(registry: Registry, fault: str, error: type[Exception], message: str) -> None:
    recipe, objective = faulty(registry, fault)
    with fake_gpu(), pytest.raises(error, match=message):
        place(objective, GPU)
        train_on_a_gpu(recipe, objective, precision="bf16")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("a table on the CPU", RuntimeError, "on the same device"),
        ("a shape by values", DynamicOutputShapeException, "nonzero"),
        ("a branch by values", DataDependentOutputException, "scalar"),
    ],
)
def test_a_fault_is_caught_in_drawing(registry: Registry, fault: str, error: type[Exception], message: str) -> None:
    recipe, objective = faulty(registry, fault)
    with fake_gpu(), pytest.raises(error, match=message):
        place(objective, GPU)
        draw(recipe, objective, GPU)


@pytest.mark.parametrize("fault", ["a shape by values", "a branch by values"])
def test_a_fault_is_caught_on_meta(registry: Registry, fault: str) -> None:
    recipe, objective = faulty(registry, fault)
    place(objective, META)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        train_on_meta(recipe, objective)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_the_backward_pass_used_here_is_torchs(checkpoints: bool) -> None:
    model = small_mixar("dc-ca", activation_checkpointing=checkpoints).train()
    batch = TokenBatch(torch.randn(3, 3, 4, 4), torch.randint(8, (3, 16)), torch.tensor([0, 1, NO_CLASS]))

    def gradients(differentiate: Callable[[Tensor], None]) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            total = model.loss(batch, lam=0.5, noise=Noise.seeded(0)).total
        differentiate(total)
        found = {name: p.grad for name, p in model.trained.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    torchs, ours = gradients(lambda total: total.backward()), gradients(backward)
    assert torchs.keys() == ours.keys() and len(ours) > 50
    for name, gradient in torchs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-2, atol=1e-3, msg=name)
