"""Linear layers that train by oneDNN: the same values and gradients as torch's own, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixar_core.products import LARGE, TrainedLinear, some_of, train_by_onednn

SHAPES = [(7, 320), (2, 5, 320), (2, 3, 5, 320)]


def layers(bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain, quick = nn.Linear(320, 256, bias=bias), nn.Linear(320, 256, bias=bias)
    quick.load_state_dict(plain.state_dict())
    train_by_onednn(nn.ModuleList([quick]))
    assert type(quick) is TrainedLinear
    return plain, quick


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], bias: bool) -> None:
    found = []
    for layer in layers(bias):
        x = torch.linspace(-1, 1, 7 * 320).repeat(5)[: torch.Size(shape).numel()].view(shape).requires_grad_()
        out = layer(x)
        (out.square().mean() + out.sum()).backward()
        assert x.grad is not None
        found.append([out.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for ours, torchs in zip(found[1], found[0], strict=True):
        assert ours is not None and torchs is not None
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_some_outputs_have_the_gradient_of_their_rows_alone() -> None:
    _, quick = layers(True)
    x = torch.randn(3, 320)
    out = some_of(quick, x, slice(10, 30))
    torch.testing.assert_close(out, quick(x)[:, 10:30], rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert quick.weight.grad is not None and quick.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [
        *range(10, 30)
    ]


def test_autocast_and_empty_batches_go_the_ordinary_way() -> None:
    plain, quick = layers(True)
    x = torch.randn(4, 320)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(x), plain(x)) and quick(x).dtype == torch.bfloat16
    assert quick(x[:0]).shape == (0, 256)


def test_small_layers_stay_as_they_are() -> None:
    small = nn.Linear(16, LARGE // 16 - 1)
    train_by_onednn(nn.Sequential(small))
    assert type(small) is nn.Linear
