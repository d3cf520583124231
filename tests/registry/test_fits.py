"""A part by its bare name; and notes on parts that fit but are of no use, or were made for other images."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixar import strict_yaml
from mixar.assembly import build
from mixar.fits import fit_notes
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe, to_yaml
from mixar.run import train
from mixar_core.errors import UserError
from tests.tiny import plain_base, plain_recipes


def recipe_of(family: Path, registry: Registry, *overrides: str, name: str = "mixar") -> Recipe:
    return load_recipe(family / f"recipes/{name}.yaml", overrides, registry=registry)


# ---------------------------------------------------------------- a bare name is a part's type


@pytest.mark.parametrize("key", ["injector", "backbone", "head", "sampler", "optimizer", "data"])
def test_a_bare_name_means_its_type(family: Path, registry: Registry, key: str) -> None:
    name = {"injector": "none", "backbone": "causal", "head": "mse", "sampler": "cosine", "optimizer": "muon"}.get(key)
    if name is None:  # settings that are there stay, as with `data.type`
        assert recipe_of(family, registry, "data=image-folder") == recipe_of(family, registry)
        return
    bare = recipe_of(family, registry, f"{key}={name}", "masking=null")
    assert bare == recipe_of(family, registry, f"{key}.type={name}", "masking=null")
    assert load_recipe(family / "recipes/mixar.yaml", {key: name, "masking": None}, registry=registry) == bare


def test_settings_beside_a_bare_name_stay_in_any_order(family: Path, registry: Registry) -> None:
    one = recipe_of(family, registry, "head=mse", "head.depth=5")
    assert one == recipe_of(family, registry, "head.depth=5", "head=mse") and one.head is not None
    assert one.head.type == "mse" and one.head.config.depth == 5
    same = recipe_of(family, registry, "head=diffusion")  # the type that it has: its settings stay
    assert same == recipe_of(family, registry)


def test_files_too_and_lists_of_callbacks(family: Path, registry: Registry, tmp_path: Path) -> None:
    plain = {**plain_base(family), **plain_recipes(family)["mixar"], "injector": "none", "callbacks": ["progress"]}
    (tmp_path / "bare.yaml").write_text(strict_yaml.dump(plain))
    recipe = load_recipe(tmp_path / "bare.yaml", registry=registry)
    assert recipe.injector is not None and recipe.injector.type == "none"
    assert [choice.type for choice in recipe.callbacks] == ["progress"]
    (tmp_path / "child.yaml").write_text("extends: bare.yaml\ninjector: dc-sa\n")
    child = load_recipe(tmp_path / "child.yaml", registry=registry)
    assert child.injector is not None and child.injector.type == "dc-sa"
    (tmp_path / "written.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "written.yaml", {"name": recipe.name}, registry=registry) == recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("injector=nune", "injector.type: unknown injector .*nune.*did you mean none"),
        ("injector=3", "injector: 3 is not a mapping with a type, nor a type's name"),
        ("injector=[none]", "injector: .* is not a mapping with a type, nor a type's name"),
    ],
)
def test_a_name_that_there_is_not_is_refused(family: Path, registry: Registry, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe_of(family, registry, override)


# ---------------------------------------------------------------- a plain MAR


def test_codes_that_nobody_takes_are_told_with_what_leaves_them_out(
    family: Path, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe_of(family, registry, "injector=none"), tmp_path / "run", registry=registry)
    said = capsys.readouterr().err
    note = "takes no codes, and so these are not used: prior, discrete_tokenizer ("
    assert f"note: injector (none) {note}--set prior=null --set discrete_tokenizer=null)" in said
    overrides = said.partition(note)[2].partition(")")[0].replace("--set ", "").split()
    plain = recipe_of(family, registry, "injector=none", *overrides)
    assert plain.prior is None and plain.discrete_tokenizer is None
    train(plain, tmp_path / "plain", registry=registry)
    assert "takes no codes" not in capsys.readouterr().err
    assert "takes no codes" not in " ".join(fit_notes(recipe_of(family, registry), registry, needs_codes=True))


def test_what_nobody_takes_need_not_be_trained(family: Path, registry: Registry, tmp_path: Path) -> None:
    fresh = ("prior={type: maskbit, bits: 2, stride: 4, splits: 1, width: 8, depth: 1, heads: 2}", "prior.weights=null")
    with pytest.raises(UserError, match=r"prior\.weights: required"):
        train(recipe_of(family, registry, *fresh), tmp_path / "needs", registry=registry)
    train(recipe_of(family, registry, *fresh, "injector=none"), tmp_path / "run", registry=registry)


# ---------------------------------------------------------------- sizes


def test_tokenizers_that_saw_other_images_are_told(family: Path, registry: Registry) -> None:
    without = ("prior=null", "ti_mix.schedule=constant", "image_size=[32, 16]")
    notes = fit_notes(recipe_of(family, registry, *without), registry, needs_codes=True)
    assert len(notes) == 2 and all("was trained on images of 16 pixels, and sees [32, 16] here" in n for n in notes)
    assert fit_notes(recipe_of(family, registry), registry, needs_codes=True) == []
    assert fit_notes(recipe_of(family, registry, "image_size=32", name="discrete"), registry, needs_codes=False) == []


@pytest.mark.parametrize(
    ("levels", "patch", "fitting"),
    [("[1, 1]", 1, 2), ("[1, 1]", 4, 2), ("[1, 1, 1]", 2, 1), ("[1, 1, 1, 1]", 1, None)],
)
def test_a_misfit_says_which_patch_size_fits(
    family: Path, registry: Registry, levels: str, patch: int, fitting: int | None
) -> None:
    """Codes stand on 4 x 4; latents on 8 x 8, 4 x 4 or 2 x 2."""
    kl = "continuous_tokenizer={type: kl, latent_channels: 2, channels: 4, blocks: 1, norm: none, encoder_attention: []"
    settings = (f"{kl}, channel_multipliers: {levels}, mid_attention: false}}", f"backbone.patch_size={patch}")
    with pytest.raises(UserError, match=r"do not fit: .* against codes on grid 4x4") as caught:
        build(recipe_of(family, registry, *settings), registry, meta=True)
    hint = f"; backbone.patch_size={fitting} makes them fit"
    assert str(caught.value).endswith(hint) if fitting else "patch_size=" not in str(caught.value)
    if fitting:
        build(recipe_of(family, registry, settings[0], f"backbone.patch_size={fitting}"), registry, meta=True)
