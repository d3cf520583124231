"""The one trainer: any objective, on any number of processes, stopped and resumed at will."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from attrs import field, frozen

from mixar_core.data.cache import TokenCache
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import BatchShard
from mixar_core.data.source import Batch, Source
from mixar_core.data.streams import Stream, step_noise
from mixar_core.distributed import Processes, StopSignals, join_processes, naming_lost_processes
from mixar_core.errors import UserError
from mixar_core.precision import tf32_where
from mixar_core.storage import FolderLock, user_path, write_text, write_weights, writing
from mixar_core.training.callback import Callback, Callbacks, RunInfo, StepReport
from mixar_core.training.checkpoint import (
    CheckpointInfo,
    Checkpoints,
    checkpoint_step,
    list_checkpoints,
    load_tensors,
    newest_checkpoint,
    read_info,
    stored_shapes,
)
from mixar_core.training.engine import Engine, Gradients
from mixar_core.training.guards import not_finite, where_it_began
from mixar_core.training.log import Meter, RunLog, Unreadable
from mixar_core.training.objective import Objective
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.sources import (
    VALIDATION_SEED,
    preview_images,
    shared_batches,
    training_source,
    validation_source,
)


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
    files: Mapping[str, str] | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    flop_per_image: float | None = None,
) -> Result:
    """Train `objective.trained`, and leave `weights.safetensors` (averaged) and `weights_raw.safetensors` in `folder`.

    Under `torchrun` every process calls this with the same arguments. The batch, the learning rate and every random
    draw are those of the whole, so a run does not depend on how many processes share it.

    Args:
        objective: what is minimised; it is moved to `device`.
        train_set: None only with `cache`; previews then show what its latents decode to.
        folder: new or empty, or with `resume` that of a run that was stopped.
        cache: tokens to train on, instead of what the tokenizers make of `train_set`.
        callbacks: called in the main process.
        files: texts by file name written into the folder before the first step (the recipe).
        resume: go on from the newest checkpoint.
        device: None: this process's GPU if there is one, or else the CPU.
        flop_per_image: of a training step, for callbacks.

    Raises:
        UserError: the folder is not empty, or there is nothing to resume, or it was another run, or one is at work in
            it; a loss or the gradient is not finite; too many images cannot be read; the disk is full; another process
            died.
    """
    folder = user_path(folder)
    processes = join_processes(device)
    with StopSignals() as signals, naming_lost_processes(processes), tf32_where(config.precision, processes.device):
        trainer = Trainer(objective, train_set, validation_set, config, folder, cache, callbacks, processes)
        with closing(trainer):
            trainer.prepare(files or {}, resume=resume)
            result = trainer.run(signals, flop_per_image=flop_per_image)
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
    ) -> None:
        images = len(cache) if cache is not None else len(train_set or ())
        if images == 0:
            raise UserError("data: the training split has no images")
        self.objective, self.config, self.folder, self.processes = objective, config, folder, processes
        self.objective_name = type(objective).__name__  # FSDP makes another class of it
        self.train_set, self.validation_set, self.cache, self.images = train_set, validation_set, cache, images
        self.callbacks = Callbacks(callbacks, is_main=processes.is_main)
        self.device = processes.device
        self.steps = config.total_steps(images)
        # refuses a batch that is not to be shared out, before anything is written
        BatchShard.of(config.batch_size, rank=processes.rank, world=processes.world)
        self.lock = FolderLock(folder)
        self.log = RunLog(folder)
        self.meter = Meter()
        kept = {"keep_last": config.keep_last, "keep_every": config.keep_every}
        self.checkpoints = Checkpoints(folder, processes, **kept, background=config.background_checkpoints)
        self.unreadable, self.unreadable_validation = (
            Unreadable(folder, processes, limit=config.max_unreadable, split=split) for split in ("train", "validation")
        )
        self.done = 0
        self.last_losses: Mapping[str, float] = {}

    def close(self) -> None:
        """Let others into the folder, once nothing writes into it any more."""
        self.checkpoints.close()
        self.lock.close()

    # ---------------------------------------------------------------- before the first step

    def prepare(self, files: Mapping[str, str], *, resume: bool) -> None:
        """Check the folder, build what the steps need, and load the checkpoint if there is one to go on with."""
        config, processes = self.config, self.processes
        checkpoint = processes.on_main(lambda: self._open_folder(files, resume=resume))
        warmup = config.total_warmup(self.images)
        self.engine = Engine(self.objective, config, processes, steps=self.steps, warmup=warmup)
        if checkpoint is not None:
            self._load(checkpoint)
        processes.on_main(lambda: self.checkpoints.clean(self.done))
        self.source = training_source(self.objective, self.train_set, self.cache, config, processes)
        self.validation: Source | None = None
        if self.validation_set is not None and config.evaluate_every:
            self.validation = validation_source(self.objective, self.validation_set, config, processes)

    def _open_folder(self, files: Mapping[str, str], *, resume: bool) -> Path | None:
        if resume:
            if self.folder.is_dir():
                self.lock.take()
            checkpoint, damaged = newest_checkpoint(self.folder)
            for problem in damaged:
                print(f"warning: not resumed from {problem}", file=sys.stderr)
            return checkpoint
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{self.folder} is not an empty folder; choose a new one, or resume the run in it")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        for name, text in files.items():
            write_text(self.folder / name, text)
        return None

    def _load(self, checkpoint: Path) -> None:
        """Put the run back to where it was."""
        info: CheckpointInfo = self.processes.on_main(lambda: read_info(checkpoint))
        then, now = info.settings, self._settings()
        names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        differing = [f"{name} was {then.get(name)}, is {now.get(name)}" for name in names]
        if info.step > self.steps:
            differing.append(f"steps done were {info.step}, steps is {self.steps}")
        if differing:
            raise self.processes.common_error(
                f"{checkpoint} was written with other settings: {', '.join(differing)}; resume with those, or start "
                "a new run"
            )
        if info.processes != self.processes.world and self.processes.is_main:
            print(
                f"warning: this run was shared by {info.processes} processes and goes on with {self.processes.world}: "
                "the same batches and draws, but sums are rounded in another order",
                file=sys.stderr,
            )
        self.engine.expect(stored_shapes(checkpoint / "optimizer"), steps_done=info.step)
        load_tensors(checkpoint, self.engine.state(), self.processes)
        self.done = info.step
        self.processes.on_main(self._forget)

    def _forget(self) -> None:
        """What steps yet to be done will write anew; finished weights would be taken for newer than a checkpoint."""
        self.log.forget_after(self.done)
        for name in ("weights.safetensors", "weights_raw.safetensors") if self.done < self.steps else ():
            with writing(self.folder / name):
                (self.folder / name).unlink(missing_ok=True)

    def _settings(self) -> dict[str, object]:
        """What a resumed run must share with the one it goes on with."""
        drawn = "samples" if self.cache is not None and self.cache.stores == "samples" else "posteriors"
        about: dict[str, object] = {"objective": self.objective_name, "images": self.images, "latents": drawn}
        if self.objective.needs_length:
            about["steps"] = self.steps
        return {**self.config.fingerprint(), **about}

    # ---------------------------------------------------------------- the run

    def run(self, signals: StopSignals, *, flop_per_image: float | None) -> Result:
        """All steps, or as many as there are before a signal; then the weights."""
        started = time.perf_counter()
        info = RunInfo(
            name=self.folder.name,
            folder=self.folder,
            steps=self.steps,
            batch_size=self.config.batch_size,
            first_step=self.done,
            processes=self.processes.world,
            rank=self.processes.rank,
            precision=self.config.precision,
            device=self.device,
            flop_per_image=flop_per_image,
            waiting=self.meter.waiting,
        )
        self._start(info)
        try:
            self._steps(info, signals)
        except BaseException as error:
            self.callbacks.on_failure(info, self.done, error)
            raise
        self.callbacks.on_end(info, self.done)
        return Result(self.folder, self.done, self.steps, self.last_losses, time.perf_counter() - started)

    def _start(self, info: RunInfo) -> None:
        """Tell the callbacks; what one of them cannot do in any process ends the run in all."""
        problem = None
        try:
            self.callbacks.on_start(info)
        except UserError as error:
            problem = str(error)
        if problems := [each for each in self.processes.all_gather(problem) if each]:
            raise self.processes.common_error(problems[0])

    def _steps(self, info: RunInfo, signals: StopSignals) -> None:
        """The training loop."""
        config, stop = self.config, False
        batches = self.source.batches(self.done, self.steps)
        while self.done < self.steps and not stop:
            self.meter.start()
            batch = next(batches)
            self.meter.arrived()
            gradients = self._step(batch, stop=signals.requested)
            self.meter.stop(gradients.losses)
            stop = gradients.counts["stop"] > 0
            self.done += 1
            last = self.done == self.steps
            if self._due(config.log_every, last or stop):
                self._report(info, gradients.norm)
            if self.validation is not None and self._due(config.evaluate_every, last):
                self._evaluate(info, self.validation)
            if config.preview_every and self._due(config.preview_every, last):
                self._preview(info)
            if self._due(config.checkpoint_every, last or stop):
                about = CheckpointInfo(self.done, self._settings(), self.processes.world)
                self.checkpoints.save(self.engine.state(), about)
            self._announce(info)
        self.checkpoints.wait()
        self._announce(info)
        if self.done == self.steps:
            self._finish()

    def _due(self, every: int, certainly: bool) -> bool:
        return certainly or (every > 0 and self.done % every == 0)

    def _step(self, batch: Batch, *, stop: bool) -> Gradients:
        """One optimizer step, unless its loss or gradient is not finite."""
        step, unreadable = self.done, self.source.unreadable
        counts = {"stop": float(stop), "unreadable": float(len(unreadable)), "failed": float(self.checkpoints.failed)}
        gradients = self.engine.gradients(batch, self.source, step=step, counts=counts)
        if gradients.counts["failed"]:
            self.checkpoints.wait()
        if reason := self.unreadable.too_many(unreadable, step=step, total=round(gradients.counts["unreadable"])):
            raise self._stopped(reason)
        if bad := not_finite({**gradients.losses, "gradient norm": gradients.norm}):
            where = where_it_began(self.engine, batch, self.source, self.folder, step=step)
            raise self._stopped(f"step {step + 1}: not finite: {', '.join(bad)}; {where}")
        self.engine.update(step, gradients.norm)
        return gradients

    def _stopped(self, reason: str) -> UserError:
        """What all processes raise for one reason, once the checkpoint that is being written is complete."""
        self.checkpoints.wait()
        kept = self.processes.on_main(lambda: list_checkpoints(self.folder))
        state = f"the last good state is {kept[-1]}" if kept else "without checkpoint"
        return self.processes.common_error(f"{reason}; the run is stopped, {state}")

    # ---------------------------------------------------------------- between steps

    def _report(self, info: RunInfo, norm: float) -> None:
        meter, self.last_losses = self.meter, self.meter.losses()
        waited = max(self.processes.all_gather(meter.waited))  # the slowest loader holds all of them up
        report = StepReport(
            step=self.done,
            losses=self.last_losses,
            learning_rate=self.engine.optimizer.param_groups[0]["lr"],
            gradient_norm=norm,
            images_per_second=meter.steps * self.config.batch_size / meter.seconds,
            seconds_left=(self.steps - self.done) * meter.seconds / meter.steps,
            waiting_share=min(1.0, waited / meter.seconds),
        )
        meter.clear()
        if self.processes.is_main:
            self.log.write(
                "train",
                self.done,
                losses=report.losses,
                learning_rate=report.learning_rate,
                gradient_norm=norm,
                images_per_second=round(report.images_per_second, 3),
                waiting_share=round(report.waiting_share, 5),
            )
        self.callbacks.on_step(info, report)

    @torch.no_grad()
    def _evaluate(self, info: RunInfo, source: Source) -> None:
        """The validation split's losses, of the averaged weights as `ema/...` and of the present ones as `raw/...`."""
        self.objective.eval()
        count = min(self.config.evaluate_batches, source.order.size // source.order.batch_size)
        measured = self.engine.measure(source, count, step=self.done - 1)
        losses = {f"raw/{name}": value for name, value in measured.items()}
        with self.engine.ema.swapped():
            measured = self.engine.measure(source, count, step=self.done - 1)
        losses |= {f"ema/{name}": value for name, value in measured.items()}
        if reason := self.unreadable_validation.too_many(source.unreadable, step=self.done - 1):
            raise self._stopped(reason)
        self.last_losses = losses
        if self.processes.is_main:
            self.log.write("validation", self.done, losses=losses)
        self.callbacks.on_evaluation(info, self.done, losses)

    @torch.no_grad()
    def _preview(self, info: RunInfo) -> None:
        """The objective's preview with the averaged weights, if a callback wants to see it."""
        needed = self.processes.is_main or self.engine.sharded  # shards need every process's part
        if not (self.callbacks.want_previews and needed):
            return
        dataset = self.train_set if self.validation_set is None else self.validation_set
        images = preview_images(self.objective, dataset, self.cache, self.config, self.device)
        noise = step_noise(Stream.PREVIEW, seed=VALIDATION_SEED, step=0, device=self.device)
        self.objective.eval()
        with self.engine.ema.swapped(), self.engine.gathered(), self.engine.autocast():
            rows = {name: row.float().cpu() for name, row in self.objective.preview(images, noise=noise).items()}
        self.callbacks.on_preview(info, self.done, rows)

    def _announce(self, info: RunInfo) -> None:
        """Tell callbacks of the checkpoints that became complete."""
        for path in self.checkpoints.finished():
            self.callbacks.on_checkpoint(info, checkpoint_step(path), path)

    @torch.no_grad()
    def _finish(self) -> None:
        """Let the objective measure what belongs beside the weights, and write both sets of them."""
        self.objective.eval()
        with self.engine.ema.swapped():
            self._export("weights.safetensors")
        self._export("weights_raw.safetensors")

    def _export(self, name: str) -> None:
        objective, config = self.objective, self.config
        if self.train_set is not None and objective.finish_images:
            batches = shared_batches(
                self.train_set,
                objective.finish_images,
                self.processes,
                batch_size=config.micro_batch or self.source.share.rows,
                workers=config.workers,
                max_unreadable=config.max_unreadable,
            )
            with self.engine.gathered():
                objective.finish(batches, self.processes.sum)
        weights = self.engine.whole_weights()
        self.processes.on_main(lambda: write_weights(self.folder / name, weights))
