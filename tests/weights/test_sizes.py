"""Every recipe of a published size has exactly the tensors, names and shapes, of the released file listed for it."""

from __future__ import annotations

import pytest

from mixar.plugins import Registry
from mixar_import.entries import state_dicts
from mixar_import.importers import Importer, ImporterConfig
from mixar_import.imports import fill
from tests.parity.case import read_manifest
from tests.parity.test_parity import HERE

#: importer -> list of a released file's tensors -> recipes of its size
SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "llamagen-tokenizer": {"llamagen_vq_ds16_c2i": ("llamagen_vq",)},
    "llamagen": {
        "llamagen_gpt_b": ("llamagen_b", "llamagen_b_384"),
        "llamagen_gpt_l": ("llamagen_l", "llamagen_l_384"),
        "llamagen_gpt_xl": ("llamagen_xl_384",),
        "llamagen_gpt_xxl": ("llamagen_xxl_384",),
        "llamagen_gpt_3b": ("llamagen_3b_384",),
    },
    "randar": {"randar_l_0.3b": ("randar_l",), "randar_xl_0.7b": ("randar_xl",)},
    "maskgit-vqgan-tokenizer": {"maskgit_vqgan_imagenet_f16_256": ("maskgit_vqgan",)},
    "rar": {name: (name,) for name in ("rar_b", "rar_l", "rar_xl", "rar_xxl")},
    "var-tokenizer": {"var_vae_ch160v4096z32": ("var_vae",)},
    "var": {name: (name,) for name in ("var_d16", "var_d20", "var_d24", "var_d30")},
    "open-magvit2-tokenizer": {"magvit2_imagenet_256_L": ("open_magvit2_256",)},
    "open-magvit2-ar": {f"magvit2_AR_256_{size}": (f"magvit2_ar_{size.lower()}",) for size in ("B", "L", "XL")},
    "titok-tokenizer": {f"{name}_tokenizer": (name,) for name in ("titok_l32", "titok_b64", "titok_s128")},
    "titok-generator": {
        f"{name}_generator": (f"{name}_generator",) for name in ("titok_l32", "titok_b64", "titok_s128")
    },
    "detok": {"detok_bb": ("detok_bb",)},
    "detok-mar": {"detok_mar_base": ("mar_b_detok",), "detok_mar_large": ("mar_l_detok",)},
    "flowar": {name: (name,) for name in ("flowar_s", "flowar_l", "flowar_h")},
    "acdit": {name: (name,) for name in ("acdit_xl", "acdit_h")},
    "ear": {"ear_base": ("ear_b",), "ear_large": ("ear_l",), "ear_huge": ("ear_h",)},
}
#: lists whose recipes take more than a second to build
LARGE = {
    *("llamagen_gpt_xl", "llamagen_gpt_xxl", "llamagen_gpt_3b", "randar_xl_0.7b"),
    *("rar_l", "rar_xl", "rar_xxl", "flowar_l", "flowar_h"),
}
#: beginnings of lists that test_import.py asks about
ELSEWHERE = ("kl16", "vavae", "mar_", "maskbit_")
ROWS = [
    pytest.param(kind, manifest, recipe, marks=[pytest.mark.slow] if manifest in LARGE else [], id=recipe)
    for kind, manifests in SIZES.items()
    for manifest, recipes in manifests.items()
    for recipe in recipes
]


@pytest.mark.parametrize(("kind", "manifest", "recipe"), ROWS)
def test_a_recipe_has_the_tensors_of_its_released_file(
    kind: str, manifest: str, recipe: str, registry: Registry
) -> None:
    importer = registry.part("importer", kind).component(ImporterConfig())
    assert isinstance(importer, Importer)
    found = state_dicts(read_manifest(HERE / "manifests" / f"{manifest}.txt"), importer)
    assert fill(importer, found, registry, recipe=recipe).system.recipe.name == recipe  # a misfit raises


def test_every_list_has_its_recipes() -> None:
    listed = {file.stem for file in (HERE / "manifests").glob("*.txt") if not file.stem.startswith(ELSEWHERE)}
    assert listed == {manifest for manifests in SIZES.values() for manifest in manifests}
