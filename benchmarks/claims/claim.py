"""A claim as a value: measurements, how they are grouped, and what would make it hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve, frozen

from benchmarks.claims.jobs import Drawn, Training

SEEDS = (0, 1, 2)
#: optimizer steps, of batches of 32, of most runs; and of those that go on from a finished run
STEPS, MORE = 800, 400
#: how often the validation loss is measured
LOSS = {"training.evaluate_every": 200, "training.evaluate_batches": 31}
PLAIN: dict[str, Any] = {"ti_mix.schedule": "constant", "training.steps": STEPS, **LOSS}
TRUTH, NONE = Drawn("truth"), Drawn("none")

#: the digits model that comes with mixar-zoo (3,500 steps of 64, TI-Mix to 0.8), drawn with by three seeds
SHIPPED = tuple(Training(f"digits-{seed}", None, seed=seed, shipped="digits") for seed in SEEDS)


@frozen
class Entry:
    """A measurement that a claim looks at: figures of a run and of a set drawn with it.

    Args:
        arm: what is compared; x: where on the horizontal axis, if there is one.
        rank: smaller ones come first, of all claims together.
    """

    arm: str
    training: Training
    drawn: Drawn
    x: float | str | None = None
    rank: int = 5


@frozen
class Expected:
    """What would make the claim hold: of this figure one arm (at x, if there is one) lies below the other."""

    says: str
    figure: str
    lower: str
    higher: str
    x: float | str | None = None
    higher_x: float | str | None = None


@frozen
class Claim:
    """A claim of the paper and how it is looked at here.

    Args:
        says: what the paper claims. across: what x is. shown: figures of the plot, one panel each.
        figures: columns of the table.
    """

    name: str
    title: str
    says: str
    entries: tuple[Entry, ...]
    expected: tuple[Expected, ...]
    figures: tuple[str, ...] = ("recognised", "kernel", "frechet", "unlike")
    shown: tuple[str, ...] = ("kernel", "frechet")
    across: str = ""
    logarithmic: bool = False

    def again(
        self, name: str, title: str, entries: Iterable[Entry], expected: tuple[Expected, ...] | None = None
    ) -> Claim:
        """The same looked at with other measurements."""
        held = self.expected if expected is None else expected
        return evolve(self, name=name, title=title, entries=tuple(entries), expected=held)


def run_of(name: str, seed: int, changes: Mapping[str, Any], *needs: str, recipe: str = "digits_quick") -> Training:
    """A run of a recipe of digits or emoji, named with its seed."""
    data = "emoji" if recipe.startswith("emoji") else "digits"
    return Training(f"{name}-{seed}", recipe, changes, seed, needs, data)
