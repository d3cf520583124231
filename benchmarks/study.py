"""What studies of digits share: runs that are trained once, a judge of digits, tables with the spread over seeds.

A study says what each of its runs trains and how it is measured. The rows of figures of a run stay in `measured.json`
in its folder, with pictures in `few.safetensors`: the same command goes on where it was stopped, and tells of all runs
that are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import typer
from attrs import frozen
from safetensors.torch import load_file, save_file
from torch import Tensor

import mixar
from mixar_core.data.loader import load_readable
from mixar_core.pictures import rows_picture, write_png
from mixar_core.storage import write_text
from mixar_eval.distances import frechet_distance, kernel_distance
from mixar_eval.report import csv_text, number, table
from mixar_zoo.classifier import DigitClassifier, fit_classifier
from mixar_zoo.data_sets import Digits, NoSettings

Row = dict[str, Any]
#: what is found of a run: rows of figures, and images by what they show
Found = tuple[Sequence[Row], Mapping[str, Tensor]]
#: a run that tells nothing while it trains
QUIET: Row = {"callbacks": [], "training.evaluate_every": 0, "training.preview_every": 0}

# ---------------------------------------------------------------- runs


def names(text: str, known: Iterable[str]) -> list[str]:
    """Of a list with commas."""
    if unknown := [name for name in text.split(",") if name not in known]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; allowed: {', '.join(known)}")
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(number) for number in text.split(",")]


def validated(steps: int, *, parts: int = 1) -> Row:
    """Changes of a recipe: so many steps, and the loss on all validation digits at the end of each part of them."""
    measured = {"training.evaluate_every": steps // parts, "training.evaluate_batches": 31}
    return {"training.steps": steps, **measured, "callbacks": []}


def trained(
    folder: Path,
    recipe: str,
    changes: Mapping[str, Any],
    registry: mixar.Registry | None = None,
    device: str | None = None,
) -> Path:
    """A run's folder, once it is trained; `seconds.json` there has the processor seconds that took."""
    if not (folder / "weights.safetensors").is_file():
        began = time.process_time()  # with one thread the seconds of one core, whatever else the machine does
        settings = mixar.load_recipe(recipe, changes, registry=registry)
        if mixar.train(settings, folder, resume=folder.exists(), registry=registry, device=device).stopped:
            raise typer.Exit(1)
        write_text(folder / "seconds.json", json.dumps(time.process_time() - began) + "\n")
    return folder


def seconds_of(run: Path) -> float:
    """The processor seconds of its training."""
    return float(json.loads((run / "seconds.json").read_text()))


def log_of(run: Path, kind: str) -> list[Row]:
    """What its log says: of `train` or `validation`."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses_of(run: Path) -> dict[int, Mapping[str, float]]:
    """Validation losses by step."""
    return {line["step"]: line["losses"] for line in log_of(run, "validation")}


def last_loss(run: Path) -> float:
    """The validation loss of the averaged weights at its end."""
    return [*losses_of(run).values()][-1]["ema/loss"]


def measured(run: Path, measure: Callable[[Path, Row], Found], **about: Any) -> None:
    """Measure a trained run, unless that is done; `about` names it in every row, and `measure` is told it, too."""
    if not (run / "measured.json").is_file():
        rows, pictures = measure(run, about)
        save_file({name: images.contiguous() for name, images in pictures.items()}, run / "few.safetensors")
        write_text(run / "measured.json", json.dumps([{**about, **row} for row in rows], indent=1) + "\n")


# ---------------------------------------------------------------- digits


@cache
def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and classes (N,) of a split."""
    dataset = Digits(NoSettings(), split=split, image_size=32)
    loaded = load_readable(dataset, list(range(len(dataset))))
    return loaded.pixels_B3HW, loaded.labels_B


