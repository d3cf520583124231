"""Runs that start from a trained model, and what is trained together with a MixAR."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixar import load, train
from mixar.assembly import build
from mixar.init import InitPlan, Source, begun, match_classes, plan_init, resized, start_from, tables_of, told
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe, make_recipe, to_plain, to_yaml
from mixar_core.errors import UserError
from mixar_core.storage import read_weights, write_weights
from mixar_core.tables import Table
from mixar_core.types import Grid, TokenLayout
from tests.tiny import CLASSES

SMALL, LARGE = TokenLayout("grid", (Grid(2, 2),)), TokenLayout("grid", (Grid(4, 3),))


def of(family: Path, name: str, registry: Registry, **settings: Any) -> Recipe:
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    return load_recipe(family / f"recipes/{name}.yaml", overrides, registry=registry)


def names_only(folder: Path, names: tuple[str, ...]) -> Path:
    """Say that a model was trained on these classes."""
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_names": names}))
    return folder


@pytest.fixture
def begin(family: Path, tmp_path: Path) -> Path:
    """A folder with copies of the family's models, which know their classes."""
    shutil.copytree(family / "models", tmp_path / "models")
    for name in ("prior", "mixar"):
        names_only(tmp_path / "models" / name, CLASSES)
    return tmp_path / "models"


