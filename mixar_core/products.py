"""Matrix products on a CPU: oneDNN's; for sampling from weights that are laid out for it once.

torch's own float32 products go through MKL, whose kernels for AVX-512 run on Intel's processors alone: on AMD's oneDNN
is more than twice as fast (python -m benchmarks.products). In bfloat16 torch's are oneDNN's as well, but lay the
weight out anew each time. Sums are taken in another order, so last bits differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: numbers of a weight from which it pays
LARGE = 2**16
#: rows that a weight is laid out for; others do as well
ROWS = 256


class PackedLinear(nn.Linear):
    """A linear layer with a second copy of its weight; where gradients or autocast need it, it is an ordinary one."""

    packed: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return _product(input, self.weight, self.bias, self.packed)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """An ordinary one: what oneDNN laid out cannot be copied."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, dtype=self.weight.dtype)
        made.load_state_dict(self.state_dict())
        return made.train(self.training)


def pack(module: nn.Module) -> None:
    """Make all large linear layers in a module on a CPU packed ones; its weights must not change after that."""
    if not torch.backends.mkldnn.is_available():
        return
    for layer in packable(module):
        weight = layer.weight.detach()
        if weight.device.type == "cpu":
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
            layer.__class__ = PackedLinear


def packable(module: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers of which `pack` keeps a second copy on a CPU."""
    for layer in module.modules():
        if type(layer) in (nn.Linear, PackedLinear) and layer.get_parameter("weight").numel() >= LARGE:
            yield layer  # type: ignore[misc]


class TrainedLinear(nn.Linear):
    """A linear layer whose float32 products, forward and backward, are oneDNN's."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return _with_gradients(input, self.weight, self.bias)


def train_by_onednn(module: nn.Module) -> None:
    """Make all large linear layers in a module on a CPU such ones."""
    for layer in module.modules() if torch.backends.mkldnn.is_available() else ():
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.numel() >= LARGE:
            layer.__class__ = TrainedLinear


def _with_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
    if not plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight, bias)
    return out


class _Product(torch.autograd.Function):
    """x W^T + b, and its gradients, each a product of two matrices as they lie."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad = grad.contiguous()
        (x, weight), needed, rows = ctx.saved_tensors, ctx.needs_input_grad, grad.flatten(0, -2)
        of_x = _onednn(grad, weight.t()) if needed[0] else None
        of_weight = _onednn(rows.t(), x.flatten(0, -2).t()) if needed[1] else None
        return of_x, of_weight, rows.sum(0) if needed[2] else None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def some_of(layer: nn.Linear, x: Tensor, rows: slice) -> Tensor:
    """Some of a linear layer's outputs."""
    weight, bias = layer.weight[rows], None if layer.bias is None else layer.bias[rows]
    if isinstance(layer, TrainedLinear):
        return _with_gradients(x, weight, bias)
    return _product(x, weight, bias, weight) if isinstance(layer, PackedLinear) else F.linear(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not x.numel():
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        if weight.dtype == torch.float32:
            return F.linear(x, weight, bias)
        x = x.to(weight.dtype)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
