"""`mixar bench`: every part is there, and costs grow as they must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from mixar import Registry
from mixar.recipe import load_recipe
from mixar_core.products import pack
from mixar_eval.bench import Clock, growth
from mixar_eval.cli_bench import bench_command
from mixar_eval.products import Products
from tests.cli.process import refused


def test_a_model_and_its_training_step(family: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(bench_command)
    call = [str(family / "models/mixar"), "--batch", "2", "--repeats", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*call, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    parts = {(row["of"], row["part"]): row for row in found["parts"]}
    sampling = {"prior", "backbone", "head", "continuous_tokenizer", "rest"}
    training = {"tokenizers", "backbone, forward", "head, forward", "backward", "update"}
    assert {part for of, part in parts if of == "sampling"} == sampling
    assert {part for of, part in parts if of == "training"} == training
    assert all(row["seconds"] > 0.0 for row in parts.values())
    counted = [row for row in parts.values() if row["part"] not in ("rest", "update")]
    assert all(row["gflop"] > 0.0 and row["of_peak"] > 0.0 for row in counted)
    for part in ("prior", "backbone", "head"):
        assert 0.0 < parts["sampling", part]["products"] < 1.0 and parts["sampling", part]["of_same_shapes"] > 0.0
    forward = parts["training", "backbone, forward"]["gflop"] + parts["training", "head, forward"]["gflop"]
    assert parts["training", "backward"]["gflop"] == pytest.approx(2 * forward)


def test_nothing_but_attention_is_quadratic_in_the_tokens(family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    rows = {row["change"]: row for row in growth(recipe, registry)}
    # one class token stays, before 4 and 16 tokens in the encoder, 16 and 64 in the decoder, where three in four ask
    assert rows["4 x tokens"]["a pass, all else"] == pytest.approx((17 + 65) / (5 + 17), rel=0.05)
    assert rows["4 x tokens"]["a pass, attention"] == pytest.approx((17**2 + 48 * 65) / (5**2 + 12 * 17))
    assert 1.0 < rows["2 x steps"]["sampling"] < 2.0 and rows["2 x steps"]["training"] == 1.0
    assert rows["10 x classes"]["million parameters"] > 1.0 == rows["10 x classes"]["training"]
    assert rows["+2 code bits"]["a pass, all else"] == 1.0


def test_time_inside_a_part_is_not_the_outer_ones() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.part("outer"), clock.part("inner"):
        torch.randn(200, 200) @ torch.randn(200, 200)
    assert 0.0 < clock.seconds["outer"] < clock.seconds["inner"]


def test_settings_are_for_recipes(family: Path, tmp_path: Path) -> None:
    line = refused("bench", family / "models/mixar", "--set", "sampling.steps=2", cwd=tmp_path)
    assert "--set changes a recipe" in line


def test_products_alone_are_those_of_the_network() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(300, 256), torch.nn.Linear(256, 12)).requires_grad_(False)
    products, asked = Products(), "first"
    pack(network)
    with products.watched(network, lambda: asked):
        network(torch.randn(2, 3, 300))
        asked = "second"
        network[1](torch.randn(5, 256))
    network(torch.randn(1, 300))  # after it nothing counts
    assert products.calls == {"first": [(network[0], 6), (network[1], 6)], "second": [(network[1], 5)]}
    assert products.seconds.keys() == products.calls.keys()
    counted: list[tuple[int, ...]] = []
    network[1].register_forward_hook(lambda *_: counted.append(()))
    assert products.alone("first") > 0.0 and not counted
