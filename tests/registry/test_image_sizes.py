"""Images that are not square: a family is trained, drawn, edited and measured; what knows squares only says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

import mixar
from mixar import strict_yaml
from mixar.assembly import build, open_data
from mixar.cache import make_cache, open_cache
from mixar.cost import estimate
from mixar.image_sizes import check_images, check_size
from mixar.memory import training_memory
from mixar.plugins import Registry
from mixar.recipe import load_recipe, to_yaml
from mixar.run import train
from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.types import Grid, Posterior, TokenLayout
from mixar_eval.tokenizers import choose, open_tokenizers
from tests.eval.test_references import Grey
from tests.tiny import CLASSES, plain_base, plain_recipes
from tests.toys import PoolTokenizer

SIZE = (16, 24)
GRID = Grid(4, 6)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of another size and proportion, and recipes/NAME.yaml for images of SIZE."""
    folder = tmp_path_factory.mktemp("wide")
    draw = numpy.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            place = folder / "data" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(0, 256, (20, 37, 3), dtype="uint8")).save(place / f"{index}.png")
    (folder / "recipes").mkdir()
    base = {**plain_base(folder), "image_size": list(SIZE)}
    (folder / "recipes/base.yaml").write_text(strict_yaml.dump(base))
    for name, plain in plain_recipes(folder).items():
        (folder / f"recipes/{name}.yaml").write_text(strict_yaml.dump({"extends": "base.yaml", **plain}))
    return folder


@pytest.fixture(scope="module")
def models(wide: Path, registry: Registry) -> Path:
    """The family, trained for two steps each."""
    for name in ("continuous", "discrete", "prior", "mixar"):
        train(load_recipe(wide / f"recipes/{name}.yaml", registry=registry), wide / "models" / name, registry=registry)
    return wide / "models"


def test_a_family_is_trained_drawn_edited_and_measured(models: Path, wide: Path) -> None:
    model = mixar.load(models / "mixar", device="cpu")
    system = model.system
    for tokenizer in (system.continuous_tokenizer, system.discrete_tokenizer):
        assert tokenizer is not None and tokenizer.layout == TokenLayout("grid", (GRID,))
    drawn = model.generate([0, 1, 2, 2], seed=1)
    assert drawn.images.shape == (4, 3, *SIZE) and drawn.codes is not None and drawn.codes.shape == (4, GRID.tokens)
    assert torch.equal(
        mixar.load(models / "prior", device="cpu").generate([0], seed=1).images[0], drawn_codes(model, 1)
    )
    report = mixar.evaluate(drawn, "data:validation", extractor=Grey(), recipe=wide / "recipes/mixar.yaml")
    assert (report.to_json()["samples"]["width"], report.to_json()["samples"]["height"]) == (24, 16)
    edited = model.edit(drawn.images[:1], (8, 4, 8, 4), [0], seed=0, level="latents")
    assert edited.images.shape == (1, 3, *SIZE) and edited.redrawn is not None
    touched = edited.redrawn.view(4, 6)
    assert touched[1, 2:4].all() and touched.sum() == 2  # tokens of 4 x 4 pixels: row by row
    assert torch.equal(edited.regions, edited.masks) and edited.seam.kept.item() < edited.raw_seam.kept.item()


def drawn_codes(model: mixar.Model, seed: int) -> Tensor:
    """What a MixAR's first codes look like, decoded by their own tokenizer."""
    codes, tokenizer = model.generate([0], seed=seed).codes, model.system.discrete_tokenizer
    assert tokenizer is not None and codes is not None
    return ((tokenizer.decode(codes) + 1) * 127.5).round().to(torch.uint8)[0]


CAUSAL = {"backbone": {"type": "causal", "width": 8, "depth": 1, "heads": 2}, "masking": None}


