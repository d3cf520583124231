"""Reference curves: what a recipe's figures looked like in runs that went well, to hold one's own run beside."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from attrs import asdict, frozen

from mixar_core.errors import UserError
from mixar_core.storage import write_text

#: The figures that have a curve, by the names under which they are drawn.
FIGURES = ("train/loss", "run/gradient_norm", "train/codes_used", "validation/ema/loss")
#: A band's middle is the mean of what was reported so many steps before and after, and it is as wide as what lay off
#: the middle within so many; at least of one report on each side.
_SMOOTHED, _AROUND = 20, 50
#: It is wider by these shares of its width and of its height: for several runs, and for one alone, which does not show
#: how far two of them differ.
_WIDER = {True: (0.25, 0.05), False: (0.5, 0.15)}
#: At most so many points of a curve are kept.
_POINTS = 50

Curve = Mapping[int, float]


@frozen
class Band:
    """Where a figure lay: at `steps`, ascending, from `low` to `high`, and in the middle `middle`."""

    steps: tuple[int, ...]
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]

    def at(self, step: int) -> tuple[float, float, float] | None:
        """Low, middle and high at a step, between two points on the line that joins them; None beyond the ends."""
        if not self.steps or not self.steps[0] <= step <= self.steps[-1]:
            return None
        after = bisect_left(self.steps, step)
        before = max(0, after - 1)
        share = (step - self.steps[before]) / max(1, self.steps[after] - self.steps[before])
        sides = (self.low, self.middle, self.high)
        low, middle, high = (side[before] + share * (side[after] - side[before]) for side in sides)
        return low, middle, high

    @classmethod
    def of(cls, runs: Sequence[Curve]) -> Band:
        """The band of the same figure in one run or several, over the steps that all of them reported."""
        steps = sorted(set[int](runs[0]).intersection(*runs[1:]))
        middle = {step: mean(run[other] for run in runs for other in _near(steps, step, _SMOOTHED)) for step in steps}
        off = {step: [run[step] - middle[step] for run in runs] for step in steps}
        by_width, by_height = _WIDER[len(runs) > 1]
        never_below = 0.0 if min(map(min, (run.values() for run in runs)), default=0.0) >= 0.0 else -math.inf
        points = []
        for step in (kept := _thinned(steps)):
            found = [value for other in _near(steps, step, _AROUND) for value in off[other]]
            furthest = max(0.0, -min(found)), max(0.0, max(found))
            down, up = ((1 + by_width) * most + by_height * abs(middle[step]) for most in furthest)
            points.append((max(never_below, middle[step] - down), middle[step], middle[step] + up))
        rounded = [[float(f"{value:.4g}") for value in side] for side in zip(*points, strict=True)] or [[], [], []]
        return cls(tuple(kept), *map(tuple, rounded))


def _near(steps: Sequence[int], step: int, most: int) -> Sequence[int]:
    """Those steps that are at most so far from one of them, and its neighbours."""
    first, last = bisect_left(steps, step - most), bisect_right(steps, step + most)
    return steps[max(0, min(first, steps.index(step) - 1)) : max(last, steps.index(step) + 2)]


def _thinned(steps: Sequence[int]) -> list[int]:
    """The first, the last, and of those between as many as there is room for."""
    return sorted({steps[round(n * (len(steps) - 1) / (_POINTS - 1))] for n in range(_POINTS)}) if steps else []


@frozen
class Reference:
    """The bands of a recipe's figures, over its first `steps` steps in `runs` runs of other seeds; `made`: how."""

    steps: int
    runs: int
    bands: Mapping[str, Band]
    made: Mapping[str, Any] = {}

    def at(self, figure: str, step: int) -> tuple[float, float, float] | None:
        """Low, middle and high of a figure at a step; None where there is no curve of it, or not that far."""
        band = self.bands.get(figure)
        return None if band is None else band.at(step)

    @classmethod
    def of(cls, logs: Sequence[Path], **made: Any) -> Reference:
        """What the log.jsonl files of some runs of a recipe say; `made`: what a reader should know of them."""
        runs = [curves_of(log.read_text(encoding="utf-8").splitlines()) for log in logs]
        bands = {name: Band.of([run[name] for run in runs]) for name in FIGURES if all(name in run for run in runs)}
        return cls(min(max(run["train/loss"]) for run in runs), len(runs), bands, made)

    def write(self, path: Path) -> None:
        """As JSON, which `read` reads."""
        write_text(path, json.dumps(asdict(self), separators=(",", ":")).replace('"bands"', '\n"bands"') + "\n")

    @classmethod
    def read(cls, path: Path) -> Reference:
        """A file that `write` wrote.

        Raises:
            UserError: it is none.
        """
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            bands = {
                name: Band(**{key: tuple(side) for key, side in band.items()}) for name, band in plain["bands"].items()
            }
            return cls(plain["steps"], plain["runs"], bands, plain["made"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: holds no reference curves: {error}") from error


def curves_of(lines: Iterable[str]) -> dict[str, dict[int, float]]:
    """The values of every figure of FIGURES in a run's log, by step."""
    curves: dict[str, dict[int, float]] = {}
    for line in map(json.loads, lines):
        prefix = {"train": "train", "validation": "validation"}.get(line["kind"])
        if prefix is None:
            continue
        found = {f"{prefix}/{name}": value for name, value in line["losses"].items()}
        if prefix == "train":
            found["run/gradient_norm"] = line["gradient_norm"]
        for name in found.keys() & set(FIGURES):
            curves.setdefault(name, {})[line["step"]] = found[name]
    for curve in curves.values():  # the last report may be of fewer steps than the others
        if (last := max(curve)) % min(curve):
            del curve[last]
    return curves
