"""The paper's view of guidance: what an injector costs in tokens, parameters and time, and what it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen

from mixar.assembly import build
from mixar.cost import META, estimate
from mixar.model import Model
from mixar.plugins import Registry
from mixar_core.errors import UserError
from mixar_core.masking import masked_after_step
from mixar_core.model import SamplingConfig
from mixar_eval.markdown import distance_names, facts, number, table
from mixar_eval.plots import Curve, draw_panels
from mixar_eval.points import Measured, figures


@frozen
class Cost:
    """What drawing an image takes.

    Args:
        injector: the recipe's. parameters: trainable ones.
        encoder_first, encoder_last: length of the sequence in the encoder at the first and at the last step.
        decoder: in the decoder. memory: tokens that cross-attention looks at in every block.
        tokens: through both, over all steps, guidance's second pass included.
        gflop: of one image; None where a part cannot be counted.
    """

    injector: str
    parameters: int
    encoder_first: int
    encoder_last: int
    decoder: int
    memory: int
    tokens: int
    gflop: float | None


@frozen
class Row:
    """A model with its cost and scores at one number of steps."""

    model: str
    steps: int
    cost: Cost
    measured: Measured

    def row(self) -> dict[str, Any]:
        """As the CSV file has it."""
        images, settings = self.measured.scores.count, self.measured.settings
        return {
            "model": self.model,
            "steps": self.steps,
            **{key: settings[key] for key in ("cfg", "cfg_schedule", "temperature")},
            **attrs.asdict(self.cost),
            "images": images,
            **figures(self.measured),
        }


def check_models(models: Mapping[str, Model]) -> None:
    """See that models can be compared.

    Raises:
        UserError: one is no MixAR, or they are of different sizes or classes.
    """
    first = next(iter(models.values())).recipe
    for name, model in models.items():
        if model.system.model is None:
            raise UserError(f"{name}: trains {model.recipe.trains}; guidance is compared among MixARs")
        for key in ("image_size", "num_classes"):
            mine, theirs = getattr(model.recipe, key), getattr(first, key)
            if mine != theirs:
                raise UserError(f"{name}: {key} {mine}, and {first.name} has {theirs}; they do not compare")


def cost_of(model: Model, sampling: SamplingConfig, registry: Registry) -> Cost:
    """What an image costs with these settings, counted on the meta device."""
    recipe = attrs.evolve(model.recipe, sampling=sampling)
    system = build(recipe, registry, meta=True)
    assert system.model is not None and recipe.injector is not None
    found = estimate(system)
    codes_BN = torch.zeros(1, system.model.backbone.grid.tokens, dtype=torch.int64, device=META)
    memory_BMD = system.model.guidance(codes_BN).memory_BMD
    front, decoder = found.tokens["sampling_encoder_first"], found.tokens["sampling_decoder"]
    tokens = before = decoder - front
    total = 0
    for after in masked_after_step(tokens, sampling.steps):
        if after < before:  # a step that fixes no token costs nothing
            total += front + tokens - before + decoder
        before = after
    passes = 2 if sampling.cfg != 1.0 and recipe.num_classes else 1
    return Cost(
        injector=recipe.injector.type,
        parameters=system.parameters,
        encoder_first=front,
        encoder_last=found.tokens["sampling_encoder_last"],
        decoder=decoder,
        memory=0 if memory_BMD is None else memory_BMD.shape[1],
        tokens=passes * total,
        gflop=found.sampling_gflop["total"],
    )


def plot_guidance(rows: Sequence[Row], path: Path, *, gives_fid: bool, floor: float | None) -> None:
    """The Frechet distance over tokens, time and parameters; a curve a model, a point a number of steps.

    Raises:
        UserError: it cannot be written.
    """
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(f"{row.cost.injector} ({row.model})", []).append(row)

    def curves(of: Any) -> list[Curve]:
        return [
            Curve(name, tuple(of(row) for row in some), tuple(row.measured.scores.frechet for row in some))
            for name, some in models.items()
        ]

    panels = [
        ("tokens through encoder and decoder, an image", curves(lambda row: row.cost.tokens)),
        ("seconds an image", curves(lambda row: row.measured.seconds_per_image or 0.0)),
        ("trainable parameters, millions", curves(lambda row: row.cost.parameters / 1e6)),
    ]
    title = f"{rows[0].measured.scores.count:,} images each"
    draw_panels(path, panels, up=distance_names(gives_fid)[0], title=title, floor=floor)


def guidance_text(
    rows: Sequence[Row], shared: Mapping[str, Any], *, gives_fid: bool, floor: float | None, picture: str
) -> str:
    """The report as Markdown."""
    names = distance_names(gives_fid)
    columns = (
        "injector", "model", "steps", "cfg", "temperature", "encoder", "decoder", "memory", "tokens/image",
        "parameters", "GFLOP/image", "s/image", *names, "precision", "recall",
    )  # fmt: skip
    cells = [
        (
            row.cost.injector,
            row.model,
            row.steps,
            f"{row.measured.settings['cfg']:g}",
            f"{row.measured.settings['temperature']:g}",
            f"{row.cost.encoder_first}-{row.cost.encoder_last}",
            row.cost.decoder,
            row.cost.memory,
            f"{row.cost.tokens:,}",
            f"{row.cost.parameters / 1e6:,.2f}M",
            number(row.cost.gflop, 3),
            number(row.measured.seconds_per_image, 3),
            number(row.measured.scores.frechet),
            number(row.measured.scores.kernel),
            number(row.measured.scores.precision, 3),
            number(row.measured.scores.recall, 3),
        )
        for row in rows
    ]
    return "\n".join(
        [
            "# Guidance: what it costs and gains\n",
            table(columns, cells, right=tuple(range(2, len(columns)))),
            f"Floor: {names[0]} {number(floor) or 'not known'} ({shared['floor']}).\n",
            "Encoder and decoder: length of the sequence in one pass, of the encoder at the first and the last step. "
            "Memory: tokens that every block's cross-attention looks at besides. Tokens/image: through both, over all "
            "steps, the second pass of classifier-free guidance included. Seconds: of one process, prior and decoder "
            "included. Rows compare with each other and with nothing else.\n",
            f"![Scores over cost]({picture})\n",
            "## What all rows share\n",
            facts(shared),
        ]
    )
