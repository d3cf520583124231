"""A family of recipes from what is known of a folder: it fits whatever the folder, and appears whole."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import torch

from mixar import family as families
from mixar.assembly import build
from mixar.facts import DataFacts
from mixar.family import TRAINED, Family, next_commands, plan_family, write_family
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.distributed import StopSignals
from mixar_core.errors import UserError
from mixar_core.types import ImageSize


def facts_of(
    train: Sequence[int], *, names: Sequence[str] = (), validation: bool = True, image_size: ImageSize = 32
) -> DataFacts:
    """Facts of a folder with so many training images a class."""
    counts = {"train": tuple(train)} | ({"validation": tuple(-(-n // 10) for n in train)} if validation else {})
    empty: dict[str, tuple[str, ...]] = {}
    return DataFacts(
        data={"type": "image-folder", "path": "/no such/folder: # of mine", "validation": 0.1},
        image_size=image_size,
        class_names=tuple(names),
        counts=counts,
        sizes={(64, 48): sum(train)},
        modes={"RGB": sum(train)},
        formats={"PNG": sum(train)},
        turned=0,
        transparent=0,
        animated=0,
        enlarged=0,
        left_out=empty,
        unreadable={f"{n}.png": "torn" for n in range(120)},
        duplicates=None,
        leaks=None,
        notes=(),
    )


@pytest.fixture(autouse=True)
def memory_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting what a recipe needs takes a second."""
    monkeypatch.setattr(families, "device_memory", lambda device: None)


def planned(facts: DataFacts, registry: Registry, image_size: ImageSize | None = None) -> Family:
    return plan_family(facts, image_size=image_size, device="cpu", registry=registry, measure=False)


@pytest.mark.parametrize(
    ("facts", "image_size"),
    [
        (facts_of([5], validation=False), None),
        (facts_of([150, 150], names=["a: b", "# no comment"], image_size=48), None),
        (facts_of([300], names=["cat"], image_size=64), None),
        (facts_of([100] * 1000, names=[f"{n}" for n in range(1000)], image_size=256), None),
        (facts_of([40, 40], names=["cat", "dog"]), (48, 96)),
        (facts_of([40, 40], names=["cat", "dog"], image_size=16), None),
    ],
    ids=["five-unlabelled", "few", "one-class", "many", "wide", "tiny"],
)
def test_every_recipe_loads_and_fits(
    facts: DataFacts, image_size: ImageSize | None, registry: Registry, tmp_path: Path
) -> None:
    family = planned(facts, registry, image_size)
    folder = write_family(family, tmp_path / "own")
    assert {path.stem for path in folder.iterdir()} == {"base", "mar", *TRAINED} == {*family.files}
    tokenizers = [load_recipe(folder / f"{name}.yaml", registry=registry) for name in TRAINED[:2]]
    continuous, discrete = (build(recipe, registry, meta=True) for recipe in tokenizers)
    assert continuous.continuous_tokenizer is not None and discrete.discrete_tokenizer is not None
    assert max(discrete.discrete_tokenizer.layout.shape.height, discrete.discrete_tokenizer.layout.shape.width) <= 8
    for recipe in tokenizers:
        assert recipe.data is not None and recipe.data.config.path == "/no such/folder: # of mine"
        assert recipe.num_classes == facts.num_classes and recipe.training is not None
        assert recipe.training.batch_size <= facts.images["train"]
        assert recipe.training.max_unreadable >= len(facts.unreadable)
        assert (recipe.training.evaluate_every > 0) == ("validation" in facts.images)
    with pytest.raises(UserError, match="runs/discrete: no such folder"):  # beside the file, wherever one is
        load_recipe(folder / "prior.yaml", registry=registry)
    for name, text in family.files.items():
        assert max(map(len, text.splitlines())) <= 120, name
        assert name == "mar" or "    # " in text  # why a number is what it is


def test_sizes_and_steps_follow_the_images_and_the_machine(registry: Registry) -> None:
    few, many = (facts_of([n, n], names=["a", "b"], image_size=256) for n in (150, 5000))
    small, large = planned(few, registry), planned(many, registry)
    assert small.files["base"].count("image_size: 64 ") == 1 and "the images allow 256" in small.files["base"]
    assert all(large.steps[name] > 5 * small.steps[name] for name in TRAINED)
    assert "  width: 192\n" in small.files["mixar"] and "  width: 256\n" in large.files["mixar"]
    gpu = families._numbers(families.Grid(256, 256), 50_000, gpu=True)
    assert gpu["grid"] == "16 x 16" and gpu["width"] == 512


