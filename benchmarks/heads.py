"""Which head draws best? `python -m benchmarks.heads [--heads flow,mse] [--seeds 0,1,2]`

Trains the digits with each head as plain MAR (no codes: all that tokens tell each other goes through backbone and
head), for the same steps. Each model then draws 500 digits in 4 autoregressive steps (several tokens at once) and in 16
(one after the other). Figures: validation loss, share recognised, distances (kernel: KID) to the real validation
digits, variety (variance within a class, in the features that distances are taken in, as a share of that of the real
ones), and processor seconds an image of backbone, head and decoder.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import typer
from safetensors.torch import load_file
from torch import Tensor

import mixar
from benchmarks import study

HEADS = ("diffusion", "flow", "joint", "mixture", "energy", "categorical", "mse")
COUNT, AR_STEPS = 500, (4, 16)


def main(
    heads: str = ",".join(HEADS), seeds: str = "0,1,2", steps: int = 500, out: Path = Path("runs/heads/mar")
) -> None:
    """Train, draw, measure, and tell of all runs under `--out`."""
    plain = {"injector": {"type": "none"}, "ti_mix.schedule": "constant", **study.validated(steps)}
    for seed, head in product(study.numbers(seeds), study.names(heads, HEADS)):
        recipe = "digits_quick" if head == "diffusion" else f"digits_{head}"
        run = study.trained(out / f"{head}-{seed}", recipe, {**plain, "training.seed": seed})
        study.measured(run, drawn, head=head, seed=seed)
    study.report(out / "heads", out, ["head"], HEADS, title=f"two of each digit, in {AR_STEPS[0]} steps")
    print(f"kernel distance of as many real training digits: {study.judge().real(COUNT)['kernel']:.4f}")


def drawn(run: Path, about: study.Row) -> study.Found:
    """What a run's weights and log say, and its digits."""
    model, labels_B, row = mixar.load(run), study.balanced(COUNT), study.Row()
    few: dict[str, Tensor] = {}
    weights = load_file(run / "weights.safetensors")
    row["parameters"] = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("head."))
    row["loss"] = study.last_loss(run)
    for count in AR_STEPS:
        images, figures = study.drawn(model, labels_B, seed=about["seed"], steps=count, batch_size=COUNT)
        row |= {f"{name}_{count}": value for name, value in figures.items()}
        few.setdefault(about["head"], study.first_of_each(images, labels_B, 2))
    return [row], few


if __name__ == "__main__":
    typer.run(main)
