"""What a step does: losses and gradients over all processes, AdamW, and the average of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import AdamW

from mixar_core.data.streams import Stream, seed_of
from mixar_core.distributed import Processes, sum_over_processes
from mixar_core.training.ema import EMA, local
from mixar_core.training.objective import Objective
from mixar_core.training.optimizer import lr_at, make_optimizer
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.sources import Batch, LossPass, Source, loss_of, micro_batches

# The name that torch 2.9 to 2.13 know it by; newer ones warn in every process.
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)


@frozen(eq=False)
class Gradients:
    """What a batch gave over all processes: mean losses by name, the gradient's norm, sums of what was told."""

    losses: dict[str, float]
    norm: float
    told: dict[str, float]


class Engine:
    """What is trained, as DDP or FSDP wraps it, with its optimizer and its average.

    Args:
        steps, warmup: of the whole run, for the learning rate.
    """

    def __init__(
        self, objective: Objective, config: TrainingConfig, processes: Processes, *, steps: int, warmup: int
    ) -> None:
        self.objective, self.config, self.processes = objective, config, processes
        self.steps, self.warmup = steps, warmup
        objective.to(processes.device)
        if config.compile:
            objective.compile_parts()
        #: the loss as a module, as every process computes it alone (under FSDP: together)
        self.losses = LossPass(objective)
        self.module: nn.Module = self.losses
        self.sharded = config.parallel == "fsdp" and processes.world > 1
        if self.sharded:
            shard(self.losses, objective, processes)
        elif processes.world > 1:  # its constructor gives every process the main one's weights
            self.module = DistributedDataParallel(self.losses, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.parameters = [p for p in objective.trained.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(objective.trained, config, objective.no_weight_decay())
        self.ema = EMA(objective.trained, config.ema_decay)
        self._settled = processes.world < 3 or not isinstance(self.module, DistributedDataParallel)

    # ---------------------------------------------------------------- a step

    def gradients(self, batch: Batch, source: Source, *, step: int, tell: Mapping[str, float]) -> Gradients:
        """The gradient of step `step`, left in the parameters; `tell` is summed over the processes on the way."""
        if not (self.objective.training and self.objective.trained.training):
            self.objective.train()
        if not self._settled:
            self._settle(batch, source, step=step)
        # Dropout draws from torch's own generator: seeded by step, a resumed run drops what the first one would have.
        torch.manual_seed(seed_of(self.config.seed, step, Stream.GLOBAL, self.processes.rank))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for rows, weight, last in micro_batches(len(batch), self.config.micro_batch):
            if self.sharded:
                assert isinstance(self.losses, FSDPModule)
                self.losses.set_requires_gradient_sync(last)
            alone = isinstance(self.module, DistributedDataParallel) and not last
            with self.module.no_sync() if alone else nullcontext():  # type: ignore[operator]
                total, figures = self.loss(self.module, batch, rows, source, noise_step=step, step=step)
                (total * weight).backward()
            add(sums, figures, weight)
        norm = self._norm()
        told = [norm.new_full((), value * self.processes.world) for value in tell.values()]
        means = self.processes.mean(torch.stack([*sums.values(), norm, *told])).tolist()
        count = len(sums)
        return Gradients(
            dict(zip(sums, means[:count], strict=True)),
            means[count],
            dict(zip(tell, means[count + 1 :], strict=True)),
        )

    def _settle(self, batch: Batch, source: Source, *, step: int) -> None:
        """A pass that is thrown away: after its first one, DDP lays out anew what it sums over the processes.

        How the sums of more than two are rounded depends on that, so a resumed run's first step would not be what it
        was in a run that never stopped.
        """
        self._settled = True
        buffers = [(buffer, buffer.clone()) for buffer in self.objective.trained.buffers()]
        rows = next(micro_batches(len(batch), self.config.micro_batch))[0]
        self.loss(self.module, batch, rows, source, noise_step=step, step=step)[0].backward()
        for buffer, before in buffers:
            buffer.copy_(before)

    def update(self, step: int, norm: float) -> None:
        """Clip the gradient, whose norm is `norm`, and move the weights and their average."""
        rate = lr_at(step, self.config, steps=self.steps, warmup=self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.clip is not None and norm > self.config.clip:
            torch._foreach_mul_(self._gradients(), self.config.clip / (norm + 1e-6))
        self.optimizer.step()
        self.ema.update()

    def loss(
        self, module: nn.Module, batch: Batch, rows: slice, source: Source, *, noise_step: int, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some rows of this process's batch, and its figures; see `loss_of`."""
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
            autocast=self.autocast(),
        )

    def autocast(self) -> torch.autocast:
        """What a forward pass of the trained parts runs under."""
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @torch.no_grad()
    def measure(self, source: Source, count: int, *, step: int) -> dict[str, float]:
        """Mean losses over the first `count` batches of a source, of the weights as they are, in evaluation mode."""
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(source.batches(0, count)):
            for rows, weight, _ in micro_batches(len(batch), self.config.micro_batch):
                _, figures = self.loss(self.losses, batch, rows, source, noise_step=index, step=step)
                add(sums, figures, weight / count)
        return dict(zip(sums, self.processes.mean(torch.stack([*sums.values()])).tolist(), strict=True))

    # ---------------------------------------------------------------- its state

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by folder and name, sharing memory with this object."""
        return {
            "raw": self.objective.trained.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.objective.trained),
        }

    def expect(self, stored: Collection[str], *, steps_done: int) -> None:
        """Make room for the optimizer's tensors of these names, so that a checkpoint can be loaded into `state()`."""
        parameters = dict(self.objective.trained.named_parameters())
        for entry in stored:
            key, _, name = entry.partition(".")
            if name in parameters:
                parameter = parameters[name]
                zeros = torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
                self.optimizer.state[parameter][key] = zeros.detach()
        self.ema.updates = steps_done

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Lets trained modules be called one by one, outside the loss; under FSDP all processes must enter it."""
        if isinstance(self.losses, FSDPModule):
            self.losses.unshard()
        try:
            yield
        finally:
            if isinstance(self.losses, FSDPModule):
                self.losses.reshard()

    def whole_weights(self) -> dict[str, Tensor]:
        """The trained weights as they are; whole ones, also where processes share them. All processes must call it."""
        state = self.objective.trained.state_dict()
        return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}

    def _gradients(self) -> list[Tensor]:
        return [local(p.grad) for p in self.parameters if p.grad is not None]

    def _norm(self) -> Tensor:
        norm = get_total_norm(self._gradients())
        return sum_over_processes(norm.square()).sqrt() if self.sharded else norm


def shard(losses: LossPass, objective: Objective, processes: Processes) -> None:
    """FSDP2: every process keeps its part of what is trained, block by block; frozen parts stay whole."""
    frozen = {p for p in losses.parameters() if not p.requires_grad}
    for tensor in objective.trained.state_dict().values():
        dist.broadcast(tensor, 0)  # all begin with the main process's weights, as under DDP
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for block in sharded_blocks(objective.trained):
        fully_shard(block, mesh=mesh, ignored_params=frozen)
    # What is left over is resharded after a forward pass too: the average takes the weights' place between two.
    fully_shard(losses, mesh=mesh, ignored_params=frozen, reshard_after_forward=True)


def sharded_blocks(trained: nn.Module) -> list[nn.Module]:
    """The modules whose weights FSDP gathers for as long as they run: the innermost lists' blocks.

    A block has modules of its own and is used by calling it. What is not in a list (embeddings, projections, small
    networks) is gathered for a whole pass.
    """
    lists = [module for module in trained.modules() if isinstance(module, nn.ModuleList)]
    return [
        block
        for blocks in lists
        for block in blocks
        if any(True for _ in block.children()) and not any(isinstance(m, nn.ModuleList) for m in block.modules())
    ]


def optimizer_tensors(optimizer: AdamW, module: nn.Module) -> dict[str, Tensor]:
    """AdamW's state as tensors, named by moment and parameter: `exp_avg.head.weight`."""
    return {
        f"{key}.{name}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def add(sums: dict[str, Tensor], figures: Mapping[str, Tensor], weight: float) -> None:
    """Add figures, weighted, to sums by name."""
    for name, value in figures.items():
        sums[name] = sums[name] + value * weight if name in sums else value * weight
