"""The one trainer: any objective, on any number of processes, stopped and resumed at will."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import Share, ShuffledOrder, sweep
from mixar_core.data.streams import Stream, seed_of, step_noise
from mixar_core.data.tokens import CachedTokens
from mixar_core.errors import UserError
from mixar_core.training.callback import Callback, RunInfo, StepReport
from mixar_core.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from mixar_core.training.distributed import Processes, join_processes
from mixar_core.training.ema import EMA
from mixar_core.training.files import write_text, write_weights, writing
from mixar_core.training.log import Meter, RunLog
from mixar_core.training.objective import Objective
from mixar_core.training.optimizer import lr_at, make_optimizer
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.signals import StopSignals
from mixar_core.training.sources import (
    VALIDATION_SEED,
    LossPass,
    Source,
    loss_of,
    micro_batches,
    training_source,
    validation_source,
)
from mixar_core.types import ImageBatch


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
    train_set: ImageDataset,
    validation_set: ImageDataset | None,
    config: TrainingConfig,
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    files: Mapping[str, str] | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
) -> Result:
    """Train `objective.trained`, and leave `weights.safetensors` (averaged) and `weights_raw.safetensors` in `folder`.

    Under `torchrun` every process calls this with the same arguments. The batch, the learning rate and every random
    draw are those of the whole, so a run does not depend on how many processes share it.

    Args:
        objective: what is minimised; it is moved to `device`.
        folder: new or empty, or with `resume` that of a run that was stopped.
        callbacks: called in the main process.
        files: texts by file name written into the folder before the first step (the recipe).
        resume: go on from the newest checkpoint.
        device: None: this process's GPU if there is one, or else the CPU.

    Raises:
        UserError: the folder is not empty, or there is nothing to resume, or it was another run; a loss or the
            gradient is not finite; an image cannot be read; the disk is full.
    """
    folder = Path(folder)
    processes = join_processes(device)
    with StopSignals() as signals:
        trainer = Trainer(objective, train_set, validation_set, config, folder, callbacks, processes)
        trainer.prepare(files or {}, resume=resume)
        result = trainer.run(signals)
    processes.leave()
    return result


class Trainer:
    """The parts of one run; see `train`."""

    def __init__(
        self,
        objective: Objective,
        train_set: ImageDataset,
        validation_set: ImageDataset | None,
        config: TrainingConfig,
        folder: Path,
        callbacks: Sequence[Callback],
        processes: Processes,
    ) -> None:
        if len(train_set) == 0:
            raise UserError("data: the training split has no images")
        self.objective, self.config, self.folder, self.processes = objective, config, folder, processes
        self.train_set, self.validation_set = train_set, validation_set
        self.callbacks = list(callbacks) if processes.is_main else []
        self.device = processes.device
        self.steps = config.total_steps(len(train_set))
        self.warmup = config.total_warmup(len(train_set))
        Share.of(config.batch_size, rank=processes.rank, world=processes.world)  # refuses before anything is written
        self.log = RunLog(folder)
        self.meter = Meter()
        self.done = 0
        self.last_losses: Mapping[str, float] = {}

    # ---------------------------------------------------------------- before the first step

    def prepare(self, files: Mapping[str, str], *, resume: bool) -> None:
        """Check the folder, build what the steps need, and load the checkpoint if there is one to go on with."""
        checkpoint = self.processes.on_main(lambda: self._open_folder(files, resume=resume))
        config, objective = self.config, self.objective
        objective.to(self.device)
        self.parameters = [p for p in objective.trained.parameters() if p.requires_grad]
        if config.precision == "bf16" and self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        if config.compile:
            objective.compile_parts()
        self.optimizer = make_optimizer(objective.trained, config, objective.no_weight_decay())
        self.losses = LossPass(objective)
        self.module: nn.Module = self.losses
        if self.processes.world > 1:  # its constructor gives every process the main one's weights
            # A parameter may well be unused: MAR's mask token, where DC-Mix fills its place.
            self.module = DistributedDataParallel(
                self.losses, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )
        self.ema = EMA(objective.trained, config.ema_decay)
        if checkpoint is not None:
            self.done = load_checkpoint(
                checkpoint,
                trained=objective.trained,
                ema=self.ema,
                optimizer=self.optimizer,
                settings=self._settings(),
            )
            self.processes.on_main(lambda: self.log.forget_after(self.done))
        self.source = training_source(objective, self.train_set, config, self.processes)
        self.validation: Source | None = None
        if self.validation_set is not None and config.evaluate_every:
            self.validation = validation_source(objective, self.validation_set, config, self.processes)

    def _open_folder(self, files: Mapping[str, str], *, resume: bool) -> Path | None:
        if resume:
            checkpoints = list_checkpoints(self.folder)
            if not checkpoints:
                raise UserError(f"{self.folder} holds no checkpoint to resume from; start it without resume")
            return checkpoints[-1]
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{self.folder} is not an empty folder; choose a new one, or resume the run in it")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_text(self.folder / name, text)
        return None

    def _settings(self) -> dict[str, object]:
        about = {"objective": type(self.objective).__name__, "images": len(self.train_set)}
        return {**self.config.fingerprint(), **about}

    # ---------------------------------------------------------------- the run

    def run(self, signals: StopSignals) -> Result:
        """All steps, or as many as there are before a signal; then the weights."""
        config, started = self.config, time.perf_counter()
        info = RunInfo(
            name=self.folder.name,
            folder=self.folder,
            steps=self.steps,
            batch_size=config.batch_size,
            first_step=self.done,
            processes=self.processes.world,
            device=self.device,
            waiting=self.meter.waiting,
        )
        self._call(lambda callback: callback.on_start(info))
        batches = self.source.batches(self.done, self.steps)
        stop = False
        while self.done < self.steps and not stop:
            self.meter.start()
            batch = next(batches)
            self.meter.arrived()
            losses, norm, stop = self._step(batch, stop=signals.requested)
            self.meter.stop(losses)
            self.done += 1
            last = self.done == self.steps
            if self._due(config.log_every, last or stop):
                self._report(info, norm)
            if self.validation is not None and self._due(config.evaluate_every, last):
                self._evaluate(info, self.validation)
            if config.preview_every and self._due(config.preview_every, last):
                self._preview(info)
            if self._due(config.checkpoint_every, last or stop):
                self._checkpoint(info)
        if self.done == self.steps:
            self._finish()
        self._call(lambda callback: callback.on_end(info, self.done))
        return Result(self.folder, self.done, self.steps, self.last_losses, time.perf_counter() - started)

    def _due(self, every: int, certainly: bool) -> bool:
        return certainly or (every > 0 and self.done % every == 0)

    def _call(self, action: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            action(callback)

    def _step(self, batch: ImageBatch | CachedTokens, *, stop: bool) -> tuple[dict[str, float], float, bool]:
        """One optimizer step; losses and gradient norm of the whole batch, and whether any process is to stop."""
        step, config = self.done, self.config
        if not (self.objective.training and self.objective.trained.training):
            self.objective.train()
        # Dropout draws from torch's own generator: seeded by step, a resumed run drops what the first one would have.
        torch.manual_seed(seed_of(config.seed, step, Stream.GLOBAL, self.processes.rank))
        rate = lr_at(step, config, steps=self.steps, warmup=self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)

        sums: dict[str, Tensor] = {}
        for rows, weight, last in micro_batches(len(batch), config.micro_batch):
            apart = self.module if isinstance(self.module, DistributedDataParallel) and not last else None
            with nullcontext() if apart is None else apart.no_sync():
                total, figures = self._loss(self.module, self.source, batch, rows, noise_step=step, step=step)
                (total * weight).backward()
            _add(sums, figures, weight)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        told = torch.tensor(float(stop), device=self.device)
        *values, norm_value, told_value = self.processes.mean(torch.stack([*sums.values(), norm, told])).tolist()
        losses_by_name = dict(zip(sums, values, strict=True))
        self._check_finite({**losses_by_name, "gradient norm": norm_value})
        if config.clip is not None and norm_value > config.clip:
            clip_grads_with_norm_(self.parameters, config.clip, norm)
        self.optimizer.step()
        self.ema.update()
        return losses_by_name, norm_value, told_value > 0

    def _loss(
        self,
        module: nn.Module,
        source: Source,
        batch: ImageBatch | CachedTokens,
        rows: slice,
        noise_step: int,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_of(
            module,
            self.objective,
            batch,
            rows,
            share=source.share,
            seed=source.seed,
            noise_step=noise_step,
            step=step,
            steps=self.steps,
            autocast=self._autocast(),
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _check_finite(self, values: Mapping[str, float]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        for name, parameter in self.objective.trained.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                bad.append(f"gradient of {name}")
                break
        kept = list_checkpoints(self.folder)
        advice = f"the last good state is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise UserError(f"step {self.done + 1}: not finite: {', '.join(bad)}; the run is stopped, {advice}")

    # ---------------------------------------------------------------- between steps

    def _report(self, info: RunInfo, norm: float) -> None:
        meter, self.last_losses = self.meter, self.meter.losses()
        report = StepReport(
            step=self.done,
            losses=self.last_losses,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            gradient_norm=norm,
            images_per_second=meter.steps * self.config.batch_size / meter.seconds,
            seconds_left=(self.steps - self.done) * meter.seconds / meter.steps,
            waiting_share=meter.waited / meter.seconds,
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
        self._call(lambda callback: callback.on_step(info, report))

    @torch.no_grad()
    def _evaluate(self, info: RunInfo, source: Source) -> None:
        """The validation split's losses, of the averaged weights as `ema/...` and of the present ones as `raw/...`."""
        self.objective.eval()
        losses = {f"raw/{name}": value for name, value in self._measure(source).items()}
        with self.ema.swapped():
            losses |= {f"ema/{name}": value for name, value in self._measure(source).items()}
        self.last_losses = losses
        if self.processes.is_main:
            self.log.write("validation", self.done, losses=losses)
        self._call(lambda callback: callback.on_evaluation(info, self.done, losses))

    def _measure(self, source: Source) -> dict[str, float]:
        count = min(self.config.evaluate_batches, source.order.size // source.order.batch_size)
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(source.batches(0, count)):
            for rows, weight, _ in micro_batches(len(batch), self.config.micro_batch):
                _, figures = self._loss(self.losses, source, batch, rows, noise_step=index, step=self.done - 1)
                _add(sums, figures, weight / count)
        return dict(zip(sums, self.processes.mean(torch.stack([*sums.values()])).tolist(), strict=True))

    @torch.no_grad()
    def preview(self) -> Mapping[str, Tensor]:
        """The objective's preview of the first validation images, with the averaged weights."""
        dataset = self.validation_set if self.validation_set is not None else self.train_set
        count = min(self.config.preview_images, len(dataset))
        indices = ShuffledOrder(len(dataset), count, seed=VALIDATION_SEED).indices(0)
        (images,) = sweep(dataset, indices, batch_size=count, device=self.device)
        noise = step_noise(Stream.PREVIEW, seed=VALIDATION_SEED, step=0, device=self.device)
        self.objective.eval()
        with self.ema.swapped(), self._autocast():
            return {name: row.float().cpu() for name, row in self.objective.preview(images, noise=noise).items()}

    def _preview(self, info: RunInfo) -> None:
        watching = [c for c in self.callbacks if type(c).on_preview is not Callback.on_preview]
        if watching:
            rows = self.preview()
            for callback in watching:
                callback.on_preview(info, self.done, rows)

    def _checkpoint(self, info: RunInfo) -> None:
        path = self.processes.on_main(
            lambda: save_checkpoint(
                self.folder,
                self.done,
                trained=self.objective.trained,
                ema=self.ema,
                optimizer=self.optimizer,
                settings=self._settings(),
                keep=self.config.keep_last,
            )
        )
        self._call(lambda callback: callback.on_checkpoint(info, self.done, path))

    @torch.no_grad()
    def _finish(self) -> None:
        """Let the objective measure what belongs beside the weights, and write both sets of them."""
        self.objective.eval()
        with self.ema.swapped():
            self._export("weights.safetensors")
        self._export("weights_raw.safetensors")

    def _export(self, name: str) -> None:
        order = ShuffledOrder(len(self.train_set), 1, seed=VALIDATION_SEED).permutation(0)
        mine = order[self.processes.rank :: self.processes.world]
        size = self.config.micro_batch or self.source.share.rows
        self.objective.finish(
            sweep(self.train_set, mine, batch_size=size, device=self.device, workers=self.config.workers)
        )
        self.processes.on_main(lambda: write_weights(self.folder / name, self.objective.trained.state_dict()))


def _add(sums: dict[str, Tensor], figures: Mapping[str, Tensor], weight: float) -> None:
    for name, value in figures.items():
        sums[name] = sums[name] + value * weight if name in sums else value * weight