@pytest.mark.parametrize(
    ("injector", "changes", "grid"),
    [
        ("none", {"sampler.order": "halton"}, GRID),
        ("dc-mix", {"sampler.order": "subsample"}, GRID),
        ("dc-sa", {"backbone.patch_size": 2}, Grid(2, 3)),
        ("dc-ca", {**CAUSAL, "sampler.order": "raster"}, GRID),
    ],
)
def test_backbones_injectors_orders_and_patches_take_any_grid(
    models: Path, wide: Path, registry: Registry, injector: str, changes: dict[str, Any], grid: Grid
) -> None:
    over = {**changes, "injector": {"type": injector}, "ti_mix.schedule": "constant"}
    system = build(load_recipe(wide / "recipes/mixar.yaml", over, registry=registry), registry)
    assert system.model is not None and system.model.backbone.layout.grid == grid
    images = mixar.Model(system, CLASSES, torch.device("cpu")).generate([0], steps=3).images
    assert images.shape == (1, 3, *SIZE)


def test_a_cache_keeps_the_size_and_refuses_another(
    models: Path, wide: Path, registry: Registry, tmp_path: Path
) -> None:
    recipe = load_recipe(wide / "recipes/mixar.yaml", registry=registry)
    made = make_cache(recipe, tmp_path / "cache", registry, device="cpu")
    assert made is not None
    cache = open_cache(tmp_path / "cache", recipe, registry)
    assert cache.settings is not None and cache.settings.image_size == SIZE and cache.latent_shape == (2, 4, 6)
    again = load_recipe(wide / "recipes/mixar.yaml", {"training.cache": str(tmp_path / "cache")}, registry=registry)
    train(again, tmp_path / "run", registry=registry)
    changes = {"image_size": 16, "prior": None, "ti_mix.schedule": "constant"}
    square = load_recipe(wide / "recipes/mixar.yaml", changes, registry=registry)
    with pytest.raises(UserError, match=r"images of \[16, 24\] pixels, the recipe of 16"):
        open_cache(tmp_path / "cache", square, registry)


def test_cost_and_memory_are_those_of_the_pixels(wide: Path, registry: Registry) -> None:
    def of(size: object) -> tuple[float, float]:
        recipe = load_recipe(wide / "recipes/continuous.yaml", {"image_size": size}, registry=registry)
        system = build(recipe, registry, meta=True)
        total = estimate(system).training_gflop["total"]
        return float(total), float(training_memory(system)["activations"])  # type: ignore[arg-type]

    once, twice = of(16), of([16, 32])
    assert twice == pytest.approx((2 * once[0], 2 * once[1]), rel=0.01) and twice == of([32, 16])


def test_tokenizers_are_compared_at_one_size(models: Path, family: Path, wide: Path, registry: Registry) -> None:
    device = torch.device("cpu")
    entries = open_tokenizers([str(models / "mixar")], registry, device)
    recipe = entries[0].recipe
    chosen = choose("data:train", 4, seed=0, least=4, recipe=recipe, registry=registry)
    assert chosen.images.image_size == SIZE
    with pytest.raises(UserError, match=r"is of \[16, 24\] pixels and .* of 16; tokenizers of one image size"):
        open_tokenizers([str(models / "continuous"), str(family / "models/discrete")], registry, device)


def test_a_prior_of_another_proportion_is_refused(models: Path, wide: Path, registry: Registry) -> None:
    recipe = load_recipe(wide / "recipes/mixar.yaml", {"image_size": [24, 16]}, registry=registry)
    with pytest.raises(UserError, match=r"do not fit: image_size \[16, 24\] against \[24, 16\]"):
        build(recipe, registry, meta=True)


