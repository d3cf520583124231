from __future__ import annotations

import pytest
import torch
from torch import nn

from mixar_core.training.ema import EMA


def module() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return net


def test_the_average_is_the_recurrence():
    net = module()
    ema = EMA(net, 0.5)
    expected = [p.detach().clone() for p in net.parameters()]
    for update in range(5):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        decay = min(0.5, (1 + update) / (10 + update))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, net.parameters(), strict=True)]
        ema.update()
    with ema.swapped():
        for p, e in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e)


def test_the_decay_warms_up_to_its_value():
    ema = EMA(module(), 0.9999)
    decays = [ema.decay_at(update) for update in (0, 90, 10**6)]
    assert decays == pytest.approx([0.1, 0.91, 0.9999])


def test_swapping_restores_the_weights_and_keeps_what_was_written():
    net = module()
    ema = EMA(net, 0.9)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(RuntimeError), ema.swapped():
        net[1].running_mean.fill_(7.0)
        raise RuntimeError
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    with ema.swapped():
        assert (net[1].running_mean == 7.0).all()


def test_half_precision_weights_are_averaged_in_float32():
    net = module().bfloat16()
    ema = EMA(net, 0.9999)
    ema.updates = 10**6
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        ema.shadow["0.weight"].fill_(0.5)
    for _ in range(10):
        ema.update()
    assert ema.shadow["0.weight"].dtype == torch.float32
    assert ema.shadow["0.weight"].mean().item() == pytest.approx(1 - 0.5 * 0.9999**10)