def balanced(count: int) -> Tensor:
    """Classes (count,), every digit as often."""
    return torch.arange(10).repeat_interleave(count // 10)


def rows_of_each(labels_B: Tensor, each: int, behind: int = 0) -> Tensor:
    """Rows of so many images of every class, behind its first ones."""
    return torch.cat([(labels_B == label).nonzero()[behind : behind + each, 0] for label in labels_B.unique()])


def first_of_each(images_B3HW: Tensor, labels_B: Tensor, each: int) -> Tensor:
    """So many images of every class."""
    return images_B3HW[rows_of_each(labels_B, each)]


def variance(features_BF: Tensor, labels_B: Tensor) -> float:
    """Within a class, summed over the features, mean over the classes."""
    return float(torch.stack([features_BF[labels_B == label].var(dim=0).sum() for label in labels_B.unique()]).mean())


def figures_of(
    looked: tuple[Tensor, Tensor], labels_B: Tensor, reference_NF: Tensor, like: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Share recognised as what was asked for, distances to the reference, variety as a share of real images'.

    Args:
        looked: the classes that images are taken for, and their features. like: real features with their classes.
    """
    found_B, features_BF = looked
    return {
        "recognised": float((found_B == labels_B).float().mean()),
        "kernel": kernel_distance(features_BF, reference_NF),
        "frechet": frechet_distance(features_BF, reference_NF),
        "variety": variance(features_BF, labels_B) / variance(*like),
    }


@frozen(eq=False)
class Judge:
    """A classifier fitted on the real training digits, and the features that it has of the validation digits."""

    classifier: DigitClassifier
    real_BF: Tensor

    def figures(self, images_B3HW: Tensor, labels_B: Tensor) -> dict[str, float]:
        """Measured against the validation digits."""
        like = self.real_BF, digits("validation")[1]
        return figures_of(self.classifier.judge(images_B3HW), labels_B, self.real_BF, like)

    def real(self, count: int) -> dict[str, float]:
        """The figures of as many real training digits as are drawn."""
        return self.figures(first_of_each(*digits("train"), count // 10), balanced(count))


@cache
def judge() -> Judge:
    """The judge of all studies."""
    with torch.enable_grad():  # whoever asks may draw without
        classifier = fit_classifier(*digits("train"))
    return Judge(classifier, classifier.judge(digits("validation")[0])[1])


def drawn(model: mixar.Model, labels_B: Tensor, *, seed: int, batch_size: int = 250, **how: Any) -> tuple[Tensor, Row]:
    """Digits uint8 (B, 3, 32, 32), and a row of their figures and of the processor seconds that one took."""
    began = time.process_time()
    images = model.generate(labels_B, seed=seed, batch_size=batch_size, **how).images
    seconds = (time.process_time() - began) / len(labels_B)
    return images, {**judge().figures(images, labels_B), "seconds": seconds}


def codes_alone(model: mixar.Model, codes_BN: Tensor, batch_size: int = 250) -> Tensor:
    """What codes decode to by themselves, uint8."""
    return torch.cat([model.decode_codes(part) for part in codes_BN.split(batch_size)])


# ---------------------------------------------------------------- tables


def report(file: Path, runs: Path, by: Sequence[str], order: Sequence[str] = (), *, title: str = "seed 0") -> None:
    """Tell of all runs in a folder: FILE.csv, means and deviations on the terminal, FILE.png of seed 0's pictures.

    Args:
        by: columns whose values name a line of the table; figures are all other ones but `seed`.
        order: of the first of these columns, where it is not the alphabet's.
    """
    found = sorted(runs.glob("*/measured.json"))
    rows = [row for path in found for row in json.loads(path.read_text())]
    if order:
        rows.sort(key=lambda row: order.index(row[by[0]]))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file.with_suffix(".csv"), csv_of(rows))
    print(table(spreads(rows, by)))
    pictures = {k: v for path in reversed(found) for k, v in load_file(path.with_name("few.safetensors")).items()}
    if pictures:
        write_png(file.with_suffix(".png"), rows_picture(dict(sorted(pictures.items())), title))


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows as CSV, figures with six digits."""
    return csv_text([{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])


def spreads(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[Row]:
    """A row for each combination of values of the columns `by`: all figures with their spread over the seeds."""
    figures = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in (*by, "seed")]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in by), []).append(row)
    return [
        dict(zip(by, map(str, group), strict=True))
        | {"seeds": str(len(of))}
        | {key: spread([row[key] for row in of if row.get(key) is not None]) for key in figures}
        for group, of in groups.items()
    ]


def spread(values: Sequence[Any]) -> str:
    """Mean ± standard deviation of figures; a text, if it is always the same."""
    if not values:
        return ""
    if len(set(values)) == 1:
        return values[0] if isinstance(values[0], str) else str(number(values[0], 3))
    deviation = stdev(values)
    return f"{number(mean(values), 3)} ± {deviation:.{0 if deviation >= 10 else 1}{'f' if deviation >= 10 else 'g'}}"