def test_what_is_wrong_with_the_images_is_said(registry: Registry) -> None:
    def told(facts: DataFacts) -> str:
        return "\n".join(families._notes(facts, facts.images["train"]))

    few = told(facts_of([4], validation=False))
    assert "4 training images are few" in few and "init:" in few and "no validation images" in few
    assert "there is one class" in told(facts_of([200], names=["cat"]))
    assert "5 images of cat, 500" in told(facts_of([500, 5], names=["dog", "cat"]))
    assert told(attrs.evolve(facts_of([200, 200], names=["a", "b"]), unreadable={})) == ""
    with pytest.raises(UserError, match="1 training images; needed: at least 2"):
        planned(facts_of([1]), registry)
    with pytest.raises(UserError, match="image_size 50: not a multiple of 8; 48 is one"):
        planned(facts_of([40]), registry, 50)


def test_what_spoils_a_validation_is_said() -> None:
    facts = facts_of([200, 200], names=["cat", "dog"])
    facts = attrs.evolve(facts, counts={"train": (200, 200), "validation": (40, 0)}, leaks=(("v.png", "t.png"),))
    said = "\n".join(families._notes(attrs.evolve(facts, sizes={(96, 48): 1}), 400))
    assert "1 of 2 classes have no validation image: dog" in said
    assert "1 validation images look like copies" in said and "training sees 50% of an image's area" in said


def test_time_is_measured_and_kept(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "seconds_a_step", lambda recipe, registry, device: 2.0)
    facts = facts_of([150, 150], names=["a", "b"])
    whole = plan_family(facts, device="cpu", registry=registry)
    assert whole.seconds == {name: 2.0 * whole.steps[name] for name in TRAINED}
    assert f"about {round(whole.seconds['prior'] / 60)} min" in whole.files["prior"] and not whole.notes[1:]
    cut = plan_family(facts, minutes=30, device="cpu", registry=registry)
    assert 25 * 60 < sum(cut.seconds.values()) < 35 * 60
    assert any("would take" in note and "--minutes" in note for note in cut.notes)
    assert f"steps: {cut.steps['mixar']} " in cut.files["mixar"]


def test_little_memory_makes_smaller_passes(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "device_memory", lambda device: 0.1)
    files = planned(facts_of([5000, 5000], names=["a", "b"], image_size=64), registry).files
    assert re.search(r"micro_batch: (1|2|4|8)\n", files["continuous"]) and "cache: none" in files["base"]


def test_a_step_is_timed_by_training(registry: Registry) -> None:
    recipes = families._recipes(planned(facts_of([8, 8], names=["a", "b"], image_size=16), registry).files, registry)
    assert 0 < families.seconds_a_step(recipes["mixar"], registry, torch.device("cpu")) < 60


def test_ctrl_c_in_a_trial_ends_all_of_them(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer finishes its step and returns: a time of fewer steps was taken, and the next trial began."""
    recipes = families._recipes(planned(facts_of([8, 8], names=["a", "b"], image_size=16), registry).files, registry)
    enter = StopSignals.__enter__

    def pressed(signals: StopSignals) -> StopSignals:
        entered = enter(signals)
        signal.raise_signal(signal.SIGINT)
        return entered

    monkeypatch.setattr(StopSignals, "__enter__", pressed)
    with pytest.raises(KeyboardInterrupt):
        families.seconds_a_step(recipes["mixar"], registry, torch.device("cpu"))


def test_the_folder_appears_whole_or_not_at_all(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = planned(facts_of([40]), registry)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    with pytest.raises(UserError, match="full is not an empty folder"):
        write_family(family, tmp_path / "full")
    broken = attrs.evolve(family, files={**family.files, "no/such": ""})
    with pytest.raises(UserError):
        write_family(broken, tmp_path / "own")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.tex"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    write_family(family, "../own")
    write_family(family, tmp_path / "empty")
    words = next_commands(family, Path("own"))
    assert [each[1] for each in words] == ["train", "sample", "eval"]


def test_a_class_may_be_called_anything(registry: Registry, tmp_path: Path) -> None:
    family = planned(facts_of([40, 40], names=["caf\udce9", "two\u2028lines\rand # more"]), registry)
    written = write_family(family, tmp_path / "own") / "base.yaml"
    assert r"# caf\udce9, two lines and # more; 0 makes" in written.read_text(encoding="utf-8")