def started(recipe: Recipe, folder: Path, registry: Registry) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a run notes of its beginning, and what it began with: a learning rate of nothing keeps the weights."""
    train(recipe, folder, registry=registry)
    noted = json.loads((folder / "provenance.json").read_text())["init"]
    return noted, read_weights(folder / "weights_raw.safetensors")


MASKGIT = {"type": "maskgit", "bits": 2, "stride": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
BARE = {"prior": None, "ti_mix": None}
STILL = {"training__learning_rate": 1e-30, "training__weight_decay": 0.0, "training__steps": 1}


# ---------------------------------------------------------------- the plan


def test_every_tensor_has_one_fate():
    target = {
        "same": torch.zeros(2), "new": torch.zeros(2), "other.shape": torch.zeros(3), "head.x": torch.zeros(1),
        "classes": torch.zeros(3, 2), "positions": torch.zeros(1, 1 + 12, 2), "odd": torch.zeros(1, 2 + 12, 2),
    }  # fmt: skip
    source = {
        "same": torch.ones(2), "gone": torch.ones(2), "other.shape": torch.ones(2), "head.x": torch.ones(1),
        "classes": torch.arange(8.0).view(4, 2), "positions": torch.ones(1, 1 + 4, 2), "odd": torch.ones(1, 1 + 4, 2),
    }  # fmt: skip
    tables = {"classes": Table(3), "positions": Table(LARGE, 1, 1), "odd": Table(LARGE, 1, 2)}
    theirs = {"classes": Table(4), "positions": Table(SMALL, 1, 1), "odd": Table(SMALL, 1, 1)}
    found = Source(source, theirs, other_parts=("head.",))
    plan = plan_init(target, tables, found, [3, None, 0])
    assert plan == InitPlan(
        taken=("same",),
        resized=("positions",),
        by_class=("classes",),
        rows=(3, None, 0),
        anew=("new", "other.shape", "head.x", "odd"),
        left=("gone", "other.shape", "head.x", "odd"),
    )
    made = begun(target, tables, found, plan)
    assert made.keys() == {"same", "positions", "classes"}
    assert made["classes"].tolist() == [[6.0, 7.0], [0.0, 0.0], [0.0, 1.0]]
    assert made["positions"].shape == (1, 13, 2) and made["positions"].allclose(torch.ones(()))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(0, 2))
def test_positions_keep_what_is_no_grid_and_a_plane_stays_one(height: int, width: int, first: int, behind: int):
    old, new = TokenLayout("grid", (Grid(height, width),)), TokenLayout("grid", (Grid(height * 2, width * 2),))
    rest = torch.arange(float(first + behind)).split([first, behind])
    plane = torch.full((height * width,), -7.0)
    table, theirs = Table(new, 0, first), Table(old, 0, first)
    source = Source({"t": torch.cat([rest[0], plane, rest[1]])}, {"t": theirs})
    target = {"t": torch.zeros(first + 4 * height * width + behind)}
    plan = plan_init(target, {"t": table}, source, [])
    made = begun(target, {"t": table}, source, plan)["t"]
    assert plan.resized == ("t",) and made.shape == target["t"].shape
    assert torch.equal(made[:first], rest[0]) and torch.equal(made[first + 4 * height * width :], rest[1])
    torch.testing.assert_close(made[first : first + 4 * height * width], torch.full((4 * height * width,), -7.0))


def test_a_slope_is_still_one_when_it_is_resized():
    old, new = TokenLayout("grid", (Grid(8, 8),)), TokenLayout("grid", (Grid(16, 8),))
    slope = torch.arange(8.0)[:, None].expand(8, 8).reshape(64, 1)
    inner = resized(slope, new, old).view(16, 8)[4:12, 0]
    torch.testing.assert_close(inner, (torch.arange(4.0, 12.0) + 0.5) / 2 - 0.5)


def test_other_layouts_are_not_resized_and_equal_ones_are_taken():
    pyramid = TokenLayout("pyramid", (Grid(1, 1), Grid(2, 2)))
    wide = TokenLayout("grid", (Grid(4, 1),))
    for ours, theirs, fate in ((pyramid, pyramid, "taken"), (pyramid, SMALL, "anew"), (wide, SMALL, "resized")):
        source = Source({"t": torch.zeros(theirs.tokens)}, {"t": Table(theirs)})
        plan = plan_init({"t": torch.zeros(ours.tokens)}, {"t": Table(ours)}, source, [])
        assert getattr(plan, fate) == ("t",)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("digits_quick", BARE),
        ("digits_quick", BARE | {"injector": {"type": "dc-sa"}, "head": {"type": "joint"}}),
        ("digits_causal", {"backbone.positions": "learned", **BARE}),
        ("digits_prior", {}),
        ("maskbit_generator_10bit", {"prior": {"type": "maskgit", "splits": 2}}),
    ],
)
def test_tables_say_which_tensors_depend_on_classes_and_tokens(name: str, settings: dict[str, Any], registry: Registry):
    """With other classes and another grid all tensors but the tables keep their shapes, and all tables do not."""
    own = {key: value for key, value in settings.items() if value is not None}
    recipe = load_recipe(name, own, registry=registry)
    one = build(recipe, registry, meta=True).trained
    changes = {"image_size": 2 * recipe.image_size, "num_classes": 7, **settings}
    other = build(load_recipe(name, changes, registry=registry), registry, meta=True).trained
    shapes = other.state_dict()
    differing = {name for name, tensor in one.state_dict().items() if tensor.shape != shapes[name].shape}
    assert differing == tables_of(one).keys() == tables_of(other).keys()


# ---------------------------------------------------------------- runs


def test_the_same_model_is_taken_whole(begin: Path, family: Path, tmp_path: Path, registry: Registry, capsys):
    recipe = of(family, "mixar", registry, init={"from": str(begin / "mixar")}, **STILL)
    noted, tensors = started(recipe, tmp_path / "run", registry)
    before = read_weights(begin / "mixar/weights.safetensors")
    assert {*noted["taken"]} == {*before} and noted["anew"] == noted["left"] == noted["resized"] == []
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    assert f"note: init: {len(before)} tensors taken from {begin / 'mixar'}\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["continuous", "discrete", "prior", "mixar"])
def test_all_that_can_be_trained_can_start_from_a_model(
    name: str, begin: Path, family: Path, tmp_path: Path, registry: Registry
):
    """A file knows no classes, so a label must mean the same; what it freezes stays."""
    file = begin / name / "weights.safetensors"
    before = read_weights(file)
    frozen = next(name for name in before if name.endswith("weight")).removesuffix(".weight")
    init = {"from": str(file), "freeze": [frozen]}
    recipe = of(family, name, registry, init=init, accept_other_classes=True, training__learning_rate=0.1)
    noted, tensors = started(recipe, tmp_path / "run", registry)
    assert {*noted["taken"]} == {*before}
    assert torch.equal(tensors[f"{frozen}.weight"], before[f"{frozen}.weight"])
    assert any(not torch.equal(tensors[name], tensor) for name, tensor in before.items())
    train(of(family, name, registry, init=init, accept_other_classes=True, training__learning_rate=0.1,
             training__steps=3), tmp_path / "run", resume=True, registry=registry)  # fmt: skip


def test_classes_go_by_name(begin: Path, family: Path, tmp_path: Path, registry: Registry, capsys):
    """Of the data's cat, dog, owl the model knows an owl and a cat."""
    model, file = names_only(begin / "mixar", ("owl", "eel", "cat")), begin / "mixar/weights.safetensors"
    noted, tensors = started(
        of(family, "mixar", registry, init={"from": str(model)}, **STILL), tmp_path / "a", registry
    )
    name, old = "backbone.class_emb.weight", read_weights(file)["backbone.class_emb.weight"]
    assert noted["by_class"] == [name] and noted["rows"] == [2, None, 0]
    assert torch.equal(tensors[name][[0, 2]], old[[2, 0]]) and not torch.equal(tensors[name][1], old[1])
    assert "1 by class, 2 of 3 classes taken, the others anew: backbone.class_emb.weight" in capsys.readouterr().err
    fresh = of(family, "mixar", registry, init={"from": str(model), "classes": "fresh"}, **STILL)
    noted, tensors = started(fresh, tmp_path / "b", registry)
    assert noted["anew"] == [name] and not any(torch.equal(*rows) for rows in zip(tensors[name], old, strict=True))


