"""Names that several packages use, in recipes; and models that say which package their parts came from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mixar
from mixar import strict_yaml
from mixar.cache import make_cache, open_cache
from mixar.folder import read_provenance
from mixar.origin import origins
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import PART_KEYS, Recipe, load_recipe, to_plain, to_yaml
from mixar_core.errors import UserError
from tests.registry.conftest import Install, folders_hook

#: the parts that a small family uses, of another package
PARTS = """
    from mixar import Part, hookimpl
    from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
    from mixar_plugins.callbacks.progress import ProgressBar, ProgressConfig
    from mixar_plugins.heads.mse import MseHead, MseHeadConfig
    from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
    from mixar_plugins.tokenizers.maskbit import LFQConfig, LFQTokenizer

    MIXAR_INTERFACE = 2

    class Theirs(LFQTokenizer):
        pass

    @hookimpl
    def mixar_parts():
        return [
            Part("discrete-tokenizer", "codes", Theirs, LFQConfig),
            Part("head", "diffusion", MseHead, MseHeadConfig),
            Part("backbone", "masked", MaskedBackbone, MaskedConfig),
            Part("callback", "progress", ProgressBar, ProgressConfig),
            Part("sampler", "cosine", CosineSampler, CosineConfig),
        ]
"""


def written(family: Path, tmp_path: Path) -> Recipe:
    """The recipe of a discrete tokenizer whose type is that of a plugin; its run's folder with no weights."""
    plain = strict_yaml.load((family / "recipes/discrete.yaml").read_text(), where="")
    tokenizer = {**plain["discrete_tokenizer"], "type": "extra:codes"}
    plain |= {"extends": str(family / "recipes/base.yaml"), "discrete_tokenizer": tokenizer, "training": {"steps": 1}}
    (tmp_path / "own.yaml").write_text(strict_yaml.dump(plain))
    registry, run = plugin_manager(), tmp_path / "run"
    recipe = load_recipe(tmp_path / "own.yaml", registry=registry)
    run.mkdir()
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    (run / "provenance.json").write_text(json.dumps({"parts": origins(recipe, PART_KEYS, registry)}))
    return recipe


def installed(install: Install, *names: str) -> None:
    for name in names:
        install(f"mixar-{name}", name, PARTS)


def uninstall(tmp_path: Path, name: str) -> None:
    shutil.rmtree(tmp_path / f"mixar_{name}-1.0.dist-info")


def test_a_resolved_recipe_qualifies_a_name_only_where_it_must(install: Install) -> None:
    installed(install, "extra")
    alone = plugin_manager()
    for name in ("codes", "extra:codes"):
        recipe = load_recipe("mixar_l", [f"discrete_tokenizer.type={name}"], registry=alone)
        assert recipe.discrete_tokenizer is not None and recipe.discrete_tokenizer.type == "codes"
    installed(install, "dup")
    both = plugin_manager()
    with pytest.raises(UserError, match=r'discrete_tokenizer\.type: discrete-tokenizer "codes": more than one package'):
        load_recipe("mixar_l", ["discrete_tokenizer.type=codes"], registry=both)
    changed = {"discrete_tokenizer.type": "dup:codes", "discrete_tokenizer.bits": 3}
    recipe = load_recipe("mixar_l", changed, registry=both)
    assert strict_yaml.load(to_yaml(recipe), where="")["discrete_tokenizer"]["type"] == "dup:codes"
    with pytest.raises(UserError, match="more than one package"):
        load_recipe("mixar_l", ["head.type=diffusion"], registry=both)


def test_silence_and_what_is_shipped_mean_what_they_meant(install: Install, family: Path) -> None:
    before = [
        load_recipe(name, registry=plugin_manager()) for name in ("mixar_l", "digits", family / "recipes/mixar.yaml")
    ]
    installed(install, "extra")
    registry = plugin_manager()
    for name, recipe in zip(("mixar_l", "digits"), before, strict=False):
        again = json.loads(json.dumps(to_plain(load_recipe(name, registry=registry))))
        assert again["head"]["type"] == "builtin:diffusion" and again["backbone"]["type"] == "builtin:masked"
        assert "builtin:progress" in [callback["type"] for callback in again["callbacks"]]
        assert json.loads(json.dumps(again).replace("builtin:", "")) == json.loads(json.dumps(to_plain(recipe)))
    preset = load_recipe("digits", {"preset": "halton"}, registry=registry)
    assert preset.sampler is not None and preset.sampler.type == "builtin:cosine"
    assert preset.sampler.config.order == "halton"
    with pytest.raises(UserError, match=r'head\.type: head "diffusion": more than one package offers it'):
        load_recipe(family / "recipes/mixar.yaml", registry=registry)
    own = load_recipe(family / "recipes/mixar.yaml", ["head.type=builtin:diffusion"], registry=registry)
    assert own.head is not None and before[2].head is not None and own.head.config == before[2].head.config


