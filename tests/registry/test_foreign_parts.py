"""Library modules go in as they are: built where `meta` cannot build them, and with weights that they bring."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from mixar import strict_yaml
from mixar.assembly import build, open_data
from mixar.cache import make_cache, open_cache
from mixar.cost import estimate
from mixar.folder import read_provenance, read_tensors
from mixar.measuring import measure
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe
from mixar.run import train
from mixar_core.blocks import blocks_in, sharded_blocks
from mixar_core.data.loader import load_batches
from mixar_core.errors import UserError
from mixar_core.meta import on_meta
from mixar_core.storage import state_sha256
from mixar_core.testing import check_continuous_tokenizer, check_discrete_tokenizer, check_prior
from tests.cli.process import good
from tests.foreign_parts import (
    CausalConfig,
    FSQConfig,
    LibraryCausalPrior,
    LibraryFSQ,
    Pretrained,
    PretrainedConfig,
    write_autoencoder,
)


@pytest.fixture
def foreign(with_plugin: Callable[[str], Registry]) -> Registry:
    return with_plugin("tests.foreign_parts")


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    write_autoencoder(tmp_path / "autoencoder")
    return tmp_path / "autoencoder"


def fsq_recipe(family: Path, registry: Registry, *more: str) -> Recipe:
    overrides = ["discrete_tokenizer.type=library-fsq", *more]
    return load_recipe(family / "recipes/discrete.yaml", overrides, registry=registry)


def pretrained_recipe(name: str, family: Path, autoencoder: Path, registry: Registry, *more: str) -> Recipe:
    part = ["continuous_tokenizer.type=pretrained", f"continuous_tokenizer.path={autoencoder}"]
    return load_recipe(family / f"recipes/{name}.yaml", [*part, *more], registry=registry)


# ---------------------------------------------------------------- what cannot be built, or cannot run, on meta


def test_they_keep_their_contracts(autoencoder: Path) -> None:
    check_discrete_tokenizer(partial(LibraryFSQ, FSQConfig(), image_size=16))
    check_continuous_tokenizer(partial(Pretrained, PretrainedConfig(autoencoder), image_size=16))
    tokenizer = LibraryFSQ(FSQConfig(), image_size=8)
    make = partial(LibraryCausalPrior, CausalConfig(), tokenizer=tokenizer, num_classes=3, data=None)
    check_prior(make)


def test_the_contract_names_the_rule_that_a_look_at_values_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LibraryCausalPrior, "meta_safe", True)
    tokenizer = LibraryFSQ(FSQConfig(), image_size=8)
    make = partial(LibraryCausalPrior, CausalConfig(), tokenizer=tokenizer, num_classes=3, data=None)
    with pytest.raises(RuntimeError, match=r"does not run on `meta`.*no branch may depend.*`meta_safe = False`"):
        check_prior(make)


def test_what_meta_cannot_build_is_built_on_the_cpu_and_costs_are_counted(family: Path, foreign: Registry) -> None:
    recipe = fsq_recipe(family, foreign)
    before = torch.get_rng_state()
    system = build(recipe, foreign, meta=True)
    assert torch.equal(before, torch.get_rng_state())
    assert all(tensor.is_meta for tensor in (*system.trained.parameters(), *system.trained.buffers()))
    assert system.discrete_tokenizer is not None and system.discrete_tokenizer.codebook_size == 12
    found = estimate(system)
    assert isinstance(found.training_gflop["total"], float) and isinstance(found.memory_gb["training"], float)


def test_a_fault_in_a_constructor_is_shown_as_it_is(family: Path, foreign: Registry) -> None:
    with pytest.raises(AttributeError, match="'LibraryFSQ' object has no attribute 'encoders'"):
        build(fsq_recipe(family, foreign, "discrete_tokenizer.fault=true"), foreign, meta=True)


def test_on_meta_builds_once_where_it_can() -> None:
    built: list[nn.Module] = []

    def make() -> nn.Module:
        built.append(nn.Linear(2, 3))
        return built[-1]

    assert on_meta(make).weight.is_meta and len(built) == 1
    copy = on_meta(make, safe=False)
    assert copy.weight.is_meta and copy is not built[1] and not built[1].weight.is_meta and len(built) == 2
    tied = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    tied[0].weight.requires_grad_(False)
    tied.add_module("again", tied[0])
    empty = on_meta(lambda: tied, safe=False)
    assert empty.again.weight is empty[0].weight and not empty[0].weight.requires_grad and empty[1].weight.requires_grad
    assert empty[1].running_mean.is_meta and not tied[1].running_mean.is_meta


def test_a_prior_that_meta_cannot_run_trains_and_its_costs_say_so(
    tmp_path: Path, family: Path, foreign: Registry
) -> None:
    recipe = load_recipe(family / "recipes/prior.yaml", ["prior.type=library-causal"], registry=foreign)
    found = estimate(build(recipe, foreign, meta=True))
    for figure in (found.training_gflop["prior"], found.sampling_gflop["prior"], found.memory_gb["activations"]):
        assert "cannot be counted without values: RuntimeError: Tensor.item() cannot be called on meta" in str(figure)
    assert found.memory_gb["training"] == "not known, for want of: activations"
    result = train(recipe, tmp_path / "run", registry=foreign)
    assert result.step == 2
    model = load(tmp_path / "run", registry=foreign)
    assert torch.equal(model.sample_codes([0, 1], seed=1), model.sample_codes([0, 1], seed=1))


def test_the_command_line_checks_a_librarys_module(family: Path, foreign: Registry) -> None:
    settings = ["--set", "discrete_tokenizer.type=library-fsq"]
    recipe = str(family / "recipes/discrete.yaml")
    checked = good("recipe", "check", recipe, *settings)
    assert "library-fsq" in checked and "cannot be counted" not in checked


# ---------------------------------------------------------------- what brings its own weights


def test_a_frozen_part_that_brings_its_weights_needs_none_and_is_built_once(
    tmp_path: Path, family: Path, foreign: Registry, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = pretrained_recipe("mixar", family, autoencoder, foreign)
    built: list[Pretrained] = []
    init = Pretrained.__init__

    def counted(self: Pretrained, config: PretrainedConfig, *, image_size: int) -> None:
        built.append(self)
        init(self, config, image_size=image_size)

    monkeypatch.setattr(Pretrained, "__init__", counted)
    planned = build(recipe, foreign, meta=True)
    assert planned.brought["continuous_tokenizer"] is built[0] and planned.continuous_tokenizer is not built[0]
    assert isinstance(estimate(planned).training_gflop["continuous_tokenizer"], float)
    system = build(recipe, foreign, planned=planned)
    assert system.continuous_tokenizer is built[0] and len(built) == 1
    assert not any(parameter.requires_grad for parameter in built[0].parameters())

    train(recipe, tmp_path / "run", registry=foreign)
    noted = read_provenance(tmp_path / "run")["frozen"]
    assert noted["continuous_tokenizer"] == state_sha256(Pretrained(PretrainedConfig(autoencoder), image_size=16))
    assert not any("autoencoder" in name for name in read_tensors(tmp_path / "run/weights.safetensors"))
    one, other = (load(tmp_path / "run", registry=foreign).generate([0, 1], seed=3).images for _ in range(2))
    assert torch.equal(one, other)


def test_a_changed_download_is_noticed(
    tmp_path: Path, family: Path, foreign: Registry, autoencoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = pretrained_recipe("mixar", family, autoencoder, foreign)
    train(recipe, tmp_path / "run", registry=foreign)
    assert "latents are not measured" in capsys.readouterr().err
    shutil.rmtree(autoencoder)
    write_autoencoder(autoencoder, seed=1)
    told = r"started with other weights of its continuous_tokenizer: their sha256 was \w{64}, is \w{64}"
    with pytest.raises(UserError, match=told):
        load(tmp_path / "run", registry=foreign)
    with pytest.raises(UserError, match=told):
        train(recipe, tmp_path / "run", resume=True, registry=foreign)


def test_a_cache_knows_the_weights_that_were_brought(
    tmp_path: Path, family: Path, foreign: Registry, autoencoder: Path
) -> None:
    recipe = pretrained_recipe("mixar", family, autoencoder, foreign)
    make_cache(recipe, tmp_path / "cache", foreign)
    assert len(open_cache(tmp_path / "cache", recipe, foreign)) == 9
    shutil.rmtree(autoencoder)
    write_autoencoder(autoencoder, seed=1)
    with pytest.raises(UserError, match="made by another continuous tokenizer: weights_sha256"):
        open_cache(tmp_path / "cache", recipe, foreign)


def test_latents_are_measured_without_training_and_kept(
    tmp_path: Path, family: Path, foreign: Registry, autoencoder: Path
) -> None:
    recipe = pretrained_recipe("continuous", family, autoencoder, foreign, "training=null")
    measure(recipe, tmp_path / "measured", foreign)
    found = load_recipe(tmp_path / "measured/recipe.yaml", registry=foreign)
    trained = tmp_path / "measured/weights.safetensors"
    tokenizer = build(found, foreign, trained_weights=trained).continuous_tokenizer
    assert isinstance(tokenizer, Pretrained)
    rows = next(load_batches(open_data(recipe, foreign, "train"), [list(range(9))]))
    images = rows.to(torch.device("cpu")).images_B3HW
    with torch.no_grad():
        posterior = tokenizer.posterior(images)
        latents_BChw = tokenizer.encode(images)
    spread = latents_BChw.var(dim=(0, 2, 3), correction=0)
    own = (posterior.logvar_BChw.exp() / tokenizer.latent_std_C.square()[:, None, None]).mean(dim=(0, 2, 3))
    torch.testing.assert_close(latents_BChw.mean(dim=(0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(spread + own, torch.ones(2), rtol=1e-3, atol=0)

    mix = load_recipe(
        family / "recipes/mixar.yaml", [f"continuous_tokenizer.weights={tmp_path / 'measured'}"], registry=foreign
    )
    planned = build(mix, foreign)
    assert isinstance(planned.continuous_tokenizer, Pretrained)
    assert torch.equal(planned.continuous_tokenizer.latent_std_C, tokenizer.latent_std_C)


def test_measuring_refuses_what_it_cannot_measure(
    tmp_path: Path, family: Path, foreign: Registry, autoencoder: Path
) -> None:
    with pytest.raises(UserError, match="trains prior; what is measured is"):
        measure(load_recipe(family / "recipes/prior.yaml", registry=foreign), tmp_path / "out", foreign)
    with pytest.raises(UserError, match=r"continuous_tokenizer \(kl\): has no weights yet"):
        measure(load_recipe(family / "recipes/continuous.yaml", registry=foreign), tmp_path / "out", foreign)
    assert not (tmp_path / "out").exists()
    recipe = pretrained_recipe("continuous", family, autoencoder, foreign)
    with pytest.raises(UserError, match=f"{re.escape(str(autoencoder))}: is there already"):
        measure(recipe, autoencoder, foreign)


def test_one_that_is_trained_starts_from_what_it_brings(
    tmp_path: Path, family: Path, foreign: Registry, autoencoder: Path
) -> None:
    recipe = pretrained_recipe("continuous", family, autoencoder, foreign, "training.learning_rate=1e-9")
    train(recipe, tmp_path / "run", registry=foreign)
    then = Pretrained(PretrainedConfig(autoencoder), image_size=16).state_dict()
    now = read_tensors(tmp_path / "run/weights_raw.safetensors")
    for name, tensor in then.items():
        if name.startswith("model."):
            torch.testing.assert_close(now[name], tensor, rtol=0, atol=1e-6)
    assert (now["latent_std_C"] != 1).all()
    assert "continuous_tokenizer" not in read_provenance(tmp_path / "run")["frozen"]


def test_the_command_measures(tmp_path: Path, family: Path, foreign: Registry, autoencoder: Path) -> None:
    path = tmp_path / "pretrained.yaml"
    part = {"type": "pretrained", "path": str(autoencoder)}
    path.write_text(
        strict_yaml.dump({"extends": str(family / "recipes/continuous.yaml"), "continuous_tokenizer": part})
    )
    assert f"weights: {tmp_path / 'measured'}" in good("measure", path, "--out", tmp_path / "measured")
    noted = json.loads((tmp_path / "measured/provenance.json").read_text())
    assert noted["brought"].keys() == {"continuous_tokenizer"} and noted["class_names"] == ["cat", "dog", "owl"]


def test_a_librarys_list_of_blocks_may_hold_none() -> None:
    block = nn.Sequential(nn.Linear(2, 2))
    module = nn.ModuleDict({"attention": nn.ModuleList([None, block])})  # type: ignore[list-item]
    assert sharded_blocks(module) == [block] and list(blocks_in(module)) == [block]
