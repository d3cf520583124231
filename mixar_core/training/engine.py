"""What a step does: losses and gradients over all processes, the optimizer, and the average of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from mixar_core.blocks import Block, sharded_blocks
from mixar_core.data.source import Batch, Source
from mixar_core.data.streams import Stream, seed_of, step_noise
from mixar_core.distributed import Processes
from mixar_core.noise import Noise
from mixar_core.products import train_by_onednn
from mixar_core.training.beside import Beside
from mixar_core.training.checkpoint import load_tensors, stored_in
from mixar_core.training.ema import EMA, local
from mixar_core.training.objective import Objective
from mixar_core.training.optimizer import AdamW, Optimizer, Updates
from mixar_core.training.schedule import LearningRate
from mixar_core.training.settings import TrainingConfig
from mixar_core.types import ImageBatch, Losses, TokenBatch

# The name that torch 2.9 to 2.13 know it by; newer ones warn in every process.
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)


@frozen(eq=False)
class MicroBatch:
    """Some rows of a process's batch, as the objective takes them, and the noise of their loss.

    Args:
        rows: of the process's batch.
        weight: their share of the mean over it.
        last: whether they are its last.
    """

    batch: ImageBatch | TokenBatch
    noise: Noise
    rows: slice
    weight: float
    last: bool


@frozen(eq=False)
class Gradients:
    """What a batch gave over all processes: mean losses by name, the gradient's norm, and the sums of `counts`."""

    losses: dict[str, float]
    norm: float
    counts: dict[str, float]


