"""The one trainer: any objective, on any number of processes, stopped and resumed at will."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen

from mixar_core.data.cache import TokenCache
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import BatchShard
from mixar_core.data.source import Batch, Source
from mixar_core.data.streams import Stream, step_noise
from mixar_core.distributed import Processes, StopSignals, ended_by_sigterm, join_processes, naming_lost_processes
from mixar_core.errors import UserError
from mixar_core.precision import tf32_where
from mixar_core.storage import FolderLock, is_free, user_path, write_text, write_weights, writing
from mixar_core.training.callback import Callback, Callbacks, RunInfo, StepReport
from mixar_core.training.checkpoint import Checkpoints, checkpoint_step, list_checkpoints, newest_checkpoint, read_run
from mixar_core.training.engine import Engine, Gradients
from mixar_core.training.guards import where_it_began
from mixar_core.training.log import Meter, RunLog, Unreadable
from mixar_core.training.objective import Objective
from mixar_core.training.optimizer import AdamW, Optimizer
from mixar_core.training.reference import Reference
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.sources import VALIDATION_SEED, make_source, preview_images, shared_batches

#: What a run leaves at its end: averaged, and as they are; where no average is kept, the first alone, as they are.
WEIGHTS = ("weights.safetensors", "weights_raw.safetensors")


@frozen(eq=False)
class Result:
    """How a run ended: steps done, of how many, the last losses (validation's where measured), wall time."""

    folder: Path
    step: int
    steps: int
    losses: Mapping[str, float] = field(factory=dict)
    seconds: float = 0.0

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop before its last step; its folder then holds a checkpoint to resume from."""
        return self.step < self.steps


def train(
    objective: Objective,
    train_set: ImageDataset | None,
    validation_set: ImageDataset | None,
    config: TrainingConfig,
    folder: str | Path,
    *,
    cache: TokenCache | None = None,
    callbacks: Sequence[Callback] = (),
    optimizer: Optimizer | None = None,
    files: Mapping[str, str] | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    flop_per_image: float | None = None,
    reference: Reference | None = None,
) -> Result:
    """Train `objective.trained`, and leave `weights.safetensors` (averaged) and `weights_raw.safetensors` in `folder`.

    With `ema_decay` None there is no average, and the first are those of the last step.

    Under `torchrun` every process calls this with the same arguments. The batch, the learning rate and every random
    draw are those of the whole, so a run does not depend on how many processes share it.

    Args:
        objective: what is minimised; it is moved to `device`.
        train_set: None only with `cache`; previews then show what its latents decode to.
        folder: new or empty, or with `resume` that of a run that was stopped.
        cache: tokens to train on, instead of what the tokenizers make of `train_set`.
        callbacks: called in the main process.
        optimizer: None: AdamW. A resumed run must have the same.
        files: texts by file name written into the folder before the first step (the recipe).
        resume: go on from the newest checkpoint.
        device: None: this process's GPU if there is one, or else the CPU.
        flop_per_image: of a training step, for callbacks. reference: curves of such runs, for them, too.

    Raises:
        UserError: the folder is not empty, or there is nothing to resume, or it was another run, or one is at work in
            it; a loss or the gradient is not finite; too many images cannot be read; the disk is full; another process
            died.
    """
    folder = user_path(folder)
    processes = join_processes(device)
    with naming_lost_processes(processes), tf32_where(config.precision, processes.device):
        trainer = Trainer(objective, train_set, validation_set, config, folder, cache, callbacks, processes, optimizer)
        with closing(trainer.lock), closing(trainer.checkpoints):  # nothing is written once others are let in
            with ended_by_sigterm():
                unfinished = trainer.prepare(files or {}, resume=resume)
            if unfinished:
                with StopSignals() as signals:
                    result = trainer.run(signals, flop_per_image=flop_per_image, reference=reference)
            else:
                result = Result(folder, trainer.done, trainer.steps)
    processes.leave()
    return result


class Trainer:
    """The parts of one run; see `train`."""

    def __init__(
        self,
        objective: Objective,
        train_set: ImageDataset | None,
        validation_set: ImageDataset | None,
        config: TrainingConfig,
        folder: Path,
        cache: TokenCache | None,
        callbacks: Sequence[Callback],
        processes: Processes,
        optimizer: Optimizer | None,
    ) -> None:
        data = train_set if cache is None else cache
        if data is None or (images := len(data)) == 0:
            raise UserError("data: the training split has no images")
        if objective.beside and config.parallel == "fsdp":  # an adaptive weight goes back in the middle of a pass
            named = " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in objective.beside)
            raise UserError(f"training.parallel: fsdp does not shard {named}; use ddp")
        # refuses a batch that is not to be shared out, before anything is written
        BatchShard.of(config.batch_size, rank=processes.rank, world=processes.world)
        self.objective, self.config, self.folder, self.processes = objective, config, folder, processes
        self.optimizer = optimizer or AdamW()
        self.data, self.train_set, self.validation_set = data, train_set, validation_set
        self.steps, self.warmup = config.total_steps(images), config.total_warmup(images)
        self._weights = WEIGHTS if config.ema_decay is not None else WEIGHTS[:1]
        #: what a resumed run must share with the one it goes on with
        self.settings = config.fingerprint() | {
            "objective": type(objective).__name__,
            "images": images,
            "latents": "samples" if cache is not None and cache.stores == "samples" else "posteriors",
            **({"steps": self.steps} if objective.needs_length else {}),
            **{name: str(module.config) for name, module in objective.beside.items()},
            **({} if isinstance(self.optimizer, AdamW) else {"optimizer": str(self.optimizer.config)}),
        }
        self.lock, self.log, self.meter = FolderLock(folder), RunLog(folder), Meter()
        self.callbacks = Callbacks(callbacks, is_main=processes.is_main)
        self.checkpoints = Checkpoints(folder, processes, config)
        self.unreadable, self.unreadable_validation = (
            Unreadable(folder, processes, limit=config.max_unreadable, split=split) for split in ("train", "validation")
        )
        self.done = 0
        self.last_losses: Mapping[str, float] = {}

    # ---------------------------------------------------------------- before the first step

    def prepare(self, files: Mapping[str, str], *, resume: bool) -> bool:
        """Check the folder, build what the steps need, and load the checkpoint if there is one to go on with.

        Returns:
            Whether anything is left to do. Weights that are there are not written again: others may have noted them.
        """
        checkpoint = self.processes.on_main(self._resumed if resume else lambda: self._begun(files))
        try:
            return self._ready(checkpoint)
        except BaseException:  # Ctrl-C and SIGTERM, too: a new run that took no step leaves its folder empty
            for name in files if checkpoint is None and self.processes.is_main else ():
                (self.folder / name).unlink(missing_ok=True)
            raise

    def _ready(self, checkpoint: Path | None) -> bool:
        config, processes = self.config, self.processes
        self.engine = Engine(
            self.objective, config, processes, steps=self.steps, warmup=self.warmup, optimizer=self.optimizer
        )
        if checkpoint is not None:
            self._load(checkpoint)
        there = processes.on_main(lambda: all((self.folder / name).is_file() for name in self._weights))
        if unfinished := self.done < self.steps or not there:
            self.source = make_source(self.objective, self.data, config, processes)
            self.validation: Source | None = None
            if self.validation_set is not None and config.evaluate_every:
                self.validation = make_source(self.objective, self.validation_set, config, processes, validation=True)
        processes.on_main(self._forget)  # after all that may fail: finished weights stay until there are steps to do
        return unfinished

    def _begun(self, files: Mapping[str, str]) -> None:
        """A folder for a new run, with `files` in it."""
        self._expect_empty()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        self._expect_empty()  # another run may have begun in it meanwhile, and ended
        for name, text in files.items():
            write_text(self.folder / name, text)

    def _expect_empty(self) -> None:
        if not is_free(self.folder, self.lock.path):
            raise UserError(f"{self.folder} is not an empty folder; choose a new one, or resume the run in it")

    def _resumed(self) -> Path:
        """The checkpoint to go on with."""
        if self.folder.is_dir():
            self.lock.take()
        checkpoint, damaged = newest_checkpoint(self.folder)
        for problem in damaged:
            print(f"warning: not resumed from {problem}", file=sys.stderr)
        return checkpoint

    def _load(self, checkpoint: Path) -> None:
        """Put the run back to where it was."""
        run = read_run(checkpoint)
        self.done, then, now = run["step"], run["settings"], self.settings
        names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        differing = [f"{name} was {then.get(name)}, is {now.get(name)}" for name in names]
        if self.done > self.steps:
            differing.append(f"steps done were {self.done}, steps is {self.steps}")
        if differing:
            raise self.processes.common_error(
                f"{checkpoint} was written with other settings: {', '.join(differing)}; resume with those, or start "
                "a new run"
            )
        if run["processes"] != self.processes.world and self.processes.is_main:
            print(
                f"warning: this run was shared by {run['processes']} processes and goes on with "
                f"{self.processes.world}: the same batches and draws, but sums are rounded in another order",
                file=sys.stderr,
            )
        self.engine.load(checkpoint, steps_done=self.done)

    def _forget(self) -> None:
        """What steps yet to be done will write anew; finished weights would be taken for newer than a checkpoint."""
        self.log.forget_after(self.done)
        for name in WEIGHTS if self.done < self.steps else ():
            with writing(self.folder / name):
                (self.folder / name).unlink(missing_ok=True)
        self.checkpoints.clean(self.done)

    # ---------------------------------------------------------------- the run

    def run(self, signals: StopSignals, *, flop_per_image: float | None, reference: Reference | None) -> Result:
        """All steps, or as many as there are before a signal; then the weights."""
        started = time.perf_counter()
        self.info = info = RunInfo(
            name=self.folder.name,
            folder=self.folder,
            steps=self.steps,
            batch_size=self.config.batch_size,
            first_step=self.done,
            processes=self.processes.world,
            rank=self.processes.rank,
            precision=self.config.precision,
            device=self.processes.device,
            flop_per_image=flop_per_image,
            reference=reference,
            waiting=lambda: self.meter.waiting(),
        )
        # what a callback cannot do in one process ends the run in all
        self.processes.together(
            lambda: self.callbacks.call(self.done, lambda each: each.on_start(info), fatal=UserError)
        )
        try:
            self._steps(signals)
        except BaseException as caught:
            error = caught  # a lambda cannot hold the name that `except` binds
            self.callbacks.call(self.done, lambda each: each.on_failure(info, self.done, error))
            raise
        self.callbacks.call(self.done, lambda each: each.on_end(info, self.done))
        return Result(self.folder, self.done, self.steps, self.last_losses, time.perf_counter() - started)

    def _steps(self, signals: StopSignals) -> None:
        """The training loop."""
        config, stop = self.config, False
        batches = self.source.batches(self.done, self.steps)
        while self.done < self.steps and not stop:
            batch = self.meter.next(batches)
            counts = {
                "stop": signals.requested,
                "failed": self.checkpoints.failed,
                "unreadable": len(self.source.unreadable),
            }
            gradients = self.engine.gradients(batch, self.source, step=self.done, counts=counts)
            self._check(batch, gradients)
            self.engine.update(self.done, gradients)
            self.meter.stop(gradients.losses)
            self.done, stop = self.done + 1, gradients.counts["stop"] > 0
            last = self.done == self.steps
            if self._due(config.log_every, last or stop):
                self._report(gradients.norm)
            if self.validation is not None and self._due(config.evaluate_every, last):
                self._evaluate(self.validation)
            if config.preview_every and self._due(config.preview_every, last):
                self._preview()
            if self._due(config.checkpoint_every, last or stop):
                self.checkpoints.save(self.engine.state(), self.done, self.settings)
            self._announce()
        self.checkpoints.wait()
        self._announce()
        if self.done == self.steps:
            self._finish()

    def _due(self, every: int, certainly: bool) -> bool:
        return certainly or (every > 0 and self.done % every == 0)

    def _check(self, batch: Batch, gradients: Gradients) -> None:
        """End the run where something went wrong in any process, before it enters the weights."""
        if gradients.counts["failed"]:
            self.checkpoints.wait()
        found, total = self.source.unreadable, round(gradients.counts["unreadable"])
        self._refuse(self.unreadable.too_many(found, step=self.done, total=total))
        figures = {**gradients.losses, "gradient norm": gradients.norm}
        if bad := [name for name, value in figures.items() if not math.isfinite(value)]:
            where = where_it_began(self.engine, batch, self.source, self.folder, step=self.done)
            self._refuse(f"step {self.done + 1}: not finite: {', '.join(bad)}; {where}")

    def _refuse(self, reason: str | None) -> None:
        """End the run in all processes if there is a reason, once the checkpoint that is being written is complete."""
        if reason is not None:
            self.checkpoints.wait()
            kept = self.processes.on_main(lambda: list_checkpoints(self.folder))
            state = f"the last good state is {kept[-1]}" if kept else "without checkpoint"
            raise self.processes.common_error(f"{reason}; the run is stopped, {state}")

    # ---------------------------------------------------------------- between steps

    def _report(self, norm: float) -> None:
        meter, self.meter = self.meter, Meter()
        waited = max(self.processes.all_gather(meter.waited))  # the slowest loader holds all of them up
        means = {name: value / meter.counts[name] for name, value in meter.sums.items()}
        self.last_losses = {**means, **self.objective.window(self.processes.sum)}
        figures: dict[str, Any] = {
            "losses": self.last_losses,
            "learning_rate": self.engine.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm,
            "images_per_second": meter.steps * self.config.batch_size / meter.seconds,
            "waiting_share": min(1.0, waited / meter.seconds),
        }
        if self.processes.is_main:
            self.log.write("train", self.done, **figures)
        left = (self.steps - self.done) * meter.seconds / meter.steps
        report = StepReport(step=self.done, seconds_left=left, **figures)
        self.callbacks.call(self.done, lambda each: each.on_step(self.info, report))

    @torch.no_grad()
    def _evaluate(self, source: Source) -> None:
        """The validation split's losses, of the averaged weights as `ema/...` and of the present ones as `raw/...`."""
        self.objective.eval()
        losses: dict[str, float] = {}
        kinds = {"raw": self.engine.evaluated} | ({} if self.engine.ema is None else {"ema": self.engine.averaged})
        for name, weights in kinds.items():
            with weights():
                count = min(self.config.evaluate_batches, source.order.size // source.order.batch_size)
                measured = self.engine.measure(source, count, step=self.done - 1)
            losses |= {f"{name}/{term}": value for term, value in measured.items()}
        self._refuse(self.unreadable_validation.too_many(source.unreadable, step=self.done - 1))
        self.last_losses = losses
        if self.processes.is_main:
            self.log.write("validation", self.done, losses=losses)
        self.callbacks.call(self.done, lambda each: each.on_evaluation(self.info, self.done, losses))

    @torch.no_grad()
    def _preview(self) -> None:
        """The objective's preview with the averaged weights, if a callback wants to see it."""
        needed = self.processes.is_main or self.engine.sharded  # shards need every process's part
        if not (self.callbacks.want_previews and needed):
            return
        device = self.processes.device
        data = next(data for data in (self.validation_set, self.train_set, self.data) if data is not None)
        images = preview_images(self.objective, data, self.config, device)
        noise = step_noise(Stream.PREVIEW, seed=VALIDATION_SEED, step=0, device=device)
        self.objective.eval()
        with self.engine.averaged(), self.engine.gathered(), self.engine.autocast():
            rows = {name: row.float().cpu() for name, row in self.objective.preview(images, noise=noise).items()}
        self.callbacks.call(self.done, lambda each: each.on_preview(self.info, self.done, rows))

    def _announce(self) -> None:
        """Tell callbacks of the checkpoints that became complete."""
        for path in self.checkpoints.finished():
            self.callbacks.call(self.done, methodcaller("on_checkpoint", self.info, checkpoint_step(path), path))

    @torch.no_grad()
    def _finish(self) -> None:
        """Let the objective measure what belongs beside the weights, and write them: averaged, and as they are."""
        objective = self.objective.eval()
        for name in self._weights:
            with self.engine.averaged() if name == WEIGHTS[0] else self.engine.evaluated():
                if self.train_set is not None and objective.finish_images:
                    batches = shared_batches(self.train_set, objective.finish_images, self.config, self.processes)
                    with self.engine.gathered():
                        objective.finish(batches, self.processes.sum)
                self.processes.on_main(partial(write_weights, self.folder / name, self.engine.whole_weights()))
