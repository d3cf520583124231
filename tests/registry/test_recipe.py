"""Recipes: extending, overriding, strictness, and that a resolved one says everything."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixar import strict_yaml
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import (
    Recipe,
    load_recipe,
    make_recipe,
    merge,
    parse_overrides,
    read_plain,
    to_plain,
    to_yaml,
)
from mixar.written import bare
from mixar_core.errors import UserError

REGISTRY = plugin_manager()
SHIPPED = sorted(REGISTRY.recipes())

widths = st.integers(1, 64).map(lambda n: n * 16)
share = st.floats(min_value=0.0, max_value=0.9)
plain_recipes = st.fixed_dictionaries(
    {
        "name": st.text(min_size=1, max_size=8),
        "trains": st.just("mixar"),
        "image_size": st.integers(1, 512),
        "num_classes": st.integers(0, 1000),
        "continuous_tokenizer": st.fixed_dictionaries(
            {"type": st.just("kl")},
            optional={"channel_multipliers": st.lists(st.integers(1, 8), min_size=1), "latent_mean": st.floats(-2, 2)},
        ),
        "head": st.fixed_dictionaries({"type": st.just("diffusion")}, optional={"depth": st.integers(1, 99)}),
    },
    optional={
        "summary": st.text(),
        "data": st.fixed_dictionaries({"type": st.just("image-folder"), "path": st.text()}),
        "injector": st.sampled_from([{"type": "none"}, {"type": "dc-mix", "projection": True}, {"type": "dc-ca"}]),
        "backbone": st.fixed_dictionaries({}, optional={"dropout": share, "width": widths}),
        "ti_mix": st.fixed_dictionaries({}, optional={"begin": share, "schedule": st.sampled_from(["linear", "step"])}),
        "training": st.fixed_dictionaries({"steps": st.integers(1, 10)}, optional={"clip": st.none() | st.just(1.5)}),
        "reconstruction": st.fixed_dictionaries({}, optional={"loss": st.sampled_from(["l1", "l2"])}),
        "callbacks": st.lists(st.sampled_from([{"type": "progress"}, {"type": "tensorboard"}]), max_size=2),
    },
)  # fmt: skip


@settings(max_examples=40)
@given(plain_recipes)
def test_a_resolved_recipe_loads_as_an_equal_one(plain: dict[str, Any]) -> None:
    recipe = make_recipe(plain, REGISTRY, where="test")
    text = to_yaml(recipe)
    again = make_recipe(strict_yaml.load(text, where="test"), REGISTRY, where="test")
    assert again == recipe
    assert to_yaml(again) == text


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid_and_says_how_it_is_run(name: str) -> None:
    recipe = load_recipe(name, registry=REGISTRY)
    assert recipe.summary and recipe.training is not None
    first = REGISTRY.find_recipe(name).read_text().splitlines()[0]
    assert first.startswith("# ") and f"train {name}" in first


def test_the_papers_recipes_differ_by_one_field_from_those_without_ti_mix() -> None:
    with_it, without = (
        load_recipe("mixar_l", registry=REGISTRY, overrides=[f"ti_mix.schedule={s}"]) for s in ("linear", "constant")
    )
    assert with_it == load_recipe("mixar_l", registry=REGISTRY)
    assert (with_it.ti_mix.lambda_at(0.5), with_it.ti_mix.lambda_at(1.0)) == (1.0, 0.0)
    assert without.ti_mix.lambda_at(1.0) == 1.0
    left, right = to_plain(with_it), to_plain(without)
    assert left.pop("ti_mix") != right.pop("ti_mix") and left == right


dictionaries = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
).filter(lambda value: isinstance(value, dict))


@given(dictionaries, dictionaries, dictionaries)
def test_merging_is_associative_and_empty_changes_nothing(a: Any, b: Any, c: Any) -> None:
    assert merge(a, {}) == a == merge({}, a)
    assert merge(merge(a, b), b) == merge(a, b)


def test_a_part_whose_type_changes_loses_the_old_ones_settings() -> None:
    base = {"head": {"type": "one", "depth": 3}}
    assert merge(base, {"head": {"depth": 4}}) == {"head": {"type": "one", "depth": 4}}
    assert merge(base, {"head": {"type": "one", "width": 4}}) == {"head": {"type": "one", "depth": 3, "width": 4}}
    assert merge(base, {"head": {"type": "two"}}) == {"head": {"type": "two"}}
    assert merge(base, {"head": {"weights": "model"}}) == {"head": {"weights": "model"}}
    assert merge(base, {"head": {"type": "one", "weights": "model"}}) == {"head": {"type": "one", "weights": "model"}}
    assert merge(base, {"head": {"weights": "a.safetensors"}})["head"]["depth"] == 3
    assert merge(base, {"head": None}) == {"head": None}


def test_overrides_are_yaml_and_later_ones_win() -> None:
    overrides = ["a.b=1e-4", "a.c=[1, x]", "d=null", "a.b=2"]
    assert bare(parse_overrides(overrides)) == {"a": {"b": 2, "c": [1, "x"]}, "d": None}
    assert bare(parse_overrides(["head.type=x", "head.width=3"])) == {"head": {"type": "x", "width": 3}}
    for bad in ("a", "=1", "a..b=1", "a=[", "extends=x"):
        with pytest.raises(UserError, match="--set"):
            parse_overrides([bad])


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_overrides_does_not_matter(order: int, family: Path) -> None:
    def overridden(name: str | Path, *overrides: str) -> Recipe:
        return load_recipe(name, registry=REGISTRY, overrides=overrides[::order])

    prior = overridden("mixar_l", "prior.steps=7", "prior.bits=3", f"prior.weights={family / 'models/prior'}").prior
    assert prior is not None and (prior.config.steps, prior.config.bits, prior.config.width) == (7, 3, 8)
    head = overridden("mixar_l", "head.width=512", "head.type=diffusion").head
    assert head is not None and (head.config.width, head.config.depth) == (512, 12)
    tokenizer = overridden("mixar_l", "continuous_tokenizer.channels=64", "continuous_tokenizer.type=kl")
    assert tokenizer.continuous_tokenizer.config.channels == 64  # type: ignore[union-attr]
    injector = overridden("mixar_l_dc_ca", "injector.projection=true", "injector.type=dc-mix").injector
    assert injector is not None and injector.config.projection


def test_naming_the_backbone_that_there_was_replaces_none_of_its_settings(tmp_path: Path, registry: Registry) -> None:
    parts = "trains: mixar\nimage_size: 16\nnum_classes: 3\ncontinuous_tokenizer: {type: kl}\nhead: {type: diffusion}\n"
    (tmp_path / "root.yaml").write_text(f"name: root\n{parts}")
    (tmp_path / "child.yaml").write_text("extends: root.yaml\nbackbone: {width: 64, heads: 4}\n")
    (tmp_path / "own.yaml").write_text("extends: child.yaml\nbackbone: {type: masked, depth: 2}\n")
    config = load_recipe(tmp_path / "own.yaml", registry=registry).backbone.config
    assert (config.width, config.heads, config.depth) == (64, 4, 2)


def test_extends_by_path_and_by_name_and_never_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: mixar_l\nsummary: mine\nhead: {depth: 2}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/child.yaml").write_text("extends: ../own.yaml\nimage_size: 128\n")
    child = load_recipe(tmp_path / "sub/child.yaml", registry=REGISTRY)
    assert (child.name, child.summary, child.image_size) == ("child", "", 128)
    assert (child.head.config.depth, child.head.config.width) == (2, 1536)  # type: ignore[union-attr]
    (tmp_path / "own.yaml").write_text("extends: sub/child.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        read_plain(tmp_path / "own.yaml", REGISTRY)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("heat.depth=1", "heat: unknown key; did you mean head?"),
        ("head.depht=3", "head.depht: unknown key; did you mean depth?"),
        ("head.depth=1.9", "head.depth: 1.9 is not a whole number"),
        ("head.type=difusion", 'head.type: unknown head "difusion"; did you mean diffusion?'),
        ("head.weights=x", "head.weights: only continuous_tokenizer"),
        ("head=3", "head: 3 is not a mapping"),
        ("head=null", "head: required where a recipe trains mixar; allowed: categorical, denoising, diffusion"),
        ("prior.type=null", "prior.type: unknown prior"),
        ("prior.weights=nowhere", 'prior.weights: unknown model "nowhere"'),
        ("prior={weights: a.safetensors, type: null}", "prior.type: "),
        ("prior={weights: ~no-such-user/x, type: maskbit}", "prior.weights: ~no-such-user/x: "),
        ("backbone.heads=7", "backbone: width 1024 is not a multiple of heads 7"),
        ("image_size='256'", "image_size: '256' is not a whole number"),
        ("image_size=null", "image_size: None is not a whole number"),
        ("trains=priors", "trains: 'priors' is not one of them; did you mean prior?"),
        ("callbacks=progress", "callbacks: 'progress' is not a list"),
        ("callbacks=[{}]", "callbacks.0.type: required"),
        ("callbacks=[{type: progres}]", "did you mean progress?"),
        ("training.steps=5", "training: steps and epochs are both set"),
        ("ti_mix.schedule=lin", "ti_mix.schedule: 'lin' is not one of them; did you mean linear?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("mixar_l", registry=REGISTRY, overrides=[override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_all_problems_are_listed() -> None:
    with pytest.raises(UserError, match=r"3 problems: .*\(1\).*zzz.*\(2\).*image_size.*\(3\).*head.depth"):
        load_recipe("mixar_l", registry=REGISTRY, overrides=["zzz=1", "image_size=1.5", "head.depth=x"])


def test_a_part_takes_type_and_settings_from_the_model_it_names(family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    assert recipe.prior is not None and recipe.prior.type == "maskbit"
    assert (recipe.prior.config.bits, recipe.prior.config.steps) == (2, 3)
    assert recipe.prior.weights == str(family / "models/prior")
    tuned = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=["prior.steps=2"])
    assert (tuned.prior.config.bits, tuned.prior.config.steps) == (2, 2)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="is a model of a prior, not of a discrete_tokenizer"):
        load_recipe(
            family / "recipes/mixar.yaml",
            registry=registry,
            overrides=[f"discrete_tokenizer.weights={family / 'models/prior'}"],
        )


def test_a_model_brings_its_settings_where_its_type_is_written_beside_it(
    family: Path, registry: Registry, tmp_path: Path
) -> None:
    shutil.copytree(family / "models/prior", tmp_path / "prior")
    mixar, named = family / "recipes/mixar.yaml", [f"prior.weights={tmp_path / 'prior'}", "prior.type=maskbit"]
    plain = load_recipe(mixar, registry=registry)
    for base in (mixar, "mixar_l"):  # the latter has settings for a prior of its own
        prior = load_recipe(base, registry=registry, overrides=named).prior
        assert prior is not None and plain.prior is not None and prior.config == plain.prior.config
    tuned = load_recipe(mixar, registry=registry, overrides=[*named, "prior.steps=2"])
    assert (tuned.prior.config.heads, tuned.prior.config.steps) == (2, 2)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"prior\.type: ground-truth is not the type of .*prior, which is maskbit"):
        load_recipe(mixar, registry=registry, overrides=[named[0], "prior.type=ground-truth"])

    # a resolved recipe says every setting itself, so it is read where the model is no more, too
    (tmp_path / "run.yaml").write_text(to_yaml(tuned))
    for _ in range(2):
        assert load_recipe(tmp_path / "run.yaml", registry=registry) == tuned
        shutil.rmtree(tmp_path / "prior", ignore_errors=True)


def test_relative_weights_become_absolute(family: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(family)
    recipe = load_recipe("recipes/mixar.yaml", registry=registry, overrides=["prior.weights=models/prior"])
    assert recipe.prior is not None and recipe.prior.weights == str(family / "models/prior")


def test_a_default_callback_is_there_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tensorboard" in [callback.type for callback in load_recipe("mixar_l", registry=REGISTRY).callbacks]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    without = [callback.type for callback in load_recipe("mixar_l", registry=REGISTRY).callbacks]
    assert "tensorboard" not in without and "progress" in without
    asked = load_recipe("mixar_l", ["callbacks=[{type: tensorboard}]"], registry=REGISTRY)
    assert [callback.type for callback in asked.callbacks] == ["tensorboard"]


def test_settings_alone_are_those_of_the_default_sampler(registry: Registry) -> None:
    recipe = load_recipe("mar_b", ["sampler.order=halton", "backbone.depth=2"], registry=registry)
    assert recipe.sampler is not None and (recipe.sampler.type, recipe.sampler.config.order) == ("cosine", "halton")
    assert recipe.backbone is not None and (recipe.backbone.type, recipe.backbone.config.depth) == ("masked", 2)