def test_classes_that_are_called_by_number_on_both_sides_match(registry: Registry):
    numbers = tuple(map(str, range(10)))
    recipe = load_recipe("digits_quick", {"init": {"from": "digits"}}, registry=registry)
    assert recipe.init is not None
    assert match_classes(recipe, recipe.init, Source({}, class_names=numbers), numbers) == [*range(10)]
    with pytest.raises(UserError, match="no names of classes in the data and digits"):
        match_classes(recipe, recipe.init, Source({}, class_names=numbers[:9]), numbers)


def test_a_priors_row_of_no_class_is_taken(begin: Path, family: Path, tmp_path: Path, registry: Registry):
    fresh = of(family, "prior", registry, init={"from": str(begin / "prior"), "classes": "fresh"}, **STILL)
    noted, tensors = started(fresh, tmp_path / "run", registry)
    old = read_weights(begin / "prior/weights.safetensors")["class_emb.weight"]
    assert noted["by_class"] == ["class_emb.weight"] and torch.equal(tensors["class_emb.weight"][3], old[3])
    assert not torch.equal(tensors["class_emb.weight"][0], old[0])


def test_with_and_without_classes(begin: Path, family: Path, tmp_path: Path, registry: Registry):
    """Of a labelled prior, one without classes takes the row of no class, and gives it to a labelled one again."""
    name, old = "class_emb.weight", read_weights(begin / "prior/weights.safetensors")["class_emb.weight"]
    init = {"from": str(begin / "prior")}
    noted, tensors = started(of(family, "prior", registry, num_classes=0, init=init, **STILL), tmp_path / "a", registry)
    assert noted["by_class"] == [name] and torch.equal(tensors[name], old[3:])
    init = {"from": str(tmp_path / "a")}
    noted, tensors = started(of(family, "prior", registry, init=init, **STILL), tmp_path / "b", registry)
    assert noted["rows"] == [None] * 3 and torch.equal(tensors[name][3], old[3])


def test_another_injector_head_and_resolution(begin: Path, family: Path, tmp_path: Path, registry: Registry, capsys):
    parts = {"discrete_tokenizer": None, "prior": None, "injector__type": "none"}
    change = {"image_size": 32, "head__width": 12, **parts, "init": {"from": str(begin / "mixar")}}
    noted, tensors = started(of(family, "mixar", registry, **change, **STILL), tmp_path / "run", registry)
    positions = ["encoder_pos_embed_learned", "decoder_pos_embed_learned", "diffusion_pos_embed_learned"]
    assert noted["resized"] == [f"backbone.{name}" for name in positions]
    assert tensors["backbone.encoder_pos_embed_learned"].shape == (1, 1 + 64, 8)
    assert noted["anew"] and all(name.startswith("head.") for name in noted["anew"])
    said = capsys.readouterr().err
    assert "3 positions, resized: backbone.encoder_pos" in said and "made anew: head." in said and "left over" in said


def test_a_part_of_another_type_is_made_anew(begin: Path, family: Path, tmp_path: Path, registry: Registry):
    head = {"type": "mse", "depth": 1, "width": 8}
    recipe = of(family, "mixar", registry, head=head, init={"from": str(begin / "mixar")}, **STILL)
    noted, _ = started(recipe, tmp_path / "run", registry)
    assert {name.split(".")[0] for name in noted["anew"]} == {"head"}
    assert {name.split(".")[0] for name in noted["taken"]} == {"backbone"}


