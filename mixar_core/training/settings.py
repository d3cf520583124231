"""The settings of a training run; the recipe's `training:`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from attrs import asdict, field, frozen
from attrs.validators import and_, deep_iterable, ge, gt, le, lt, min_len, optional

from mixar_core.storage import user_path
from mixar_core.training.schedule import OWN, LearningRate, check_schedule, follows_length

_POSITIVE_OR_NONE: Any = optional(gt(0))
_SHARE_OR_NONE: Any = optional(and_(ge(0.0), lt(1.0)))
#: Marks a field that a resumed run may change: it does not enter what a step computes from its weights.
_FREE = {"free": True}


@frozen
class TrainingConfig:
    """Everything about a run but what is trained and on which data. Defaults are MAR's where it has them.

    Args:
        steps: optimizer steps; or else `epochs`.
        epochs: passes over the training split; or else `steps`.
        batch_size: images of a step over all processes and all of its micro-batches.
        micro_batch: images a process puts through one forward pass (gradients are accumulated over the passes of a
            step); None: its whole share of the batch.
        learning_rate: after warm-up, of every optimizer.
        learning_rate_per: images the learning rate is given for, 256 in MAR: it is then scaled by
            batch_size / learning_rate_per. None: used as it is.
        schedule: what follows warm-up: `constant`, `cosine` down to `min_lr` at the last step, or a scheduler of
            torch.optim.lr_scheduler with its settings, `{type: StepLR, step_size: 1000}`. Its lengths are steps from
            the end of warm-up (OneCycleLR's total_steps and CosineAnnealingLR's T_max are the run's where they are not
            given); its learning rates (max_lr, base_lr, eta_min) are scaled as the learning rate is. It moves the
            learning rate alone, not momentum.
        min_lr: where `cosine` ends, scaled as the learning rate is.
        warmup_steps: steps of linear warm-up from 0; or else `warmup_epochs`.
        warmup_epochs: the same in epochs (MAR: 100 of 400).
        weight_decay: of matrices; vectors and what the objective excludes (MAR: the head) get none.
        betas: of AdamW.
        epsilon: of AdamW.
        clip: largest norm of the gradient over all parameters; None: no clipping.
        ema_decay: of the averaged weights; it warms up as (1 + step) / (10 + step). 0: the average is the weights of
            the last step; None: there is no average, in memory or on disk, and `weights.safetensors` are those.
        precision: `float32`, or `bf16` autocast of the forward pass (weights, optimizer and losses stay float32).
        seed: of the order of images, of every random draw of a step, of dropout.
        flip: mirror images left to right with probability 1/2.
        parallel: how processes share a run: `ddp` (each holds all weights) or `fsdp` (FSDP2: each holds a part of
            the trained weights, gradients, moments and averages).
        checkpoint_every: steps between checkpoints (one is always written at the end); 0: only at the end.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: checkpoints of multiples of so many steps are kept for good; 0: none.
        background_checkpoints: write checkpoints while training goes on, from a copy in the CPU's memory.
        log_every: steps between lines of log.jsonl and reports to callbacks.
        preview_every: steps between previews, and one at the end; 0: none.
        preview_images: images in a preview's row.
        evaluate_every: steps between measurements of the loss on the validation split, and one at the end; 0: none.
        evaluate_batches: at most so many batches of it.
        workers: loader processes a training process starts; 0: it loads by itself.
        max_unreadable: how many images that cannot be read are skipped (the next one takes their place) before the run
            stops.
        cache: `memory` keeps decoded images, or for an objective on tokens what the frozen tokenizers make of the whole
            split, plain and flipped, so that they run once; `none` does the work anew every time; anything else is
            the folder of a token cache (`mixar cache` makes one).
        compile: torch.compile the parts of what is trained.
    """

    steps: int | None = field(default=None, validator=optional(ge(1)), metadata=_FREE)
    epochs: float | None = field(default=None, validator=optional(gt(0.0)), metadata=_FREE)
    batch_size: int = field(default=2048, validator=ge(1))
    micro_batch: int | None = field(default=None, validator=optional(ge(1)), metadata=_FREE)
    learning_rate: float = field(default=1e-4, validator=gt(0.0))
    learning_rate_per: int | None = field(default=256, validator=_POSITIVE_OR_NONE)
    schedule: str | dict[str, Any] = field(default="constant", validator=lambda _, field, value: check_schedule(value))
    min_lr: float = field(default=0.0, validator=ge(0.0))
    warmup_steps: int = field(default=0, validator=ge(0))
    warmup_epochs: float = field(default=0.0, validator=ge(0.0))
    weight_decay: float = field(default=0.02, validator=ge(0.0))
    betas: tuple[float, float] = field(default=(0.9, 0.95), validator=deep_iterable(and_(ge(0.0), lt(1.0))))
    epsilon: float = field(default=1e-8, validator=gt(0.0))
    clip: float | None = field(default=3.0, validator=_POSITIVE_OR_NONE)
    ema_decay: float | None = field(default=0.9999, validator=_SHARE_OR_NONE)
    precision: Literal["float32", "bf16"] = "float32"
    seed: int = field(default=0, validator=and_(ge(0), le(2**63 - 1)))
    flip: bool = False
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=_FREE)
    checkpoint_every: int = field(default=1000, validator=ge(0), metadata=_FREE)
    keep_last: int = field(default=2, validator=ge(1), metadata=_FREE)
    keep_every: int = field(default=0, validator=ge(0), metadata=_FREE)
    background_checkpoints: bool = field(default=False, metadata=_FREE)
    log_every: int = field(default=10, validator=ge(1), metadata=_FREE)
    preview_every: int = field(default=0, validator=ge(0), metadata=_FREE)
    preview_images: int = field(default=8, validator=ge(1), metadata=_FREE)
    evaluate_every: int = field(default=0, validator=ge(0), metadata=_FREE)
    evaluate_batches: int = field(default=8, validator=ge(1), metadata=_FREE)
    workers: int = field(default=0, validator=ge(0), metadata=_FREE)
    max_unreadable: int = field(default=100, validator=ge(0), metadata=_FREE)
    cache: str = field(
        default="none", validator=min_len(1), metadata=_FREE | {"path": lambda text, _: text not in ("none", "memory")}
    )
    compile: bool = field(default=False, metadata=_FREE)

    def __attrs_post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            raise ValueError("neither steps nor epochs is set; set one")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both set; set one of them to null")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("warmup_steps and warmup_epochs are both set; set one of them to 0")
        if self.min_lr and self.schedule not in OWN:
            raise ValueError("min_lr is where cosine ends; another schedule has settings of its own")
        if self.steps is not None and not self.warmup_epochs:  # what torch refuses is known before a run
            LearningRate(self, steps=self.steps, warmup=self.warmup_steps)

    @property
    def cache_folder(self) -> Path | None:
        """The token cache that training reads; None: it reads images."""
        return None if self.cache in ("none", "memory") else user_path(self.cache)

    def total_steps(self, images: int) -> int:
        """Optimizer steps of the run on a split of `images`."""
        return self.steps or max(1, math.ceil((self.epochs or 0.0) * images / self.batch_size))

    def total_warmup(self, images: int) -> int:
        """Warm-up steps on a split of `images`."""
        return self.warmup_steps or round(self.warmup_epochs * images / self.batch_size)

    def scale_lr(self, rate: float) -> float:
        """A learning rate as written, scaled to the batch (see `learning_rate_per`)."""
        return rate if self.learning_rate_per is None else rate * self.batch_size / self.learning_rate_per

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one it goes on with.

        Where a schedule ends at the last step (cosine), the length is one of them.
        """
        length = ("steps", "epochs") if follows_length(self.schedule) else ()
        values = asdict(self, filter=lambda field, _: field.name in length or not field.metadata.get("free"))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
