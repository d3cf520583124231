"""Ways of sampling a model that `mixar tune` holds against each other: presets, and a grid of few steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from mixar.model import Model
from mixar.presets import read_preset
from mixar.recipe import PartChoice
from mixar.registry import PRESETS
from mixar.sampling import sampling_as
from mixar.speed import Precision
from mixar.structure import structure, unstructure
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_eval.context import EvalContext

#: what the others are held against
BASELINE = "exact"
#: of the grid beside the presets: steps, head steps, solvers with the temperature that they ask for, and the prior's
#: steps, of which None are as the recipe says
STEPS, HEAD_STEPS, SOLVERS, PRIOR_STEPS = (1, 2, 4, 8), (5, 10, 25), {"ddpm": None, "dpm++": 1.0}, (None, 8, 4, 2)
#: of the baseline, what is far too little
PROBES: Mapping[str, Mapping[str, int]] = {"1-step": {"steps": 1}, "2-head-steps": {"head_steps": 2}}


@frozen(eq=False)
class Candidate:
    """A way of sampling as a preset's file says it: a sampler, what it changes of `sampling`, and a precision."""

    name: str
    sampler: Mapping[str, Any]
    sampling: Mapping[str, Any]
    precision: Precision = "float32"

    def of(self, model: Model, context: EvalContext) -> Model:
        """The model, which is in this precision, sampling so; it shares the other's weights.

        Raises:
            UserError: the model cannot.
        """
        settings = dict(self.sampler)
        part = context.registry.part("sampler", str(settings.pop("type")))
        config = structure(settings, part.config, path="sampler")
        recipe = evolve(
            model.recipe,
            sampler=PartChoice(context.registry.name_of(part), config),
            sampling=structure({**unstructure(model.recipe.sampling), **self.sampling}, SamplingConfig),
        )
        return sampling_as(model, recipe, context.registry)


def candidates(
    model: Model, context: EvalContext, folder: Path | None = None, precision: Precision = "float32"
) -> dict[str, Candidate]:
    """By name: the presets that the model can take, and a grid of few steps; the baseline first.

    Args:
        folder: the model's, whose own presets come first.
        precision: of the grid. Presets are in float32, if they do not say another.

    Raises:
        UserError: the baseline is none of them, or the model draws no images by steps.
    """
    if model.system.model is None:
        raise UserError(f"model {model.recipe.name}: there is nothing to tune: it trains {model.recipe.trains}")
    found: dict[str, Candidate] = {}
    for candidate in [*_presets(context, folder), *_grid(model, precision)]:
        try:
            candidate.of(model, context)
        except UserError:
            if candidate.name == BASELINE:
                raise
        else:
            found.setdefault(candidate.name, candidate)
    return {BASELINE: found[BASELINE]} | found


def probes(baseline: Candidate) -> dict[str, Candidate]:
    """The baseline in one step, and in the fewest head steps, by name: where neither is worse, nothing can be seen."""
    return {
        f"{BASELINE}_{name}": evolve(baseline, name=f"{BASELINE}_{name}", sampling={**baseline.sampling, **fewer})
        for name, fewer in PROBES.items()
    }


def _presets(context: EvalContext, folder: Path | None) -> Iterator[Candidate]:
    own = {} if folder is None else {path.stem: [path] for path in sorted((folder / PRESETS).glob("*.yaml"))}
    for name, paths in {**context.registry.presets(), **own}.items():
        preset = read_preset(paths[0], context.registry)
        yield Candidate(name, preset["sampler"], preset["sampling"], preset["precision"] or "float32")


def _grid(model: Model, precision: Precision) -> Iterator[Candidate]:
    """Few steps of the backbone, few of the head, and few of the prior, where there is one."""
    assert model.system.model is not None
    steps = [count for count in STEPS if count <= model.system.model.backbone.layout.tokens]
    prior_steps = (None,) if model.system.prior is None else PRIOR_STEPS
    for some, head_steps, (solver, temperature), prior in product(steps, HEAD_STEPS, SOLVERS.items(), prior_steps):
        changes = {"temperature": temperature, "prior_steps": prior}
        sampling = {"steps": some, "head_steps": head_steps} | {k: v for k, v in changes.items() if v is not None}
        name = f"{some}x{head_steps}" + ("" if solver == "ddpm" else f"_{solver}") + (f"_prior{prior}" if prior else "")
        yield Candidate(name, {"type": "cosine", "solver": solver}, sampling, precision)
