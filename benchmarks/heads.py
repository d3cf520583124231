"""Which head draws best? `python -m benchmarks.heads [--setting mar] [--heads flow,mse] [--seeds 0,1,2]`

Trains the digits with each head, for the same steps, as plain MAR (`--setting mar`: no codes, so that all that tokens
tell each other goes through backbone and head) or as DC-Mix (`--setting dc-mix`: codes say most of it). Each model then
draws 500 digits in 4 autoregressive steps (several tokens at once) and in 16 (one after the other). What was done
already is not done again. At the end the figures of all runs are printed as a table, in Markdown, and written to
`heads.csv`: validation loss, share recognised, kernel distance (KID) to the real validation digits, processor
seconds an image.
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
from safetensors.torch import load_file, save_file

import mixar
from mixar_core.data.loader import load_readable
from mixar_eval.distances import kernel_distance
from mixar_zoo.classifier import DigitClassifier, fit_classifier
from mixar_zoo.data_sets import Digits, NoSettings

HEADS = ("diffusion", "flow", "joint", "mixture", "energy", "categorical", "mse")
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "mar": {"injector": {"type": "none"}, "ti_mix.schedule": "constant"},
    "dc-mix": {"ti_mix.schedule": "constant"},
}
#: autoregressive steps: of 16 tokens, one to seven at once, and one after the other
AR_STEPS = (4, 16)
COUNT = 500
FIGURES = ("parameters", "loss", *(f"{name}_{n}" for n in AR_STEPS for name in ("recognised", "kid", "seconds")))


def main(
    setting: str = "mar",
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
            run(setting, head, seed, steps, out / setting / f"{head}-{seed}")
    if report:
        table(measure(out / setting), out / setting / "heads.csv")


def run(setting: str, head: str, seed: int, steps: int, folder: Path) -> None:
    """Train one model and draw with it, unless that is done."""
    recipe = mixar.load_recipe(
        "digits_quick" if head == "diffusion" else f"digits_{head}",
        {
            **SETTINGS[setting],
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
    model = mixar.load(folder)
    labels = torch.arange(10).repeat_interleave(COUNT // 10)
    drawn, seconds = {}, {}
    for count in AR_STEPS:
        began = time.process_time()  # with one thread the seconds of one core, whatever else the machine does
        drawn[str(count)] = model.generate(labels, steps=count, seed=seed, batch_size=COUNT).images.contiguous()
        seconds[str(count)] = (time.process_time() - began) / COUNT
    (folder / "seconds.json").write_text(json.dumps(seconds) + "\n")
    save_file(drawn, folder / "drawn.safetensors")


def measure(folder: Path) -> list[dict[str, object]]:
    """A row for every finished run under the folder, and one for real digits and those of other images."""
    judge = fit_classifier(*digits("train"))
    real = judge.judge(digits("validation")[0])[1]
    rows: list[dict[str, object]] = []
    for head in HEADS:
        for path in sorted(folder.glob(f"{head}-*/drawn.safetensors")):
            rows.append({"head": head, "seed": int(path.parent.name.split("-")[-1]), **figures(path, judge, real)})
    others = judge.judge(digits("train")[0][: len(real)])[1]
    print(f"kernel distance of as many real training digits: {kernel_distance(others, real):.4f}\n")
    return rows


def figures(path: Path, judge: DigitClassifier, real: torch.Tensor) -> dict[str, float]:
    """What a run's digits, log and weights say."""
    folder, labels = path.parent, torch.arange(10).repeat_interleave(COUNT // 10)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = json.loads((folder / "seconds.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    found: dict[str, float] = {
        "parameters": sum(tensor.numel() for name, tensor in weights.items() if name.startswith("head.")),
        "loss": [entry["losses"]["ema/loss"] for entry in log if entry["kind"] == "validation"][-1],
    }
    for count, images in load_file(path).items():
        guessed, features = judge.judge(images)
        found[f"recognised_{count}"] = float((guessed == labels).float().mean())
        found[f"kid_{count}"] = kernel_distance(features, real)
        found[f"seconds_{count}"] = seconds[count]
    return found


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 and labels of a split."""
    dataset = Digits(NoSettings(), split=split, image_size=32)
    loaded = load_readable(dataset, list(range(len(dataset))))
    return loaded.pixels_B3HW, loaded.labels_B


def table(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    """Every run to the file; mean and standard deviation over the seeds of each head to the terminal."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("head", "seed", *FIGURES))
        writer.writeheader()
        writer.writerows(rows)
    print(f"| head | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}")
    for head in dict.fromkeys(str(row["head"]) for row in rows):
        cells = []
        for name in FIGURES:
            values = [float(str(row[name])) for row in rows if row["head"] == head]
            digits_ = 0 if name == "parameters" else 4
            spread = f" ± {stdev(values):.{digits_}f}" if len(values) > 1 and name != "parameters" else ""
            cells.append(f"{mean(values):.{digits_}f}{spread}")
        print(f"| {head} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
