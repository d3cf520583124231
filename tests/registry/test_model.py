"""The Python API: load, generate, train; reproducible, and clear where it is misused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import mixar
from tests.tiny import CLASSES


@pytest.fixture(scope="module")
def model(family: Path) -> mixar.Model:
    return mixar.load(family / "models/mixar", device="cpu")


def test_a_model_says_what_it_is(model: mixar.Model) -> None:
    assert repr(model) == f"Model({model.recipe.name}: {model.recipe.summary}; on cpu)"


def test_generation_has_the_shapes_it_says(model: mixar.Model) -> None:
    seen: list[tuple[int, int]] = []
    drawn = model.generate(["owl", 0, -1], seed=1, keep_steps=True, progress=lambda done, of: seen.append((done, of)))
    assert drawn.images.shape == (3, 3, 16, 16) and drawn.images.dtype == torch.uint8
    assert drawn.labels == (2, 0, -1) and drawn.names == ("owl", "cat", "no class")
    assert drawn.codes is not None and drawn.codes.shape == (3, 16)
    assert drawn.steps is not None and drawn.steps.shape == (3, 3, 3, 16, 16)
    assert torch.equal(drawn.steps[-1], drawn.images)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [image.size for image in drawn.pil()] == [(16, 16)] * 3
    assert drawn.grid().width > 3 * 16
    assert model.class_names == CLASSES and not drawn.images.is_inference()


def test_a_seed_gives_the_same_images_and_another_seed_others(model: mixar.Model) -> None:
    one, same, other = (model.generate([0, 1], seed=seed).images for seed in (5, 5, 6))
    assert torch.equal(one, same) and not torch.equal(one, other)
    batches = [model.generate([0, 1, 2], seed=5, batch_size=2).images for _ in range(2)]
    assert torch.equal(*batches) and torch.equal(batches[0][:2], one)


def test_settings_reach_the_sampler(model: mixar.Model) -> None:
    default = model.generate([0, 1], seed=5).images
    for changed in (
        model.generate([0, 1], seed=5, steps=2),
        model.generate([0, 1], seed=5, cfg=4.0),
        model.generate([0, 1], seed=5, temperature=0.1),
    ):
        assert not torch.equal(changed.images, default)
    with pytest.raises(mixar.UserError, match="steps"):
        model.generate([0], steps=0)


def test_bf16_draws_other_images_of_the_same_kind(family: Path, model: mixar.Model) -> None:
    half = mixar.load(family / "models/mixar", device="cpu", precision="bf16")
    one, other = model.generate([0, 1], seed=5), half.generate([0, 1], seed=5, keep_steps=True)
    assert not torch.equal(one.images, other.images) and other.steps is not None
    assert torch.equal(other.steps[-1], other.images) and torch.equal(
        half.generate([0, 1], seed=5).images, other.images
    )
    codes = model.sample_codes([0, 1], seed=5)  # decoders are not touched
    assert torch.equal(half.decode_codes(codes), model.decode_codes(codes))


def test_codes_can_be_drawn_given_and_decoded(model: mixar.Model) -> None:
    drawn = model.generate([0, 1], seed=3)
    codes = model.sample_codes([0, 1], seed=3)
    assert drawn.codes is not None and torch.equal(drawn.codes, codes)
    given = model.generate([0, 1], seed=3, codes=codes)
    assert given.codes is not None and torch.equal(given.codes, codes)
    assert model.decode_codes(codes).shape == (2, 3, 16, 16)
    for wrong, message in ((codes[:1], r"\(2, 16\)"), (codes + 4, "0 to 3"), (codes.float(), "whole numbers")):
        with pytest.raises(mixar.UserError, match=message):
            model.generate([0, 1], codes=wrong)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, "unknown label 3; allowed: 0 to 2"),
        (-2, "unknown label -2"),
        ("catt", "did you mean cat?"),
        ([], "no labels"),
    ],
)
def test_a_wrong_label_is_answered_with_choices(model: mixar.Model, labels: object, message: str) -> None:
    with pytest.raises(mixar.UserError, match=message):
        model.generate(labels)  # type: ignore[arg-type]


def test_a_prior_folder_generates_what_its_codes_decode_to(family: Path) -> None:
    prior = mixar.load(family / "models/prior")
    drawn = prior.generate(["dog", "cat"], seed=2)
    assert drawn.codes is not None and torch.equal(drawn.images, prior.decode_codes(drawn.codes))
    assert torch.equal(drawn.codes, prior.sample_codes(["dog", "cat"], seed=2))


def test_a_tokenizer_folder_loads_and_says_that_it_generates_nothing(family: Path) -> None:
    with pytest.raises(mixar.UserError, match="has no prior"):
        mixar.load(family / "models/discrete").generate([0])


def test_class_names_come_from_the_data_where_provenance_has_none(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "models/mixar", tmp_path / "m")
    (tmp_path / "m/provenance.json").unlink()
    assert mixar.load(tmp_path / "m").class_names == CLASSES
    recipe = tmp_path / "m/recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(family / "data"), "/nowhere"))
    loaded = mixar.load(tmp_path / "m")
    assert loaded.class_names == () and loaded.generate(1).names == ("1",)


def test_a_ground_truth_prior_draws_from_the_data(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "models/mixar", tmp_path / "m")
    plain = mixar.load_recipe(
        family / "recipes/mixar.yaml", {"prior": {"type": "ground-truth"}, "prior.type": "ground-truth"}
    )
    from mixar.recipe import to_yaml

    (tmp_path / "m/recipe.yaml").write_text(to_yaml(plain))
    assert mixar.load(tmp_path / "m").generate([0, 2], seed=1).images.shape == (2, 3, 16, 16)


def test_three_lines_train_and_sample(family: Path, tmp_path: Path) -> None:
    recipe = mixar.load_recipe(family / "recipes/mixar.yaml", {"training.steps": 3, "ti_mix.schedule": "linear"})
    result = mixar.train(recipe, tmp_path / "run", device="cpu")
    assert result.step == result.steps == 3
    for weights in ("ema", "raw"):
        drawn = mixar.load(tmp_path / "run", weights=weights).generate("dog")  # type: ignore[arg-type]
        assert drawn.names == ("dog",)
    assert mixar.load_recipe(tmp_path / "run/recipe.yaml") == recipe
    with pytest.raises(mixar.UserError, match="not an empty folder"):
        mixar.train(recipe, tmp_path / "run")
    other = mixar.load_recipe(family / "recipes/mixar.yaml", {"training.steps": 4, "head.depth": 2})
    with pytest.raises(mixar.UserError, match=r"head\.depth was 1, is 2"):
        mixar.train(other, tmp_path / "run", resume=True)
    longer = mixar.load_recipe(family / "recipes/mixar.yaml", {"training.steps": 4, "ti_mix.schedule": "linear"})
    with pytest.raises(mixar.UserError, match="steps was 3, is 4"):  # lambda would jump
        mixar.train(longer, tmp_path / "run", resume=True)
    assert mixar.train(recipe, tmp_path / "run", resume=True).step == 3


@pytest.mark.parametrize("name", ["continuous", "discrete", "prior"])
def test_every_kind_of_part_is_trained_from_its_recipe(family: Path, tmp_path: Path, name: str) -> None:
    recipe = mixar.load_recipe(family / f"recipes/{name}.yaml")
    assert mixar.train(recipe, tmp_path / "run", device="cpu").step == 2
    system = mixar.load(tmp_path / "run").system
    assert all(bool(torch.isfinite(parameter).all()) for parameter in system.trained.parameters())


def test_training_around_untrained_parts_is_refused(family: Path, tmp_path: Path) -> None:
    recipe = mixar.load_recipe("mar_b", {"data.path": str(family / "data"), "num_classes": 3})
    with pytest.raises(mixar.UserError, match=r"continuous_tokenizer\.weights: required"):
        mixar.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_build_gives_modules(family: Path) -> None:
    system = mixar.build(mixar.load_recipe(family / "recipes/mixar.yaml"))
    assert system.model is not None and system.parameters > 0
