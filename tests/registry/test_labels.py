"""What a caller hands in: whole numbers and names in any clothes are taken, everything else is a UserError."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

import mixar
from mixar.cli.common import asked_classes
from mixar.generation import batch_noise
from mixar.labels import checked_number, class_numbers, split_names
from mixar_core.distributed import available_device
from mixar_core.errors import UserError
from mixar_core.types import Condition

NAMES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def model(family: Path) -> mixar.Model:
    return mixar.load(family / "models/mixar", device="cpu")


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (numpy.arange(3), [0, 1, 2]),
        (numpy.arange(3)[::-1], [2, 1, 0]),
        (numpy.int64(2), [2]),
        (numpy.uint8(2), [2]),
        (numpy.array(1), [1]),
        (numpy.array([0, 1], dtype=object), [0, 1]),
        (numpy.array(["owl", "cat"]), [2, 0]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor(1), [1]),
        (torch.tensor([1, 2], dtype=torch.uint8), [1, 2]),
        ([torch.tensor(1), numpy.int32(2), "cat", -1], [1, 2, 0, -1]),
        (range(3), [0, 1, 2]),
        ((label for label in (2, 2)), [2, 2]),
        ((0, "dog"), [0, 1]),
        ("dog", [1]),
        (-1, [-1]),
    ],
)
def test_whole_numbers_and_names_are_taken(labels: Any, numbers: list[int]) -> None:
    assert class_numbers(labels, 3, NAMES) == numbers


@pytest.mark.parametrize(
    "labels",
    [
        *(3.7, 1.0, [1.0], numpy.float32(1), numpy.array([0.9, 2.9]), torch.tensor([0.9, 2.9]), torch.tensor(1.0)),
        *(True, [False], numpy.array([True, False]), torch.tensor([True]), numpy.bool_(True)),
        *(None, [None], [0, None], [[0]], [(1, 2)], numpy.eye(3, dtype=int), torch.ones(1, 1).long(), [torch.ones(1)]),
        *([torch.ones(1).long()], numpy.ma.masked_array([1, 2], [True, False]), 1j, b"ab", [b"cat"], object()),
        *({0, 1}, {"cat": 1}, frozenset({"cat"}), [], (), numpy.array([], dtype=int), float("nan")),
        *([3], [-2], numpy.uint64(2**63), 10**30, "Cat", "0", "", bytearray(b"\0"), memoryview(b"\0")),
        *(torch.tensor([1, 2]).to_sparse(), torch.ones(2, dtype=torch.int64, device="meta")),
    ],
)
def test_everything_else_is_refused_in_one_line(labels: Any) -> None:
    with pytest.raises(UserError) as refused:
        class_numbers(labels, 3, NAMES)
    assert "\n" not in str(refused.value)


@given(st.integers() | st.floats() | st.text() | st.none() | st.booleans() | st.binary() | st.lists(st.integers()))
def test_a_label_is_a_class_or_an_error(label: Any) -> None:
    """Nothing is rounded, cut or taken for another class."""
    try:
        numbers = class_numbers(label, 3, NAMES)
    except UserError:
        return
    wanted = label if isinstance(label, list) else [label]
    assert not any(isinstance(each, float | bool) for each in wanted)
    assert [NAMES.index(each) if isinstance(each, str) else each for each in wanted] == numbers


def test_a_name_of_two_classes_is_no_name_of_one() -> None:
    with pytest.raises(UserError, match='class "crane" is there more than once; give one of its numbers: 0, 2'):
        class_numbers("crane", 3, ("crane", "dog", "crane"))
    assert class_numbers("dog", 3, ("crane", "dog", "crane")) == [1]


def test_names_are_the_same_in_either_form_of_unicode() -> None:
    composed, apart = "Caf\u00e9", "Cafe\u0301"
    assert class_numbers([composed, apart], 1, (apart,)) == class_numbers([composed, apart], 1, (composed,)) == [0, 0]
    assert class_numbers([apart, composed], 2, (composed, apart)) == [1, 0]


# ---------------------------------------------------------------- the command line

ODD = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0") | st.sampled_from(", '\"\\-#:~\n"))


def fake(names: tuple[str, ...]) -> mixar.Model:
    """A model as far as the command line asks for classes."""

    def labels(wanted: Any) -> torch.Tensor:
        return torch.tensor(class_numbers(wanted, len(names), names))

    return cast(mixar.Model, SimpleNamespace(class_names=names, labels=labels))


@given(st.lists(ODD, min_size=1, max_size=6, unique=True))
@example(["crane", "bird", "crane, bird"])
@example(["a", " a", "a ", "", " "])
@example(["Caf\u00e9", "Cafe\u0301"])
def test_any_class_can_be_named(names: list[str]) -> None:
    model = fake(tuple(names))
    assert asked_classes(model, names, ()) == list(range(len(names)))
    for number, name in enumerate(names):
        assert asked_classes(model, [name], ()) == [number]


@given(st.lists(ODD, min_size=1, max_size=5, unique=True), st.data())
def test_names_in_a_row_are_those_names_or_an_error(names: list[str], data: st.DataObject) -> None:
    """A text that can be read in two ways is refused; else it is what was meant."""
    meant = data.draw(st.lists(st.sampled_from(names), min_size=2, max_size=4))
    text = ",".join(meant)
    assume(text not in names)  # a whole name counts as that, as the help says
    try:
        found = asked_classes(fake(tuple(names)), [text], ())
    except UserError:
        return
    assert [names[number] for number in found] == meant or ",".join(names[n] for n in found) == text


def test_names_with_commas_fit() -> None:
    names = ("crane, bird", "crane, machine", "tiger", "a,b", "b,c", "a", "c")
    assert split_names("crane, bird", names) == ["crane, bird"]
    assert split_names("tiger, crane, machine,crane, bird", names) == ["tiger", "crane, machine", "crane, bird"]
    with pytest.raises(UserError, match=r"can be read as a \| b,c or as a,b \| c; give --classes once for each name"):
        split_names("a,b,c", names)
    assert split_names("tiger, lion", names) == ["tiger", "lion"]  # what there is not is said by who looks it up


@pytest.mark.parametrize("labels", ["1_0", "1.0", "", "0,,1", "0x1", "²", "true", "1e3"])
def test_odd_numbers_are_refused(labels: str) -> None:
    with pytest.raises(UserError, match="not whole numbers separated by commas"):
        asked_classes(fake(("a",) * 20), (), [labels])


def test_labels_may_be_given_more_than_once() -> None:
    assert asked_classes(fake(NAMES), (), ["0, 2", "-1,+1"]) == [0, 2, -1, 1]
    assert asked_classes(fake(NAMES), (), ()) == []


# ---------------------------------------------------------------- codes, settings, devices


def test_codes_are_taken_from_any_array_of_whole_numbers(model: mixar.Model) -> None:
    codes = model.sample_codes([0, 1], seed=3)
    wanted = model.generate([0, 1], seed=3, codes=codes).images
    for same in (
        codes.numpy(),
        codes.numpy()[::1].astype("uint8"),
        codes.tolist(),
        codes.int(),
        codes.numpy().astype(">i4"),
    ):
        assert torch.equal(model.generate([0, 1], seed=3, codes=same).images, wanted)
        assert torch.equal(model.decode_codes(same), model.decode_codes(codes))
    masked = numpy.ma.masked_array(codes.numpy(), mask=True)
    for wrong in (
        *(codes.float(), codes.bool(), codes[0], codes[None], codes.numpy() + 0.5, "codes", 3, [[1], [1, 2]]),
        *(masked, codes.to_sparse(), codes.to("meta")),
    ):
        for call in (
            lambda wrong=wrong: model.generate([0, 1], codes=wrong),
            lambda wrong=wrong: model.decode_codes(wrong),
        ):
            with pytest.raises(UserError, match="codes"):
                call()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"steps": 0}, {"steps": -3}, {"steps": 2.5}, {"steps": True}, {"steps": "4"}, {"steps": 2.0}),
        *({"cfg": -1}, {"cfg": float("nan")}, {"cfg": float("inf")}, {"cfg": "2"}, {"cfg": [2]}, {"cfg": True}),
        *({"temperature": -0.1}, {"temperature": "hot"}, {"batch_size": 0}, {"batch_size": -1}, {"batch_size": 1.5}),
        *({"seed": -1}, {"seed": 0.5}, {"seed": "1"}, {"seed": True}, {"seed": None}, {"cfg": 10**400}),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused(model: mixar.Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        model.generate([0], **wrong)


def test_numbers_of_numpy_are_numbers(model: mixar.Model) -> None:
    plain = model.generate([0], steps=2, cfg=2.0, temperature=1.0, seed=3, batch_size=1)
    other = model.generate(
        [0], steps=numpy.int64(2), cfg=numpy.float32(2), temperature=torch.tensor(1), seed=numpy.uint8(3), batch_size=1
    )
    assert torch.equal(plain.images, other.images)
    assert checked_number(numpy.float64(1.5), "x", low=0) == 1.5 and checked_number(None, "x", low=0) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "fp16"}, "precision 'fp16': not known; .*allowed: bf16, float32"),
        ({"weights": "best"}, "weights 'best': not known; .*allowed: ema, raw"),
        ({"device": "abacus"}, "device abacus: not available here"),
        ({"device": "meta"}, "device meta: not available here"),
        ({"device": "cuda:99"}, "device cuda:99: not available here"),
        ({"device": 1.5}, "device 1.5: not available here"),
    ],
)
def test_a_model_is_loaded_as_it_was_asked_for_or_not(family: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        mixar.load(family / "models/mixar", **wrong)
    assert "\n" not in str(refused.value)


def test_one_is_no_guidance_whatever_the_folder(family: Path) -> None:
    """The prior's own scale s of c + s (c - u) is one less; a recipe has that."""
    prior, model = mixar.load(family / "models/prior"), mixar.load(family / "models/mixar")
    assert prior.settings(cfg=1).prior_cfg == 0.0 and prior.settings(cfg=3.5).prior_cfg == 2.5
    assert prior.settings().prior_cfg is None and prior.given(prior.settings())["cfg"] is None
    for each, scale in ((prior, 3.5), (model, 2.0)):
        given = {"steps": 2, "cfg": scale, "temperature": 0.5}
        assert each.given(each.settings(**given)) == given
    assert model.settings(cfg=1).cfg == 1.0 and model.settings(cfg=0.5).cfg == 0.5
    with pytest.raises(UserError, match=r"cfg \(1 is no guidance\): 0\.5; allowed: a number, 1 or more"):
        prior.settings(cfg=0.5)
    with pytest.raises(UserError, match="cfg"):
        model.sample_codes([0], cfg=0.0)
    unguided = prior.system.prior.sample(  # type: ignore[union-attr]
        Condition(prior.labels([0, 1])), noise=batch_noise(4, 0), cfg=0.0
    ).codes_BN
    assert torch.equal(prior.generate([0, 1], seed=4, cfg=1.0).codes, unguided)  # type: ignore[arg-type]
    assert torch.equal(prior.sample_codes([0, 1], seed=4, cfg=1), unguided)