def test_a_resumed_run_does_not_look_for_the_model(begin: Path, family: Path, tmp_path: Path, registry: Registry):
    init = {"from": str(begin / "mixar")}
    train(of(family, "mixar", registry, init=init), tmp_path / "run", registry=registry)
    shutil.rmtree(begin / "mixar")
    longer = of(family, "mixar", registry, init=init, training__steps=3)
    assert train(longer, tmp_path / "run", resume=True, registry=registry).step == 3
    assert load(tmp_path / "run", registry=registry).generate([0]).images.shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match=r"started with another recipe: init\.freeze"):
        other = of(family, "mixar", registry, init={**init, "freeze": ["head"]}, training__steps=4)
        train(other, tmp_path / "run", resume=True, registry=registry)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("mixar", {"init": {"from": "MODELS/prior"}}, "is a model of a prior, and this recipe trains mixar"),
        ("mixar", {"init": {"from": "MODELS/prior/weights.safetensors", "classes": "fresh"}}, "nothing of it has"),
        ("mixar", {"init": {"from": "MODELS/none"}}, "init.from: .*no such folder"),
        ("mixar", {"init": {"from": "MODELS/mixar/weights.safetensors"}}, "no names of classes in"),
        ("mixar", {"init": {"from": "MODELS/mixar", "freeze": ["tail"]}}, "init.freeze: tail: no parameter's name"),
        ("mixar", {"init": {"from": "MODELS/mixar", "freeze": ["backbone", "head"]}}, "leaves nothing to train"),
        (
            "mixar",
            {"init": {"from": "MODELS/mixar", "freeze": ["head"]}, "head__width": 12},
            "init.freeze: head.* made anew, and would stay as it is drawn",
        ),
        ("discrete", {"init": {"from": "MODELS/discrete"}, "discrete_tokenizer__weights": "MODELS/discrete"},
         "init.from and discrete_tokenizer.weights both say"),
        ("prior", {"init": {"from": "MODELS/prior"}, "prior": MASKGIT}, "its prior is a maskbit, this one"),
        ("prior", {"also_trained": ["prior"]}, "only where a recipe trains mixar"),
        ("mixar", {"also_trained": ["conditioner"]}, "also_trained: conditioner, and the recipe has none"),
        ("mixar", {"also_trained": ["discrete_tokenizer"]}, "train the prior, too"),
        ("mixar", {"also_trained": ["continuous_tokenizer"], "training__cache": "/cache"}, "tokens of frozen"),
        ("mixar", {"also_trained": ["head"]}, "also_trained.0: 'head' is not one of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    name: str, settings: dict[str, Any], said: str, begin: Path, family: Path, tmp_path: Path, registry: Registry
):
    placed = json.loads(json.dumps(settings).replace("MODELS", str(begin)))
    with pytest.raises(UserError, match=said) as caught:
        train(of(family, name, registry, **placed), tmp_path / "run", registry=registry)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- trained together


@pytest.mark.parametrize(
    "also_trained", [["continuous_tokenizer"], ["continuous_tokenizer", "discrete_tokenizer", "prior"], ["prior"]]
)
def test_a_joint_run_saves_loads_and_samples(
    also_trained: list[str], begin: Path, family: Path, tmp_path: Path, registry: Registry
):
    weights = {f"{key}__weights": str(begin / key.removesuffix("_tokenizer")) for key in also_trained}
    recipe = of(family, "mixar", registry, also_trained=also_trained, training__learning_rate=0.1, **weights)
    assert (make_recipe(to_plain(recipe), registry, where="") == recipe and "reconstruction" in to_yaml(recipe)) or (
        also_trained == ["prior"]
    )
    train(recipe, tmp_path / "run", registry=registry)
    tensors = read_weights(tmp_path / "run/weights_raw.safetensors")
    shutil.rmtree(begin)  # the run's folder holds what was trained
    model = load(tmp_path / "run", weights="raw", registry=registry)
    assert model.generate([0, 2]).images.shape == (2, 3, 16, 16)
    assert not {*also_trained} & model.files.keys()
    for key in also_trained:
        own = getattr(model.system, key).state_dict()
        began = read_weights(family / "models" / key.removesuffix("_tokenizer") / "weights.safetensors")
        assert all(torch.equal(tensors[f"{key}.{name}"], tensor) for name, tensor in own.items())
        assert any(not torch.equal(tensor, began[name]) for name, tensor in own.items())
    frozen = {"continuous_tokenizer", "discrete_tokenizer", "prior"} - {*also_trained}
    assert not [name for name in tensors if name.startswith(tuple(frozen))]


def test_a_part_with_weights_of_its_own_begins_with_these(begin: Path, family: Path, registry: Registry):
    """A joint model holds a prior, too; the recipe names another one."""
    recipe = of(
        family, "mixar", registry, also_trained=["prior"], prior__weights=str(begin / "prior"),
        init={"from": str(begin / "joint.safetensors"), "classes": "fresh"},
    )  # fmt: skip
    system = build(recipe, registry)
    tensors = {name: torch.full_like(tensor, 3) for name, tensor in system.trained.state_dict().items()}
    write_weights(begin / "joint.safetensors", tensors)
    facts = start_from(system, registry, CLASSES)
    own = read_weights(begin / "prior/weights.safetensors")
    assert all(torch.equal(tensor, own[name]) for name, tensor in system.prior.state_dict().items())
    assert {f"prior.{name}" for name in own} <= {*facts["left"]} and "backbone.mask_token" in facts["taken"]
    assert not [name for name in facts["anew"] if name.startswith("prior.")]


def test_notes_name_the_first_of_many():
    facts = {"from": "m", "taken": ["a"], "resized": [], "by_class": [], "rows": [], "anew": list("bcdefg"), "left": []}
    assert told(facts) == ["init: 1 tensors taken from m", "init: 6 made anew: b, c, d, e and 2 more"]
    nearly_all = told(facts | {"anew": [str(n) for n in range(11)]})
    assert nearly_all[0] == "init: 1 tensors taken from m; almost nothing of it fits: this is training anew"