def test_a_model_says_where_its_parts_came_from(install: Install, family: Path, tmp_path: Path) -> None:
    installed(install, "extra")
    run = tmp_path / "trained"
    mixar.train(written(family, tmp_path), run, callbacks=[])
    assert read_provenance(run)["parts"] == read_provenance(tmp_path / "run")["parts"]
    parts = read_provenance(run)["parts"]
    noted = {"name": "codes", "plugin": "extra", "distribution": "mixar-extra", "version": "1.0"}
    assert parts["discrete_tokenizer"] == noted
    assert parts["optimizer"]["distribution"] == "mixar" and parts["data"]["name"] == "image-folder"
    assert strict_yaml.load((run / "recipe.yaml").read_text(), where="")["discrete_tokenizer"]["type"] == "codes"

    installed(install, "dup")  # another package of the same name comes later
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.discrete_tokenizer is not None and recipe.discrete_tokenizer.type == "extra:codes"
    assert mixar.train(recipe, run, resume=True, callbacks=[]).step == 1
    weights = [f"discrete_tokenizer.weights={run}", "injector.type=dc-sa", "prior=null", "image_size=16"]
    mixed = load_recipe("mixar_l", weights)
    assert mixed.discrete_tokenizer is not None and mixed.discrete_tokenizer.type == "extra:codes"

    uninstall(tmp_path, "extra")  # and is never taken for the one that was there
    with pytest.raises(UserError) as refused:
        load_recipe(run / "recipe.yaml")
    told = (
        'discrete_tokenizer.type: unknown discrete-tokenizer "extra:codes"; did you mean dup:codes? allowed: dup:codes'
    )
    assert told in str(refused.value) or told.replace("did you mean dup:codes? ", "") in str(refused.value)
    assert str(refused.value).endswith(
        "the model was made with that of the package mixar-extra, version 1.0: install it"
    )
    uninstall(tmp_path, "dup")
    with pytest.raises(
        UserError, match=r'unknown discrete-tokenizer "codes"; .*mixar-extra, version 1\.0: install it$'
    ):
        load_recipe(run / "recipe.yaml")
    with pytest.raises(UserError, match=r"mixar-extra, version 1\.0: install it"):
        load_recipe("mixar_l", weights)
    other = load_recipe(run / "recipe.yaml", ["discrete_tokenizer.type=lfq"])  # what replaces it is not the model's
    assert other.discrete_tokenizer is not None and other.discrete_tokenizer.type == "lfq"
    with pytest.raises(UserError) as mistyped:
        load_recipe(run / "recipe.yaml", ["discrete_tokenizer.type=lfg"])
    assert "install" not in str(mistyped.value)


def test_another_version_will_do_and_a_broken_or_left_out_one_is_named(
    install: Install, family: Path, tmp_path: Path
) -> None:
    installed(install, "extra")
    run = tmp_path / "run"
    written(family, tmp_path)
    info = tmp_path / "mixar_extra-1.0.dist-info"
    info.rename(tmp_path / "mixar_extra-2.0.dist-info")
    metadata = tmp_path / "mixar_extra-2.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 2.0"))
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.discrete_tokenizer is not None and recipe.discrete_tokenizer.type == "codes"
    with pytest.raises(UserError) as refused:
        mixar.load(run, without_plugins=["extra"])
    assert str(refused.value).endswith("(plugin extra of mixar-extra 2.0 is left out by without_plugins)")
    entries = tmp_path / "mixar_extra-2.0.dist-info/entry_points.txt"
    entries.write_text("[mixar]\nextra = there_is_no_such_module\n")
    with pytest.raises(UserError) as refused:
        load_recipe(run / "recipe.yaml")
    assert str(refused.value).endswith(
        "(plugin extra of mixar-extra 2.0 was not loaded: ModuleNotFoundError: No module named "
        "'there_is_no_such_module'; install what mixar-extra requires)"
    )


def test_a_noted_origin_of_another_type_says_nothing(install: Install, family: Path, tmp_path: Path) -> None:
    installed(install, "extra")
    run = tmp_path / "run"
    written(family, tmp_path)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("type: codes", "type: lfq"))  # edited by a person
    edited = load_recipe(recipe)
    assert edited.discrete_tokenizer is not None and edited.discrete_tokenizer.type == "lfq"
    for parts in (None, [], {"discrete_tokenizer": "extra"}, {"discrete_tokenizer": {"name": 1}}):
        (run / "provenance.json").write_text(json.dumps({"parts": parts}))
        assert load_recipe(recipe) == edited


