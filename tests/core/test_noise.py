"""The one source of randomness: what crosses from host to device, and that rows do not depend on who draws them."""

from __future__ import annotations

import pytest
import torch

from mixar_core.noise import Noise
from tests.fake_device import GPU, fake_gpu


class GeneratorOfAGPU:
    """As much of a generator on a GPU as there can be without one."""

    device = GPU

    def initial_seed(self) -> int:
        return 7


def test_a_number_for_a_whole_batch_never_waits_for_a_gpu() -> None:
    noise = Noise(GeneratorOfAGPU())
    drawn = [noise.scalar() for _ in range(3)]
    assert drawn == [Noise.seeded(7).scalar(), *drawn[1:]] and len(set(drawn)) == 3


def test_draws_of_the_host_reach_a_gpu_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *args, **kw: asked.append(kw["pin_memory"]) or randn(*args, **kw))
    with fake_gpu():
        assert Noise.seeded(0).normal((2, 3), GPU).device == GPU
    assert Noise.seeded(0).normal((2, 3), "cpu").device.type == "cpu"
    assert asked == [True, False]


@pytest.mark.parametrize("kind", ["normal", "uniform", "integers"])
def test_a_process_draws_its_rows_of_the_whole(kind: str) -> None:
    def draw(rows: int, first: int, total: int | None) -> torch.Tensor:
        noise = Noise(torch.Generator().manual_seed(3), first=first, total=total)
        size = (rows, 2)
        return noise.integers(9, size, "cpu") if kind == "integers" else getattr(noise, kind)(size, "cpu")

    assert torch.equal(torch.cat([draw(3, 0, 5), draw(2, 3, 5)]), draw(5, 0, None))
