"""How well do edits fit? `python -m benchmarks.editing [--models digits,emoji64] [--inputs FOLDER]`

Five validation images a class of the digits and of the emoji are edited with three seeds, in several ways. Printed are
mean absolute differences in levels of 256, as mean +- spread (half of what lies between the largest and the smallest
of three seeds): from the input, of the pixels that are kept, all and near the region, as decoded and pasted; and of
neighbouring pixels across the region's edge, with the quotient of that and what it is beside the edge (one: no seam).
Of digits also the share that a classifier of real digits takes for the class asked for. With --inputs nothing is
measured: the folder gets the validation images of docs/editing.md as PNG files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

import mixar
from benchmarks import study
from mixar.assembly import open_data
from mixar.plugins import plugin_manager
from mixar.regions import measure_seam, paste_into, tokens_in
from mixar_core.data.dataset import ImageDataset
from mixar_core.pictures import to_pil, write_png
from mixar_eval.report import table

SEEDS, EACH = (0, 1, 2), 5
#: of the pictures in docs/editing.md, by their number in the validation split
SHOWN = {"emoji64": (9, 84, 120, 201), "digits": (800,)}


def main(models: str = "digits,emoji64", inputs: Path | None = None) -> None:
    """Print one table a model, or write the inputs."""
    for name in study.names(models, SHOWN):
        data = open_data(recipe := mixar.load_recipe(name), plugin_manager(), "validation")
        assert isinstance(data, ImageDataset)
        if inputs is not None:
            inputs.mkdir(parents=True, exist_ok=True)
            for number in SHOWN[name]:
                write_png(inputs / f"{name}_{number}.png", to_pil(data[number][0]))
            continue
        model, labels = mixar.load(name), data.labels()
        of_class = [[n for n, label in enumerate(labels) if label == c] for c in range(recipe.num_classes)]
        picked = [numbers[len(numbers) * k // EACH] for numbers in of_class for k in range(EACH)]
        images, own = [data[number][0] for number in picked], [labels[number] for number in picked]
        print(f"{name}: {told(model, images)}")
        if name == "digits":
            print(f"of the {len(own)} inputs themselves {recognised(torch.stack(images), own):.0f}% are recognised")
        print(f"{name}: {len(images)} images, seeds {SEEDS}")
        side = images[0].shape[-1]
        print(table([{"edit": what, **measured(model, images, own, **case)} for what, case in cases(side).items()]))


def cases(size: int) -> dict[str, dict[str, Any]]:
    """Ways to edit, as arguments of `Model.edit`; `ahead` draws the class so many further on."""
    quarter, half = size // 4, size // 2
    middle, lower = (quarter, quarter, half, half), (0, half, size, half)
    return {
        "inpaint the middle, both": {"mask": middle},
        "the same, peeking": {"mask": middle, "peek": True},
        "inpaint the middle, latents": {"mask": middle, "level": "latents"},
        "inpaint the middle, codes": {"mask": middle, "level": "codes"},
        "inpaint the lower half, both": {"mask": lower},
        "the same, peeking ": {"mask": lower, "peek": True},
        "the lower half, another class": {"mask": lower, "ahead": 1},
        "the same, peeking  ": {"mask": lower, "peek": True, "ahead": 1},
        "outside the middle, another class": {"mask": middle, "outside": True, "ahead": 1},
        "outpaint from the middle": {"place": (quarter, quarter, half)},
    }


def measured(
    model: mixar.Model, images: list[Tensor], labels: list[int], *, ahead: int = 0, **case: Any
) -> dict[str, str]:
    """The figures of a way to edit, mean and half the range over the seeds."""
    wanted, found = [(label + ahead) % model.recipe.num_classes for label in labels], list[dict[str, float]]()
    for seed in SEEDS:
        edited = model.edit(images, labels=wanted, seed=seed, **case)
        cut = measure_seam(
            edited.originals, paste_into(edited.originals, edited.raw, edited.regions, 0), edited.regions
        )
        kept = {"kept": edited.raw_seam.kept, "near": edited.raw_seam.near, "kept, pasted": edited.seam.kept}
        row = {name: float(values.mean()) for name, values in kept.items()}
        for name, seam in {"across": edited.raw_seam, "cut hard": cut, "pasted": edited.seam}.items():
            row |= {name: float(seam.across.mean()), f"{name} / beside": float(seam.across.mean() / seam.beside.mean())}
        if model.recipe.name == "digits":
            row["recognised, %"] = recognised(edited.images, wanted)
        found.append(row)
    columns = {name: [row[name] for row in found] for name in found[0]}
    return {name: f"{sum(v) / len(v):.2f} ± {(max(v) - min(v)) / 2:.2f}" for name, v in columns.items()}


def recognised(images_B3HW: Tensor, labels: list[int]) -> float:
    """Percent that the judge of digits takes for what was asked."""
    found_B = study.judge().classifier.judge(images_B3HW)[0]
    return 100 * float((found_B == torch.tensor(labels)).float().mean())


@torch.no_grad()
def told(model: mixar.Model, images: list[Tensor]) -> str:
    """How much kept tokens tell of a region: what changes in them when another image stands in it."""
    system, pixels = model.system, torch.stack(images)
    whole, codes = system.model, system.discrete_tokenizer
    assert whole is not None and codes is not None
    quarter = pixels.shape[-1] // 4
    middle = (..., slice(quarter, 3 * quarter), slice(quarter, 3 * quarter))
    other, mask_BHW = pixels.clone(), torch.zeros_like(pixels[:, 0], dtype=torch.bool)
    other[middle], mask_BHW[middle] = pixels.roll(EACH // 2 + 3 * EACH, 0)[middle], True
    floats = [each.float() / 127.5 - 1.0 for each in (pixels, other)]
    one, two = (whole.patchify(whole.continuous_tokenizer.encode(each)) for each in floats)
    change_BN, codes_BN = (one - two).abs().mean(dim=2), codes.encode(floats[0]) != codes.encode(floats[1])
    inside_BN = tokens_in(mask_BHW, whole.backbone.layout)
    return (
        f"another image in the middle changes latents there by {change_BN[inside_BN].mean():.2f} standard deviations, "
        f"kept ones by {change_BN[~inside_BN].mean():.2f}; of the kept codes "
        f"{100 * codes_BN[~inside_BN].float().mean():.0f}%"
    )


if __name__ == "__main__":
    typer.run(main)