def test_plugins_are_left_out_in_python(install: Install, family: Path) -> None:
    installed(install, "extra")
    own = family / "recipes/mixar.yaml"
    recipe = mixar.load_recipe(own, without_plugins=["extra"])
    assert recipe.head is not None and recipe.head.type == "diffusion"
    with pytest.raises(UserError, match='backbone "masked": more than one package offers it'):
        mixar.build(recipe, meta=True)
    assert mixar.build(recipe, meta=True, without_plugins=["extra"]).model is not None
    assert mixar.load(family / "models/mixar", without_plugins=["extra"]).system.model is not None
    with pytest.raises(UserError, match=r'^without_plugins: unknown plugin "extr"; did you mean extra\?'):
        mixar.load("digits", without_plugins=["extr"])
    with pytest.raises(UserError, match='without_plugins "extra": not a list of names'):
        mixar.load("digits", without_plugins="extra")
    with pytest.raises(UserError, match="without_plugins: a registry is given, too"):
        mixar.load_recipe("digits", registry=plugin_manager(), without_plugins=["extra"])


def test_a_cache_knows_its_tokenizer_whatever_else_is_installed(install: Install, family: Path, tmp_path: Path) -> None:
    installed(install, "extra")
    plain = strict_yaml.load((family / "recipes/prior.yaml").read_text(), where="")
    tokenizer = strict_yaml.load((family / "recipes/discrete.yaml").read_text(), where="")["discrete_tokenizer"]
    tokenizer |= {"weights": str(family / "models/discrete/weights.safetensors")}

    def of(kind: str) -> tuple[Recipe, Registry]:
        named = {"discrete_tokenizer": {**tokenizer, "type": kind}, "extends": str(family / "recipes/base.yaml")}
        (tmp_path / "own.yaml").write_text(strict_yaml.dump(plain | named))
        registry = plugin_manager()
        return load_recipe(tmp_path / "own.yaml", registry=registry), registry

    cache = tmp_path / "cache"
    recipe, registry = of("codes")
    make_cache(recipe, cache, registry)
    assert open_cache(cache, recipe, registry)
    installed(install, "dup")
    assert open_cache(cache, *of("extra:codes"))
    with pytest.raises(UserError, match="another discrete tokenizer: package was mixar-extra, is mixar-dup"):
        open_cache(cache, *of("dup:codes"))
    with pytest.raises(UserError, match="another discrete tokenizer: type was codes, is lfq"):
        open_cache(cache, *of("lfq"))
    index = json.loads((cache / "index.json").read_text())
    del index["settings"]["tokenizers"]["discrete"]["package"]  # as caches were before
    (cache / "index.json").write_text(json.dumps(index))
    assert open_cache(cache, *of("extra:codes"))


def test_a_library_that_a_part_misses_is_told_with_its_package(install: Install, family: Path) -> None:
    lazy = PARTS.replace(
        "        pass\n", "        def __init__(self, *given, **named):\n            import no_such_library\n"
    )
    install("mixar-lazy", "lazy", lazy)
    recipe = load_recipe(family / "recipes/discrete.yaml", {"discrete_tokenizer": {"type": "codes"}})
    with pytest.raises(UserError) as refused:
        mixar.build(recipe, meta=True)
    said = "No module named 'no_such_library'; install what mixar-lazy requires"
    assert str(refused.value) == f"recipe discrete: discrete_tokenizer (codes): {said}"


def test_what_a_constructor_raises_names_the_part_and_its_package(install: Install, family: Path) -> None:
    broken = PARTS.replace(
        "        pass\n", "        def __init__(self, *given, **named):\n            raise KeyError('licence')\n"
    )
    install("mixar-broken", "broken", broken)
    recipe = load_recipe(family / "recipes/discrete.yaml", {"discrete_tokenizer": {"type": "codes"}})
    with pytest.raises(KeyError, match="licence") as raised:
        mixar.build(recipe, meta=True)
    assert raised.value.__notes__ == ["(while discrete_tokenizer (codes) was built, of the package mixar-broken)"]


def test_what_a_package_ships_means_its_own_recipes_and_models(install: Install, tmp_path: Path) -> None:
    (tmp_path / "theirs/models/digits_lfq").mkdir(parents=True)
    for name in ("digits.yaml", "models/digits_lfq/recipe.yaml"):
        (tmp_path / "theirs" / name).write_text("summary: theirs\n")
    install("mixar-theirs", "theirs", folders_hook(tmp_path / "theirs"))
    registry = plugin_manager()
    quick = load_recipe("digits_quick", registry=registry)  # extends digits, whose codes are of digits_lfq
    assert quick.discrete_tokenizer is not None and quick.discrete_tokenizer.weights == "zoo:digits_lfq"
    assert mixar.build(quick, registry, meta=True).discrete_tokenizer is not None
    own = load_recipe("digits_quick", ["discrete_tokenizer.weights=zoo:digits_lfq"], registry=registry)
    assert own == quick
    with pytest.raises(UserError, match=r'model "digits_lfq" is there more than once; give theirs:digits_lfq'):
        load_recipe("digits_quick", ["discrete_tokenizer.weights=digits_lfq"], registry=registry)
    (tmp_path / "own.yaml").write_text("extends: digits\n")
    with pytest.raises(UserError, match=r'recipe "digits" is there more than once; give theirs:digits'):
        load_recipe(tmp_path / "own.yaml", registry=registry)
