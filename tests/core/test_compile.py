"""torch.compile of what is trained: no block breaks its graph, and no other count of masked tokens compiles anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mixar.assembly import build
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar.run import make_objective
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.training.objective import MixARObjective, Objective
from mixar_core.types import NO_CLASS, ImageBatch
from tests.toys import small_mixar


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(objective: Objective) -> CompileCounter:
    """Compile the objective's blocks with a backend that counts and generates no code; a break in a graph raises."""
    counter = CompileCounter()
    for block in objective.blocks():
        block.compile(backend=counter, fullgraph=True)
    return counter


def step(objective: Objective, images: ImageBatch, number: int) -> float:
    noise = Noise.seeded(number)
    batch = objective.tokenize(images, noise=noise) if objective.takes_tokens else images
    total = objective(batch, step=number, steps=100, noise=noise).total
    total.backward()
    return total.item()


@pytest.mark.parametrize("injector", ["dc-mix", "dc-ca"])
def test_other_counts_of_masked_tokens_compile_nothing_anew(injector: str) -> None:
    images = ImageBatch(torch.rand(3, 3, 32, 32) * 2 - 1, torch.tensor([0, 1, NO_CLASS]))
    plain, quick = (
        MixARObjective(small_mixar(injector, image_size=32, depth=2), SamplingConfig(steps=6, cfg=2.0)).train()
        for _ in range(2)
    )
    counter = compiled(quick)
    counts = []
    for number in range(8):
        assert step(quick, images, number) == pytest.approx(step(plain, images, number), rel=1e-5)
        counts.append(counter.frame_count)
    # One a kind of block and a length seen first, then one whose length is a variable; all blocks of a kind share them.
    assert counts[-1] == counts[2] <= 4
    rows = quick.eval().preview(images, noise=Noise.seeded(0))
    assert rows["sampled"].isfinite().all() and counter.frame_count - counts[-1] <= 4


@pytest.mark.parametrize("name", ["continuous", "discrete", "prior", "mixar"])
def test_no_block_of_a_recipe_breaks_its_graph(family: Path, registry: Registry, name: str) -> None:
    recipe = load_recipe(family / f"recipes/{name}.yaml", registry=registry)
    objective = make_objective(build(recipe, registry), registry).train()
    counter = compiled(objective)
    step(objective, ImageBatch(torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([0, 1])), 0)
    assert counter.frame_count > 0


@pytest.mark.parametrize("head", ["joint", "energy"])
def test_what_is_compiled_of_a_head_is_what_is_called(family: Path, registry: Registry, head: str) -> None:
    chosen = {"head": {"type": head, "width": 16, "depth": 2}}
    recipe = load_recipe(family / "recipes/mixar.yaml", chosen, registry=registry)
    objective, called = make_objective(build(recipe, registry), registry).train(), set()
    for block in objective.blocks():
        block.register_forward_hook(lambda module, *_: called.add(module))
    step(objective, ImageBatch(torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([0, 1])), 0)
    assert called == {*objective.blocks()}
