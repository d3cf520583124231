"""One training of a family, in the time that is left to it.

How many steps fit is measured: the run is tried for some seconds, beside those it shares the machine with, and its
learning rate then falls over as many steps as the time left allows. A run that was stopped goes on with as many.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

import mixar
from benchmarks.study import losses_of
from mixar.folder import RECIPE, WEIGHTS, read_tensors
from mixar_core.training.callback import Callback, RunInfo, StepReport
from mixar_core.training.checkpoint import checkpoint_step, list_checkpoints
from mixar_zoo.publish import publish

#: validation is measured, and a checkpoint kept, so often over a run
LOOKS = 6
#: an earlier state is published, too, where its validation loss was lower by this share of the last one's
LOWER = 0.01
#: share of a tokenizer's steps before its discriminator begins
BEFORE_ADVERSARY = 0.4
#: of the time left, what steps are planned for: writing weights takes some, and others may need the machine
PLANNED = 0.92
#: of an earlier state's folder beside its run's
EARLY = ".early"


@frozen
class Spec:
    """What to train: a recipe and its changes, until when (of `time.time()`), on which device."""

    base: str
    changes: Mapping[str, Any]
    until: float
    device: str | None = None


class Trial(Callback):
    """Stops a run after some seconds of steps, as a person would, and keeps when they were reported."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = seconds, False
        self.reports: list[tuple[int, float]] = []

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        self.reports.append((report.step, time.time()))
        if not self.asked and len(self.reports) > 2 and time.time() - self.reports[0][1] > self.seconds:
            self.asked = True  # asked twice, it would end at once
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def rate(self) -> float:
        """Steps a second of the second half: the first has what is done once, by this run and by those beside it."""
        (first, then), (last, now) = self.reports[len(self.reports) // 2], self.reports[-1]
        return (last - first) / max(now - then, 1e-6)


def train(work: Spec, run: Path, model: Path) -> None:
    """Train, or go on, and publish what came out."""
    torch.backends.cudnn.benchmark = True  # shapes stay the same
    resume = (run / RECIPE).is_file()
    recipe = mixar.load_recipe(run / RECIPE) if resume else mixar.load_recipe(work.base, planned(work))
    if not (run / WEIGHTS).is_file() and mixar.train(recipe, run, resume=resume, device=work.device).stopped:
        print("stopped; goes on when it is started again")
        return
    publish(run, model)
    early(run, model.with_name(model.name + EARLY))


def planned(work: Spec) -> dict[str, Any]:
    """The changes, with as many steps as fit unless they say how many."""
    quiet = {"callbacks": [], "training.preview_every": 0, "training.log_every": 5, "training.checkpoint_every": 0}
    changes = {**quiet, **work.changes}
    steps = changes.get("training.steps") or fitting(work, changes)
    looks = max(1, steps // LOOKS)
    changes |= {"training.steps": steps, "training.warmup_steps": min(200, steps // 10)}
    changes |= {"training.log_every": min(50, looks), "training.evaluate_every": looks}
    recipe = mixar.load_recipe(work.base, changes)
    if not recipe.trains.endswith("tokenizer"):  # those are told by their reconstructions, and keep no earlier states
        changes |= {"training.checkpoint_every": looks, "training.keep_last": 2 * LOOKS}
    if recipe.discriminator is not None:
        changes |= {"adversarial.start_step": int(BEFORE_ADVERSARY * steps)}
    return changes


def fitting(work: Spec, changes: Mapping[str, Any]) -> int:
    """Steps that fit the time left, by a trial."""
    started = time.time()
    trial = Trial(min(20.0, (work.until - started) / 12))
    tried = {**changes, "training.steps": 10**6, "training.evaluate_every": 0}
    if mixar.load_recipe(work.base, changes).discriminator is not None:
        tried |= {"adversarial.start_step": 0}  # most of the steps have it
    with tempfile.TemporaryDirectory() as folder:
        recipe = mixar.load_recipe(work.base, tried)
        mixar.train(recipe, folder, device=work.device, callbacks=[trial])
    setting_up, left = trial.reports[0][1] - started, work.until - time.time()
    steps = max(LOOKS, int(trial.rate * PLANNED * (left - setting_up)))
    print(f"{trial.rate:.1f} steps/s, {setting_up:.0f} s to begin, {left:.0f} s left: {steps} steps", flush=True)
    return steps


def early(run: Path, model: Path) -> None:
    """Publish the state of least validation loss, if that is not the last: what came after was learned by heart."""
    losses = {step: found["ema/loss"] for step, found in losses_of(run).items()}
    kept = {checkpoint_step(path): path for path in list_checkpoints(run)}
    there = {step: loss for step, loss in losses.items() if step in kept}
    if not there:
        return
    best, last = min(there, key=there.__getitem__), max(losses)
    print(f"validation loss {losses[last]:.4f} after {last} steps, least {there[best]:.4f} after {best}")
    if there[best] < losses[last] * (1 - LOWER):
        publish(run, model, step=best, tensors=read_tensors(kept[best] / "ema"))
