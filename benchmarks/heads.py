"""Which head draws best? `python -m benchmarks.heads [--setting mar] [--heads flow,mse] [--seeds 0,1,2]`

Trains the digits with each head, for the same steps, as DC-Mix (`--setting dc-mix`: codes say most of what is drawn) or
as plain MAR (`--setting mar`: all that tokens tell each other goes through backbone and head). Each model then draws
digits: a DC-Mix 1,000, all from the same codes of the prior, in 4 autoregressive steps; a plain MAR 500 in 4 steps
(several tokens at once) and 500 in 16 (one after the other). What was done already is not done again. At the end the
figures of all runs are printed as a table, in Markdown, and written to `heads.csv`; some of what each head drew to
`heads.png`. Figures: validation loss, share recognised, kernel distance (KID) to the real validation digits, variety
(variance within a class, in the features that the distance is taken in, as a share of that of the real ones), and
processor seconds an image of backbone, head and decoder.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
import typer
from attrs import frozen
from safetensors.torch import load_file, save_file

import mixar
from mixar_core.data.loader import load_readable
from mixar_core.pictures import rows_picture, write_png
from mixar_eval.distances import kernel_distance
from mixar_zoo.classifier import DigitClassifier, fit_classifier
from mixar_zoo.data_sets import Digits, NoSettings

HEADS = ("diffusion", "flow", "joint", "mixture", "energy", "categorical", "mse")


@frozen
class Setting:
    """What a recipe is changed to, how many digits are drawn, in which numbers of autoregressive steps."""

    changes: Mapping[str, object]
    count: int
    ar_steps: tuple[int, ...]

    @property
    def figures(self) -> tuple[str, ...]:
        """Columns of the table."""
        each = (f"{name}_{n}" for n in self.ar_steps for name in ("recognised", "kid", "variety", "seconds"))
        return ("parameters", "loss", *each)

    @property
    def labels(self) -> torch.Tensor:
        """Every digit as often."""
        return torch.arange(10).repeat_interleave(self.count // 10)


SETTINGS = {
    "dc-mix": Setting({"ti_mix.schedule": "constant"}, 1000, (4,)),
    "mar": Setting({"injector": {"type": "none"}, "ti_mix.schedule": "constant"}, 500, (4, 16)),
}


def main(
    setting: str = "dc-mix",
    heads: str = ",".join(HEADS),
    seeds: str = "0,1,2",
    steps: int = 500,
    out: Path = Path("runs/heads"),
    report: bool = True,
) -> None:
    """Train, draw, measure, and print what all runs of the setting under `--out` have given."""
    if unknown := [name for name in heads.split(",") if name not in HEADS]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; allowed: {', '.join(HEADS)}")
    if setting not in SETTINGS:
        raise typer.BadParameter(f"setting {setting}; allowed: {', '.join(SETTINGS)}")
    for seed in map(int, seeds.split(",")):
        for head in heads.split(","):
            run(SETTINGS[setting], head, seed, steps, out / setting / f"{head}-{seed}")
    if report:
        rows = measure(SETTINGS[setting], out / setting)
        table(rows, SETTINGS[setting].figures, out / setting / "heads.csv")
        show(SETTINGS[setting], out / setting)


def run(setting: Setting, head: str, seed: int, steps: int, folder: Path) -> None:
    """Train one model and draw with it, unless that is done."""
    recipe = mixar.load_recipe(
        "digits_quick" if head == "diffusion" else f"digits_{head}",
        {
            **setting.changes,
            "training.seed": seed,
            "training.steps": steps,
            "training.evaluate_every": steps,
            "training.evaluate_batches": 31,
            "callbacks": [],
        },
    )
    if not (folder / "weights.safetensors").is_file():
        mixar.train(recipe, folder, resume=folder.exists())
    if (folder / "drawn.safetensors").is_file():
        return
    model, drawn, seconds = mixar.load(folder), {}, {}
    codes = None if "injector" in setting.changes else same_codes(model, setting.labels, folder.parent / "codes")
    for count in setting.ar_steps:
        began = time.process_time()  # with one thread the seconds of one core, whatever else the machine does
        images = model.generate(setting.labels, codes=codes, steps=count, seed=seed, batch_size=500).images
        drawn[str(count)], seconds[str(count)] = images.contiguous(), (time.process_time() - began) / setting.count
    (folder / "seconds.json").write_text(json.dumps(seconds) + "\n")
    save_file(drawn, folder / "drawn.safetensors")


def same_codes(model: mixar.Model, labels: torch.Tensor, file: Path) -> torch.Tensor:
    """Codes of the prior, drawn once for all models."""
    if not file.is_file():
        save_file({"codes": model.sample_codes(labels, seed=0)}, file)
    return load_file(file)["codes"]


def measure(setting: Setting, folder: Path) -> list[dict[str, object]]:
    """A row for every finished run under the folder."""
    judge = fit_classifier(*digits("train"))
    images, classes = digits("validation")
    real = judge.judge(images)[1]
    rows: list[dict[str, object]] = []
    for head in HEADS:
        for path in sorted(folder.glob(f"{head}-*/drawn.safetensors")):
            seed = int(path.parent.name.split("-")[-1])
            rows.append({"head": head, "seed": seed, **figures(path, setting, judge, real, classes)})
    images, labels = digits("train")
    others = torch.cat([(labels == digit).nonzero()[: setting.count // 10, 0] for digit in range(10)])
    floor = kernel_distance(judge.judge(images[others])[1], real)
    print(f"kernel distance of as many real training digits: {floor:.4f}\n")
    return rows


def figures(
    path: Path, setting: Setting, judge: DigitClassifier, real: torch.Tensor, classes: torch.Tensor
) -> dict[str, float]:
    """What a run's digits, log and weights say, beside the features and classes of real digits."""
    folder = path.parent
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = json.loads((folder / "seconds.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    found: dict[str, float] = {
        "parameters": sum(tensor.numel() for name, tensor in weights.items() if name.startswith("head.")),
        "loss": [entry["losses"]["ema/loss"] for entry in log if entry["kind"] == "validation"][-1],
    }
    for count, images in load_file(path).items():
        guessed, features = judge.judge(images)
        found[f"recognised_{count}"] = float((guessed == setting.labels).float().mean())
        found[f"kid_{count}"] = kernel_distance(features, real)
        found[f"variety_{count}"] = variance(features, setting.labels) / variance(real, classes)
        found[f"seconds_{count}"] = seconds[count]
    return found


def variance(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Of the features within a class, summed over them, mean over the classes."""
    return float(torch.stack([features[labels == digit].var(dim=0).sum() for digit in range(10)]).mean())


def show(setting: Setting, folder: Path) -> None:
    """Two of each digit as every head drew them, in the first numbers of steps and seed: `heads.png`."""
    few = torch.cat([(setting.labels == digit).nonzero()[:2, 0] for digit in range(10)])
    files = {head: sorted(folder.glob(f"{head}-*/drawn.safetensors")) for head in HEADS}
    first = str(setting.ar_steps[0])
    rows = {head: load_file(found[0])[first][few] for head, found in files.items() if found}
    write_png(folder / "heads.png", rows_picture(rows, f"two of each digit, in {first} steps"))


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 and labels of a split."""
    dataset = Digits(NoSettings(), split=split, image_size=32)
    loaded = load_readable(dataset, list(range(len(dataset))))
    return loaded.pixels_B3HW, loaded.labels_B


def table(rows: Sequence[Mapping[str, object]], names: Sequence[str], file: Path) -> None:
    """Every run to the file; mean and standard deviation over the seeds of each head to the terminal."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("head", "seed", *names))
        writer.writeheader()
        writer.writerows(rows)
    print(f"| head | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for head in dict.fromkeys(str(row["head"]) for row in rows):
        cells = []
        for name in names:
            values = [float(str(row[name])) for row in rows if row["head"] == head]
            places = 4 if "seconds" in name else 3
            cells.append(f"{mean(values):.0f}" if name == "parameters" else spread(values, f".{places}f"))
        print(f"| {head} | {' | '.join(cells)} |")


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation, which one value has not; `form` as in a format string."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


if __name__ == "__main__":
    typer.run(main)