@pytest.mark.parametrize(
    ("size", "meant"),
    [(16, 16), ([16, 16], 16), ([16, 24], (16, 24)), ("[16, 24]", (16, 24))],
)
def test_a_square_is_always_one_number(family: Path, registry: Registry, size: object, meant: object) -> None:
    over = [f"image_size={size}"] if isinstance(size, str) else {"image_size": size}
    recipe = load_recipe(family / "recipes/continuous.yaml", over, registry=registry)
    assert recipe.image_size == meant
    written = strict_yaml.load(to_yaml(recipe), where="")
    assert written["image_size"] == (list(meant) if isinstance(meant, tuple) else meant)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("[16]", "has 1 items, not 2"),
        ("[16, 24, 3]", "has 3 items, not 2"),
        ("[16, 0]", r"image_size: must be > 0: \[16, 0\]"),
        ("-3", "image_size: must be > 0"),
        ("[16, x]", "'x' is not a whole number"),
        ("[16, 18]", r"image_size \[16, 18\] is not a multiple of its stride 4"),
    ],
)
def test_what_is_no_size_is_refused_in_a_line(family: Path, registry: Registry, size: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        overrides = [f"image_size={size}", "training=null"]
        build(load_recipe(family / "recipes/continuous.yaml", overrides, registry=registry), registry, meta=True)
    assert "\n" not in str(caught.value) and "image_size" in str(caught.value)


# ---------------------------------------------------------------- parts that know squares only


@pytest.mark.parametrize(("trains", "part"), [("discrete", "toy-sequence"), ("continuous", "toy-sphere")])
def test_a_tokenizer_that_knows_squares_only_is_refused(
    wide: Path, with_plugin: Callable[[str], Registry], trains: str, part: str
) -> None:
    registry = with_plugin("tests.layout_toys")
    over = {f"{trains}_tokenizer": {"type": part}}
    recipe = load_recipe(wide / f"recipes/{trains}.yaml", over, registry=registry)
    with pytest.raises(UserError, match=rf"{trains}_tokenizer \({part}.*knows square images only.*\[16, 24\]"):
        build(recipe, registry, meta=True)
    square = load_recipe(wide / f"recipes/{trains}.yaml", {**over, "image_size": 16}, registry=registry)
    assert build(square, registry, meta=True)


class Transposing(PoolTokenizer):
    """Makes high images of wide ones."""

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        return super().decode_raw(latents_BChw).transpose(2, 3)


class Side(PoolTokenizer):
    """Reckons with the side of a square, and no earlier than when it sees an image."""

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        return super().posterior(images_B3HW[..., : self.image_size**1])  # type: ignore[operator]


def test_a_tokenizer_meets_one_image_before_anything_is_trained() -> None:
    with torch.device("meta"):
        for kind, said in ((Transposing, r"makes \[24, 16\] of images of \[16, 24\]"), (Side, "square images only")):
            check_size(kind(16), 16)
            with pytest.raises(UserError, match=said):
                check_size(kind(SIZE), SIZE)  # type: ignore[arg-type]
        check_size(PoolTokenizer(SIZE), SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["patchgan", "maskbit"])
def test_discriminators_take_any_proportion(wide: Path, registry: Registry, tmp_path: Path, name: str) -> None:
    settings = {"patchgan": {"layers": 1, "channels": 4}, "maskbit": {"stages": 2, "channels": 4}}[name]
    over = {"discriminator": {"type": name, **settings}, "adversarial.start_step": 0}
    train(load_recipe(wide / "recipes/continuous.yaml", over, registry=registry), tmp_path / "run", registry=registry)
    small = load_recipe(wide / "recipes/continuous.yaml", {**over, "image_size": [4, 32]}, registry=registry)
    if name == "patchgan":
        with pytest.raises(UserError, match=r"image_size \[4, 32\] is too small for 1 layers; least: 6"):
            build(small, registry, meta=True)


@frozen
class Squares(ImageDataset):
    """Says (squares_only), or shows by a wrong shape or type, what it knows."""

    size: Any
    num_classes = 0
    class_names = ()

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8), -1

    def labels(self) -> list[int]:
        return [-1]


def test_a_data_set_that_knows_squares_only_is_refused() -> None:
    check_images(Squares(16), 16)
    with pytest.raises(UserError, match="knows square images only, and image_size is \\[16, 24\\]"):
        check_images(Squares(SIZE), SIZE)
    with pytest.raises(UserError, match=r"its images have \[16, 16\] pixels, and image_size is \[16, 24\]"):
        check_images(Squares(16), SIZE)


def test_what_says_squares_only_is_not_even_built(wide: Path, registry: Registry, monkeypatch: Any) -> None:
    recipe = load_recipe(wide / "recipes/continuous.yaml", registry=registry)
    for kind, name in (("dataset", "image-folder"), ("continuous-tokenizer", "kl")):
        monkeypatch.setattr(registry.part(kind, name).component, "squares_only", True)
    with pytest.raises(UserError, match=r"data \(image-folder\): it knows square images only"):
        open_data(recipe, registry, "train")
    with pytest.raises(UserError, match=r"continuous_tokenizer \(kl\): it knows square images only"):
        build(recipe, registry, meta=True)
