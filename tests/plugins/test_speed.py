"""Sampling made faster: the same samples, or as near as the precision lets them be."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixar
from mixar.speed import hasten
from mixar_core.blocks import CrossAttention, Mlp, is_compiled
from mixar_core.graphs import Graphed
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.products import PackedLinear, pack, some_of
from mixar_core.types import Condition, Step, Z
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mixar_plugins.heads.mse import MseHead, MseHeadConfig
from mixar_plugins.priors.masked_transformer import BitTokenPrior, MaskBitConfig
from tests.cli.process import good
from tests.toys import SignTokenizer, small_mixar

SETTINGS = SamplingConfig(steps=4, cfg=2.0, head_steps=6)


def drawn(model: MixAR, settings: SamplingConfig = SETTINGS) -> Tensor:
    condition = model.condition(torch.tensor([0, 1, 1]))
    return model.generate(condition, settings=settings, noise=Noise.seeded(5)).latents_BChw


@pytest.fixture(params=["none", "dc-mix", "dc-sa", "dc-ca"])
def model(request: pytest.FixtureRequest) -> MixAR:
    """A small one, with guidance through one of the doors."""
    return small_mixar(request.param, depth=2).eval()


def test_bf16_weights_are_near_float32_and_what_needs_it_stays(model: MixAR) -> None:
    exact = drawn(model)
    with torch.autocast("cpu", torch.bfloat16):
        cast = drawn(model)
    assert hasten(model, precision="bf16") == (False, [])
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.head.net.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        held = drawn(model)
    assert held.dtype == torch.float32
    assert (held - exact).abs().mean() < 2 * (cast - exact).abs().mean() < 0.2 * exact.abs().mean()


def test_bf16_weights_are_not_cast_again(model: MixAR) -> None:
    hasten(model, precision="bf16")
    casts: list[tuple[int, ...]] = []

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten._to_copy.default and any(args[0] is p for p in model.backbone.parameters()):
                casts.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Casts(), torch.autocast("cpu", torch.bfloat16):
        drawn(model)
    assert casts == []


@pytest.mark.parametrize("solver", ["ddpm", "disa", "lazymar", "ddim", "dpm++"])
@pytest.mark.parametrize("guided", [True, False])
@torch.no_grad()
def test_static_buffers_give_the_same_bits(solver: str, guided: bool) -> None:
    torch.manual_seed(0)
    head = DiffusionHead(DiffusionHeadConfig(depth=5, width=16), token_dim=4, width=8, layout=None)  # type: ignore[arg-type]
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    z = Z(torch.randn(2, 3, 8), torch.arange(3).expand(2, -1), torch.randn(2, 3, 8) if guided else None)
    for temperature in (1.0, 0.7, 0.0) if solver not in ("ddim", "dpm++") else (1.0,):
        step = Step(cfg=1.7 if guided else 1.0, head_steps=8, solver=solver, temperature=temperature)
        eager = head.sample(z, step, noise=Noise.seeded(3))
        head.graphs = Graphed()
        torch.testing.assert_close(head.sample(z, step, noise=Noise.seeded(3)), eager, rtol=0, atol=0)
        head.graphs = None


def test_what_cannot_be_had_is_said() -> None:
    model = small_mixar("none").eval()
    assert hasten(model, graphs=True) == (False, ["graphs: there is no GPU; the head runs without"])
    assert model.head.graphs is None
    model.trained["head"] = MseHead(MseHeadConfig(), token_dim=3, width=16, layout=model.backbone.layout)
    assert hasten(model, graphs=True) == (False, ["graphs: the head MseHead cannot be captured; it runs without"])


@torch.no_grad()
def test_both_halves_look_at_one_memory() -> None:
    torch.manual_seed(0)
    cross = CrossAttention(16, 12, 2, dropout=0.0)
    x_BTD, memory_BMD = torch.randn(6, 5, 16), torch.randn(3, 7, 12)
    torch.testing.assert_close(cross(x_BTD, cross.keys_values(memory_BMD)), cross(x_BTD, memory_BMD.repeat(2, 1, 1)))


@torch.no_grad()
def test_a_memory_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = small_mixar("dc-ca", depth=2).eval(), 0
    project: Callable[[CrossAttention, Tensor], tuple[Tensor, Tensor]] = CrossAttention.keys_values

    def counting(cross: CrossAttention, memory_BMD: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal asked
        asked += 1
        return project(cross, memory_BMD)

    monkeypatch.setattr(CrossAttention, "keys_values", counting)
    drawn(model)
    assert asked == len([*model.backbone.blocks()])


@torch.no_grad()
def test_of_the_last_block_only_what_is_predicted_is_computed(model: MixAR) -> None:
    seen: list[int] = []
    last = model.backbone.decoder_blocks[-1]  # type: ignore[index]
    last.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))  # type: ignore[union-attr]
    drawn(model)
    plan = model.plan(Condition(torch.tensor([0, 1, 1])), SETTINGS, noise=Noise.seeded(5))
    assert seen == [planned.positions_BK.shape[1] for planned in plan.steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_is_the_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(300, 256), torch.nn.Linear(256, 12)).to(dtype)
    cases = [torch.randn(*shape, 300).to(dtype) for shape in ((5,), (2, 3), (2, 0), (1, 4, 7))]
    slanted = torch.randn(300, 9).to(dtype).t()
    with torch.no_grad():
        plain = [network(x) for x in (*cases, slanted)]
        pack(network)
        assert [type(layer) for layer in network] == [PackedLinear, torch.nn.Linear]
        for x, expected in zip((*cases, slanted), plain, strict=True):
            torch.testing.assert_close(network(x), expected, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
        part = some_of(network[0], cases[0], slice(10, 90))
        torch.testing.assert_close(part, network[0](cases[0])[:, 10:90], rtol=1e-2, atol=1e-5)
    assert type(copy.deepcopy(network)[0]) is torch.nn.Linear
    network(cases[0]).sum().backward()  # with gradients it is an ordinary one
    assert network[0].weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network[0](cases[0].float()).dtype == torch.bfloat16


def test_packed_weights_draw_what_others_draw() -> None:
    plain, packed = (small_mixar("none", width=256, depth=2).eval() for _ in range(2))
    hasten(packed)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    torch.testing.assert_close(drawn(packed), drawn(plain), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_prior_held_in_bf16_is_what_autocast_makes_of_it() -> None:
    torch.manual_seed(0)
    config = MaskBitConfig(bits=3, splits=1, stride=4, width=16, depth=2, heads=2, mlp_dim=32, steps=4)
    prior = BitTokenPrior(config, tokenizer=SignTokenizer(16), num_classes=3).eval()
    condition, codes_BN = Condition(torch.tensor([0, 2])), torch.randint(8, (2, 16))

    def given(noise: int) -> tuple[Tensor, Tensor]:
        drawn = prior.predict(codes_BN, codes_BN > 3, condition, noise=Noise.seeded(noise))
        assert drawn.confidence_BN is not None
        return prior.sample(condition, noise=Noise.seeded(noise)).codes_BN, drawn.confidence_BN

    with torch.autocast("cpu", torch.bfloat16):
        cast = [given(noise) for noise in range(3)]
    hasten(prior, precision="bf16")
    held = [given(noise) for noise in range(3)]  # without autocast around it
    torch.testing.assert_close(held, cast, rtol=0, atol=0)


@torch.no_grad()
def test_where_nobody_trains_the_widest_tensor_is_changed_in_place() -> None:
    torch.manual_seed(0)
    mlp, x = Mlp(8, 32, dropout=0.0), torch.randn(2, 5, 8)
    with torch.enable_grad():
        trained = mlp(x)
        trained.sum().backward()
    assert mlp.fc1.weight.grad is not None
    seen: list[tuple[int, Tensor]] = []
    mlp.fc1.register_forward_hook(lambda _, __, out: seen.append((out.data_ptr(), out)))
    mlp.fc2.register_forward_pre_hook(lambda _, given: seen.append((given[0].data_ptr(), given[0])))
    assert torch.equal(mlp(x), trained)
    assert seen[0][0] == seen[1][0]


def test_where_nothing_compiles_it_is_said_and_blocks_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand more")

    plain, asked = (small_mixar("none", width=256, depth=1).eval() for _ in range(2))
    monkeypatch.setattr(torch, "compile", refuse)
    compiled, [line] = hasten(asked, compile=True)
    assert not compiled
    assert line.startswith("compile: torch cannot compile here (RuntimeError: no compiler and more)")
    assert not any(is_compiled(block) for block in asked.modules())
    hasten(plain)
    assert torch.equal(drawn(asked), drawn(plain))


@pytest.mark.slow  # a C++ compiler runs for every kind of block
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_blocks_draw_the_same_images(family: Path, tmp_path: Path) -> None:
    plain, quick = (mixar.load(family / "models/mixar", device="cpu", compile=compile) for compile in (False, True))
    assert quick.notices == [] and quick.compiled and not plain.compiled
    assert all(is_compiled(block) for block in quick.system.model.backbone.blocks())  # type: ignore[union-attr]
    expected, found = (model.generate([0, 1, 2], steps=3, seed=4).images for model in (plain, quick))
    assert (found.int() - expected.int()).abs().max() <= 1  # of 255 levels
    good("sample", family / "models/mixar", "--labels", "0,1", "--compile", "--out", tmp_path / "drawn")
    assert json.loads((tmp_path / "drawn/sample.json").read_text())["model"]["compiled"] is True
