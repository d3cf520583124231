"""The paper's view of guidance: what an injector costs in tokens, parameters and time, and what it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from PIL import Image

from mixar.assembly import build
from mixar.cost import estimate, planned_steps
from mixar.memory import drawn_codes
from mixar.model import Model
from mixar.plugins import Registry
from mixar.sampling import Plan
from mixar_core.data.dataset import class_misfit
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_eval.context import EvalContext
from mixar_eval.points import Curves, draw_panels, measure_points
from mixar_eval.references import Reference
from mixar_eval.report import Report, Section, number, readable, score_names

TABLE, PICTURE = "guidance.csv", "guidance.png"
#: of the settings, what a row says first
_SETTINGS = ("steps", "cfg", "cfg_schedule", "temperature")


def check_models(models: Mapping[str, Model]) -> None:
    """Refuse what is no MixAR, and models of different sizes or classes."""
    one = next(iter(models.values()))
    first = one.recipe
    for name, model in models.items():
        if model.system.model is None:
            raise UserError(f"{name}: trains {model.recipe.trains}; guidance is compared among MixARs")
        if not model.system.model.backbone.masks:
            raise UserError(f"{name}: its backbone has no encoder and decoder, whose tokens are compared here")
        for key in ("image_size", "num_classes"):
            mine, theirs = getattr(model.recipe, key), getattr(first, key)
            if mine != theirs:
                raise UserError(f"{name}: {key} {mine}, and {first.name} has {theirs}; they do not compare")
        if misfit := class_misfit(model.class_names, one.class_names):
            raise UserError(f"{name}: {misfit} of {first.name}; models of the same classes compare")


def cost_of(model: Model, sampling: SamplingConfig, registry: Registry) -> dict[str, Any]:
    """What drawing an image takes with these settings, counted on the meta device.

    Returns:
        `injector`: the recipe's; `parameters`: trainable ones; `encoder_first`, `encoder_last`: length of the sequence
        in the encoder at the first and at the last step; `decoder`: in the decoder; `memory`: tokens that
        cross-attention looks at in every block; `tokens`: through both, over all steps, guidance's second pass
        included; `gflop`: None where a part cannot be counted.
    """
    recipe = evolve(model.recipe, sampling=sampling)
    system = build(recipe, registry, meta=True)
    assert system.model is not None and recipe.injector is not None
    found = estimate(system)
    memory_BMD = system.model.guidance(drawn_codes(system)).memory_BMD
    front, decoder = found.tokens["sampling_encoder_first"], found.tokens["sampling_decoder"]
    total = known = 0
    for planned in planned_steps(system.model, sampling):
        count, passes = planned.positions_BK.shape[1], 1 + (planned.step.cfg != 1.0)
        known -= count if planned.step.redraw else 0
        total += passes * (front + known + decoder)
        known += count
    gflop = found.sampling_gflop["total"]
    return {
        "injector": recipe.injector.type,
        "parameters": system.parameters,
        "encoder_first": front,
        "encoder_last": found.tokens["sampling_encoder_last"],
        "decoder": decoder,
        "memory": 0 if memory_BMD is None else memory_BMD.shape[1],
        "tokens": total,
        "gflop": None if isinstance(gflop, str) else gflop,
    }


def compare_guidance(
    models: Mapping[str, Model],
    plans: Mapping[tuple[str, int], Plan],
    folder: Path,
    reference: Reference,
    context: EvalContext,
) -> Report:
    """Draw and measure with every plan, and report distances beside costs; every process calls this.

    Args:
        plans: by model's name and number of steps, all of as many images.
    """
    jobs = {f"{name}_steps-{steps}": (name, models[name], plan) for (name, steps), plan in plans.items()}
    found = measure_points(jobs, folder, reference, context)
    points, gives_fid = found.points, context.extractor.gives_fid
    floor = None if found.floor is None else found.floor.scores.frechet
    rows = []
    for point, (name, model, plan) in zip(points, jobs.values(), strict=True):
        cost = cost_of(model, plan.settings, context.registry)
        drawn = {key: point.drawn["plan"]["settings"][key] for key in _SETTINGS}
        rows.append({"injector": cost["injector"], "model": name, **drawn, **cost, **point.row()})
    below = [
        f"Floor: {score_names(gives_fid)[0]} {number(floor) or 'not known'} ({found.shared['floor']}).",
        "Encoder and decoder: length of the sequence in one pass, of the encoder at the first and the last step. "
        "Memory: tokens that every block's cross-attention looks at besides. Tokens: through both, over all steps, the "
        "second pass of classifier-free guidance included. Cost is of an image, seconds of one process, prior and "
        "decoder included. Rows compare with each other and with nothing else.",
    ]
    return found.report(
        context,
        title="Guidance: what it costs and gains",
        figures={label: point.scores.frechet for label, point in zip(jobs, points, strict=True)},
        plain={"rows": [row | {"drawn": point.drawn} for row, point in zip(rows, points, strict=True)]},
        section=Section(rows=[readable(row, gives_fid) for row in rows], below=below),
        of_all="What all rows share",
        notes=reference.notes,
        pictures={PICTURE: _plot(rows, gives_fid=gives_fid, floor=floor)},
        rows=(TABLE, rows),
    )


def _plot(rows: Sequence[Mapping[str, Any]], *, gives_fid: bool, floor: float | None) -> Image.Image:
    """The Frechet distance over tokens, time and parameters; a curve a model, a point a number of steps."""
    panels: dict[str, Curves] = {}
    for row in rows:
        for across, place in (
            ("tokens through encoder and decoder, an image", row["tokens"]),
            ("seconds an image", row["seconds_per_image"] or 0.0),
            ("trainable parameters, millions", row["parameters"] / 1e6),
        ):
            curve = panels.setdefault(across, {}).setdefault(f"{row['injector']} ({row['model']})", [])
            curve.append((place, row["frechet_distance"]))
    title = f"{rows[0]['images']:,} images each"
    return draw_panels(panels, up=score_names(gives_fid)[0], title=title, floor=floor)