class Engine:
    """What is trained, as DDP or FSDP wraps it, with its optimizer and its average.

    Args:
        steps, warmup: of the whole run, for the learning rate.
        optimizer: None: AdamW.

    Raises:
        UserError: the optimizer cannot work on these weights, or the schedule is shorter than the run.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainingConfig,
        processes: Processes,
        *,
        steps: int,
        warmup: int,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.objective, self.config, self.processes = objective, config, processes
        self.steps, self.learning_rate = steps, LearningRate(config, steps=steps, warmup=warmup)
        objective.to(processes.device)
        if config.compile:
            objective.compile_parts()
        elif config.precision == "float32":
            train_by_onednn(objective.trained)
        #: the objective, or what sums its gradients over the processes
        self.module: nn.Module = objective
        self.sharded = config.parallel == "fsdp" and processes.world > 1
        if self.sharded:
            shard(objective, config, processes)
        elif processes.world > 1:  # its constructor gives every process the main one's weights
            self.module = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.parameters = [p for p in objective.trained.parameters() if p.requires_grad]
        self.optimizer = Updates(optimizer or AdamW(), objective.trained, config, objective.no_weight_decay())
        #: what the loss trains beside it, each with its optimizer
        self.beside: dict[str, tuple[Beside, Updates]] = {
            name: (module, Updates(optimizer or AdamW(), module, config))
            for name, module in objective.beside.items()
            if isinstance(module, Beside)
        }
        #: the average; None where none is kept
        self.ema = None if config.ema_decay is None else EMA(objective.trained, config.ema_decay)
        self._settled = processes.world < 3 or not isinstance(self.module, DistributedDataParallel)

    # ---------------------------------------------------------------- a step

    def gradients(self, batch: Batch, source: Source, *, step: int, counts: Mapping[str, float]) -> Gradients:
        """The gradient of step `step`, left in the parameters; `counts` are summed over the processes on the way."""
        if not (self.objective.training and self.objective.trained.training):
            self.objective.train()
        if not self._settled:
            self._settle(batch, source, step=step)
        self.seed_dropout(step)
        self.zero_grad()
        sums: dict[str, Tensor] = {}
        for part in self.micro_batches(batch, source, step):
            with self._summing_gradients(part.last):
                losses = self.losses(part, step=step, module=self.module)
                (losses.total * part.weight).backward()
            add(sums, losses, part.weight)
        norm = self._norm(self.parameters)
        sums |= {f"{name}_norm": self._norm(module.parameters()) for name, module, _ in self._learning(step)}
        counted = [norm.new_full((), value * self.processes.world) for value in counts.values()]
        means = iter(self._means([*sums.values(), norm, *counted]))
        return Gradients({name: next(means) for name in sums}, next(means), {name: next(means) for name in counts})

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in (self.optimizer, *(optimizer for _, optimizer in self.beside.values())):
            optimizer.zero_grad()

    def micro_batches(self, batch: Batch, source: Source, step: int) -> Iterator[MicroBatch]:
        """A process's batch in the parts that it is computed in, as tokens where the objective takes them.

        What is drawn for a row depends on `step` and on its place in the whole batch, not on who computes it.
        """
        size, share, device = self.config.micro_batch or len(batch), source.share, batch.labels_B.device
        noise = partial(step_noise, seed=source.seed, step=step, total=share.total, device=device)
        for start in range(0, len(batch), size):
            rows, first = slice(start, min(start + size, len(batch))), share.first + start
            part: Any = batch.rows(rows)
            if self.objective.takes_tokens:
                part = self.objective.tokenize(part, noise=noise(Stream.TOKENS, first=first))
            weight = (rows.stop - start) / len(batch)
            yield MicroBatch(part, noise(Stream.LOSS, first=first), rows, weight, rows.stop == len(batch))

    def seed_dropout(self, step: int) -> None:
        """Dropout draws from torch's own generator: a resumed or repeated step drops what the first one would have."""
        torch.manual_seed(seed_of(self.config.seed, step, Stream.GLOBAL, self.processes.rank))

    def update(self, step: int, gradients: Gradients) -> None:
        """Clip what `gradients` left in the parameters, and move the weights and their average."""
        rate = self.learning_rate(step)
        self._clip(self.parameters, gradients.norm)
        self.optimizer.step(rate)
        if self.ema is not None:
            self.ema.update(self.optimizer.evaluated())
        for name, module, optimizer in self._learning(step):
            self._clip([*module.parameters()], gradients.losses[f"{name}_norm"])
            optimizer.step(rate * ((module.learning_rate or self.config.learning_rate) / self.config.learning_rate))
            module.learned(gradients.losses)
            for buffer in module.buffers() if self.processes.world > 1 else ():
                dist.broadcast(buffer, 0)

    def _learning(self, step: int) -> Iterator[tuple[str, Beside, Updates]]:
        """What is trained beside, as far as this step does."""
        yield from ((name, *pair) for name, pair in self.beside.items() if pair[0].learns(step))

    def _norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        norm = get_total_norm(gradients_of(parameters))
        return self.processes.sum(norm.square()).sqrt() if self.sharded else norm  # of the parts' norms

    def _clip(self, parameters: Iterable[nn.Parameter], norm: float) -> None:
        if self.config.clip is not None and norm > self.config.clip:
            torch._foreach_mul_(gradients_of(parameters), self.config.clip / (norm + 1e-6))

    def losses(self, part: MicroBatch, *, step: int, module: nn.Module | None = None) -> Losses:
        """The objective's, by itself or through the `module` that wraps it."""
        with self.autocast():
            losses: Losses = (module or self.objective)(part.batch, step=step, steps=self.steps, noise=part.noise)
        return losses

    def autocast(self) -> torch.autocast:
        """What a forward pass of the trained parts runs under."""
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @torch.no_grad()
    def measure(self, source: Source, count: int, *, step: int) -> dict[str, float]:
        """Mean losses over the first `count` batches of a source, of the weights as they are, in evaluation mode."""
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(source.batches(0, count)):
            for part in self.micro_batches(batch, source, index):
                add(sums, self.losses(part, step=step), part.weight / count)
        return dict(zip(sums, self._means([*sums.values()]), strict=True))

    def _summing_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are summed over the processes in a batch's last part alone."""
        if isinstance(self.objective, FSDPModule):
            self.objective.set_requires_gradient_sync(last)
        elif isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return nullcontext()

    def _settle(self, batch: Batch, source: Source, *, step: int) -> None:
        """A pass that is thrown away: after its first one, DDP lays out anew what it sums over the processes.

        How the sums of more than two are rounded depends on that, so a resumed run's first step would not be what it
        was in a run that never stopped.
        """
        self._settled = True
        buffers = [(buffer, buffer.clone()) for buffer in self.objective.buffers()]
        part = next(self.micro_batches(batch, source, step))
        self.losses(part, step=step, module=self.module).total.backward()
        for buffer, before in buffers:
            buffer.copy_(before)

    def _means(self, values: Sequence[Tensor]) -> list[float]:
        """The values' means over the processes."""
        return (self.processes.sum(torch.stack([*values])) / self.processes.world).tolist()

    # ---------------------------------------------------------------- its state

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by folder and name, sharing memory with this object."""
        raw = self.objective.trained.state_dict()
        averages = {} if self.ema is None else {"ema": self.ema.state_dict()}
        state = {"raw": raw, **averages, "optimizer": self.optimizer.state()}
        for name, (module, optimizer) in self.beside.items():
            state |= {name: module.state_dict(), f"{name}_optimizer": optimizer.state()}
        return {name: tensors for name, tensors in state.items() if tensors}  # no moments before the first step

    def load(self, checkpoint: Path, *, steps_done: int) -> None:
        """Go on from what a checkpoint holds. All processes must call it.

        Raises:
            UserError: it was written of something else.
        """
        optimizers = {"optimizer": self.optimizer} | {f"{n}_optimizer": pair[1] for n, pair in self.beside.items()}
        found = {name: each for name, each in optimizers.items() if (checkpoint / name).is_dir()}
        for name, each in found.items():
            each.expect(stored_in(checkpoint / name))
        state = self.state()
        load_tensors(checkpoint, state, self.processes)
        for name, each in found.items():
            each.take(state[name])
        if self.ema is not None:
            self.ema.updates = steps_done

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block the module carries the average, or where none is kept what `evaluated` gives."""
        return self.evaluated() if self.ema is None else self.ema.swapped()

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Inside the block the module carries the weights that are measured and written (`Optimizer.evaluated`)."""
        weights = dict(self.objective.trained.named_parameters())
        pairs = [(local(weights[name]).detach(), local(other)) for name, other in self.optimizer.evaluated().items()]
        before = [weight.clone() for weight, _ in pairs]
        for weight, other in pairs:
            weight.copy_(other)
        try:
            yield
        finally:
            for (weight, _), value in zip(pairs, before, strict=True):
                weight.copy_(value)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Lets trained modules be called one by one, outside the loss; under FSDP all processes must enter it."""
        if isinstance(self.objective, FSDPModule):
            self.objective.unshard()
        try:
            yield
        finally:
            if isinstance(self.objective, FSDPModule):
                self.objective.reshard()

    def whole_weights(self) -> dict[str, Tensor]:
        """The trained weights as they are; whole ones, also where processes share them. All processes must call it."""
        state = self.objective.trained.state_dict()
        return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def shard(objective: Objective, config: TrainingConfig, processes: Processes) -> None:
    """FSDP2: every process keeps its part of what is trained, block by block; frozen parts stay whole."""
    frozen = {p for p in objective.parameters() if not p.requires_grad}
    for parameter in objective.trained.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no channels_last
    for tensor in objective.trained.state_dict().values():
        dist.broadcast(tensor, 0)  # all begin with the main process's weights, as under DDP
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for block in sharded_blocks(objective.trained):
        policy = gather_policy(block, config, processes.device)
        fully_shard(block, mesh=mesh, ignored_params=frozen, mp_policy=policy)
    # What is left over is resharded after a forward pass too: the average takes the weights' place between two.
    fully_shard(objective, mesh=mesh, ignored_params=frozen, reshard_after_forward=True)


def gather_policy(block: nn.Module, config: TrainingConfig, device: torch.device) -> MixedPrecisionPolicy:
    """In which precision a block's weights are gathered: as a backbone's blocks compute, so that bf16 sends half.

    Others (a head, a tokenizer) do some of their work in float32, under bf16 too. On a CPU autocast's layer norm wants
    float32 weights. Gradients are summed in float32 everywhere.
    """
    if config.precision == "bf16" and device.type == "cuda" and isinstance(block, Block):
        return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    return MixedPrecisionPolicy()


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Those that there are; of sharded ones this process's part."""
    return [local(p.grad) for p in parameters if p.grad is not None]


def add(sums: dict[str, Tensor], losses: Losses, weight: float) -> None:
    """Add a loss and its terms, detached and weighted, to float32 sums by name."""
    for name, value in {"loss": losses.total, **losses.terms}.items():
        value = value.detach().to(losses.total.device, torch.float32) * weight
        sums[name] = sums[name] + value if name in sums else value
