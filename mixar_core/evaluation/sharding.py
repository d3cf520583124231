"""A set of images shared out among the processes of a `torchrun`: process r of w takes every w-th, from the r-th on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mixar_core.training.distributed import Processes


def share(indices_A: Tensor, processes: Processes) -> Tensor:
    """This process's part of a list of indices."""
    return indices_A[processes.rank :: processes.world]


def gathered(rows: Tensor, total: int, processes: Processes) -> Tensor:
    """The rows of all processes, each its `share` of `total`, in the order before sharing: (total, ...), on the CPU."""
    if processes.world == 1:
        return rows.cpu()
    # A collective wants equal shapes: shares differ by one row at most.
    padded = rows.new_zeros(-(-total // processes.world), *rows.shape[1:], device=processes.device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(processes.world)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total].cpu()


def summed(values: Tensor, processes: Processes) -> Tensor:
    """The sum over the processes, on the CPU."""
    if processes.world == 1:
        return values.cpu()
    values = values.to(processes.device, copy=True)
    dist.all_reduce(values)
    return values.cpu()