@pytest.mark.parametrize("wrong", [None, 3, True, b"digits", ["digits"], 1.5], ids=repr)
def test_what_is_loaded_has_a_name_or_a_path(wrong: Any) -> None:
    for load in (mixar.load, mixar.load_recipe):
        with pytest.raises(UserError, match="neither a name nor a path"):
            load(wrong)


@pytest.mark.parametrize("name", ["x" * 5000, "x/" + "y" * 5000, "x\0y", "/\0"])
def test_a_name_that_no_file_can_have_is_one_line(name: str) -> None:
    for load in (mixar.load, mixar.load_recipe):
        with pytest.raises(UserError):
            load(name)


def test_what_is_trained_and_built_is_a_recipe_on_a_device_that_is_there(family: Path, tmp_path: Path) -> None:
    recipe = mixar.load_recipe(family / "recipes/continuous.yaml")
    for call, message in (
        (lambda: mixar.train("digits_quick", tmp_path / "run"), "recipe"),
        (lambda: mixar.build(family / "recipes/continuous.yaml"), "recipe"),
        (lambda: mixar.train(recipe, None), "None"),
        (lambda: mixar.train(recipe, 3), "3"),
        (lambda: mixar.train(recipe, tmp_path / "run", device="abacus"), "device abacus: not available here"),
        (lambda: mixar.build(recipe, device="abacus"), "device abacus: not available here"),
        (lambda: mixar.build(recipe, trained_weights="no.safetensors"), "no.safetensors: no such file"),
        (lambda: mixar.train(recipe, ""), "an empty path"),
        (lambda: mixar.train(recipe, tmp_path / "run", callbacks="progress"), "callbacks 'progress'"),
        (lambda: mixar.train(recipe, tmp_path / "run", callbacks=["progress"]), r"callbacks \['progress'\]"),
        (lambda: mixar.load_recipe("digits_quick", {"training.steps": torch.ones(1, device="meta")}), "Tensor"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert not (tmp_path / "run").exists()


def test_asking_whether_a_gpu_is_there_takes_no_memory_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(available_device("cuda:1")) == "cuda:1"  # an allocation would fail here, where there is none
    assert available_device(torch.device("cuda")) == torch.device("cuda")
