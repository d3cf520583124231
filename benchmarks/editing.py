"""How well do edits fit? `python -m benchmarks.editing [--inputs FOLDER]`

Five validation images a class of the digits and of the emoji are edited with three seeds, in several ways. Printed are
mean absolute differences in levels of 256, as mean +- spread (half of what lies between the largest and the smallest
of three seeds): from the input, of the pixels that are kept, all and near the region, as decoded and pasted; and of
neighbouring pixels across the region's edge, with the quotient of that and what it is beside the edge (one: no seam).
Of digits also the share that a classifier of real digits takes for the class asked for. With --inputs nothing is
measured: the folder gets the validation images of docs/editing.md as PNG files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mixar
from mixar.assembly import open_data
from mixar.cli.common import print_table
from mixar.plugins import plugin_manager
from mixar.recipe import Recipe
from mixar.regions import measure_seam, paste_into, tokens_in
from mixar_core.data.dataset import ImageDataset
from mixar_core.pictures import to_pil, write_png
from mixar_zoo.classifier import DigitClassifier, fit_classifier

SEEDS, EACH = (0, 1, 2), 5
#: of the pictures in docs/editing.md, by their number in the validation split
SHOWN = {"emoji64": (9, 84, 120, 201), "digits": (800,)}
COLUMNS = ("edit", "kept", "near", "kept, pasted", "across", "/ beside", "cut hard", "/ beside", "pasted", "/ beside")


def images_of(recipe: Recipe, split: str) -> ImageDataset:
    """A split of a recipe's data."""
    data = open_data(recipe, plugin_manager(), split)
    assert isinstance(data, ImageDataset)
    return data


def cases(size: int) -> dict[str, dict[str, Any]]:
    """Ways to edit, as arguments of `Model.edit`; `other` draws the next class."""
    quarter, half = size // 4, size // 2
    middle, lower = (quarter, quarter, half, half), (0, half, size, half)
    return {
        "inpaint the middle, both": {"mask": middle},
        "the same, peeking": {"mask": middle, "peek": True},
        "inpaint the middle, latents": {"mask": middle, "level": "latents"},
        "inpaint the middle, codes": {"mask": middle, "level": "codes"},
        "inpaint the lower half, both": {"mask": lower},
        "the same, peeking ": {"mask": lower, "peek": True},
        "the lower half, another class": {"mask": lower, "other": True},
        "the same, peeking  ": {"mask": lower, "peek": True, "other": True},
        "outside the middle, another class": {"mask": middle, "outside": True, "other": True},
        "outpaint from the middle": {"place": (quarter, quarter, half)},
    }


def measured(
    model: mixar.Model, images: list[Tensor], labels: list[int], judge: DigitClassifier | None, case: Any
) -> list[list[float]]:
    """One row of figures a seed."""
    case, rows = dict(case), []
    ahead = int(case.pop("other", False))
    wanted = [(label + ahead) % model.recipe.num_classes for label in labels]
    for seed in SEEDS:
        edited = model.edit(images, labels=wanted, seed=seed, **case)
        cut = paste_into(edited.originals, edited.raw, edited.regions, 0)
        seams = [edited.raw_seam, measure_seam(edited.originals, cut, edited.regions), edited.seam]
        row = [seams[0].kept, seams[0].near, seams[2].kept]
        for seam in seams:
            row += [seam.across, seam.across.mean() / seam.beside.mean()]
        figures = [float(values.mean()) for values in row]
        if judge is not None:
            figures.append(100 * float((judge.judge(edited.images)[0] == torch.tensor(wanted)).float().mean()))
        rows.append(figures)
    return rows


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


def cell(values: tuple[float, ...]) -> str:
    """Mean and half the range of what the seeds gave."""
    return f"{sum(values) / len(values):.2f} ± {(max(values) - min(values)) / 2:.2f}"


def main() -> None:
    """Print one table a model, or write the inputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["digits", "emoji64"], choices=["digits", "emoji64"])
    parser.add_argument("--inputs", type=Path, help="write the images of docs/editing.md there, and do nothing else")
    arguments = parser.parse_args()
    for name in arguments.models:
        data = images_of(recipe := mixar.load_recipe(name), "validation")
        if arguments.inputs is not None:
            arguments.inputs.mkdir(parents=True, exist_ok=True)
            for number in SHOWN[name]:
                write_png(arguments.inputs / f"{name}_{number}.png", to_pil(data[number][0]))
            continue
        model, judge, columns = mixar.load(name), None, list(COLUMNS)
        labels = data.labels()
        of_class = [[n for n, label in enumerate(labels) if label == c] for c in range(recipe.num_classes)]
        picked = [numbers[len(numbers) * k // EACH] for numbers in of_class for k in range(EACH)]
        images, own = [data[number][0] for number in picked], [labels[number] for number in picked]
        print(f"{name}: {told(model, images)}")
        if name == "digits":
            train = images_of(recipe, "train")
            pixels = torch.stack([train[number][0] for number in range(len(train))])
            judge = fit_classifier(pixels, torch.tensor(train.labels()))
            columns.append("recognised, %")
            right = (judge.judge(torch.stack(images))[0] == torch.tensor(own)).float().mean()
            print(f"of the {len(own)} inputs themselves {100 * float(right):.0f}% are recognised")
        rows = [
            [what, *map(cell, zip(*measured(model, images, own, judge, case), strict=True))]
            for what, case in cases(recipe.image_size).items()
        ]
        print_table(f"{name}: {len(images)} images, seeds {SEEDS}", columns, rows, right=range(1, len(columns)))


if __name__ == "__main__":
    main()
