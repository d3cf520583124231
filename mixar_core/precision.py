"""Where precision is not the run's to choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Inside it there is no autocast on `device`. (`meta` knows none.)"""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def tf32_where(precision: str, device: torch.device) -> Iterator[None]:
    """Inside it a bf16 run on a GPU computes what stays float32 in TF32. The setting is the whole process's."""
    before = torch.get_float32_matmul_precision()
    if precision == "bf16" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
