"""What a person writes is taken whole: text, words that look like numbers, and paths wherever they are read from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from attrs import field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mixar
from mixar import strict_yaml
from mixar.assembly import counted_data
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import Recipe, load_recipe, parse_overrides, to_yaml
from mixar.structure import Invalid, structure
from mixar.written import Text, located, path_of, placed, read_value
from mixar_core.errors import UserError
from mixar_core.storage import user_path

REGISTRY = plugin_manager()


@frozen
class Config:
    text: str = ""
    maybe: str | None = "x"
    either: str | tuple[str, ...] = ""
    number: int = 0
    share: float | None = 0.5
    flag: bool = False
    anything: Any = None
    table: dict[str, str] = field(factory=dict)
    place: Path | None = None
    file: str = field(default="", metadata={"path": True})
    files: dict[str, tuple[str, ...]] = field(factory=dict, metadata={"path": True})
    name: str = field(default="", metadata={"path": lambda text, path: path.is_dir()})


def configured(*overrides: str) -> Config:
    made: Config = structure(parse_overrides(overrides), Config)
    return made


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# ---------------------------------------------------------------- text


@given(st.text())
def test_any_text_in_is_the_same_text_out(text: str) -> None:
    if text.lstrip()[:1] not in ("'", '"', "[", "{"):
        for key in ("text", "either", "table.key"):
            made = configured(f"{key}={text}")
            assert (made.table.get("key"), made.text, made.either)[("table.key", "text", "either").index(key)] == text
    if "\ue000" not in text:
        assert configured(f"either={strict_yaml.dump([text, text])}").either == (text, text)  # quoted where it must be
    assert structure(parse_overrides({"text": text, "either": [text]}), Config) == Config(text, either=(text,))


@given(st.text(alphabet="'\"[]{}#: a,\n-"))
def test_what_begins_like_yaml_is_read_whole_or_refused(text: str) -> None:
    try:
        value = read_value(text, where="--set")
    except UserError as error:
        assert "\n" not in str(error)
        return
    if isinstance(value, str) and text.lstrip()[:1] not in ("'", '"'):
        assert value == text
    assert text.count("#") == str(value).count("#") or text.lstrip()[:1] in ("{",)  # one key of a mapping given twice


@pytest.mark.parametrize(
    "word", ["2024", "1e3", "007", "on", "no", "true", "~", ".inf", "1:30", "-5", "set #2", "a: b"]
)
def test_where_text_is_wanted_a_word_is_taken_as_it_is_written(word: str) -> None:
    assert configured(f"text={word}").text == word
    assert configured(f"table.a={word}").table == {"a": word}


def test_where_text_is_not_wanted_a_word_is_what_it_looks_like() -> None:
    made = configured("number= 7", "share=1e-2", "flag=true", "anything=12", "maybe=null")
    assert made == Config(number=7, share=0.01, flag=True, anything=12, maybe=None)
    assert configured("maybe=7").maybe == "7" and configured("text=null").text == "null"
    for bad in ("number=1 # one", "number=1.5", "number='7'", "flag=on", "share=a"):
        with pytest.raises(Invalid):
            configured(bad)


def test_text_that_begins_like_yaml_says_how_to_quote_it() -> None:
    with pytest.raises(UserError, match=r'--set text=\[v1\] a: line 1, .*has to be quoted: "\[v1\] a"$'):
        configured("text=[v1] a")
    assert configured('text="[v1] a"').text == "[v1] a"
    with pytest.raises(Invalid, match=r"text: \['v1'\] is not text; in quotes it would be"):
        configured("text=[v1]")


def test_python_values_need_not_be_pythons_own(tmp_path: Path) -> None:
    given: dict[str, object] = {
        "number": numpy.int64(5), "share": torch.tensor(0.25), "flag": numpy.bool_(True), "place": tmp_path,
        "either": numpy.array(["a", "b"]), "table": {"k": "1"}, "file": tmp_path / "x", "text": "null",
    }  # fmt: skip
    expected = Config(
        "null", number=5, share=0.25, flag=True, either=("a", "b"), table={"k": "1"}, place=tmp_path,
        file=str(tmp_path / "x"),
    )  # fmt: skip
    assert structure(parse_overrides(given), Config) == expected
    for bad in ({"number": "5"}, {"number": numpy.float32(5)}, {"flag": 1}, {"text": 5}, {"number": object()}):
        with pytest.raises(Invalid, match=next(iter(bad))):
            structure(parse_overrides(bad), Config)


def test_overrides_of_a_recipe_take_numpys_scalars_and_paths(tmp_path: Path) -> None:
    changed = {"training.steps": numpy.int64(5), "training.cache": tmp_path, "training": {"betas": (0.5, 0.75)}}
    training = load_recipe("digits_quick", changed, registry=REGISTRY).training
    assert training is not None
    assert (training.steps, training.cache, training.betas) == (5, str(tmp_path), (0.5, 0.75))
    assert load_recipe("digits_quick", "training.steps=7", registry=REGISTRY).training.steps == 7  # type: ignore[union-attr]


# ---------------------------------------------------------------- paths

names = st.text(alphabet="ab #~é", min_size=1, max_size=3).filter(lambda name: not name.startswith("~"))
relative_paths = st.lists(st.just("..") | st.just(".") | names, min_size=1, max_size=4).map("/".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(relative_paths, st.sampled_from(["", "cfg", "cfg/deep"]))
def test_paths_of_a_recipe_mean_the_same_from_everywhere(tmp_path: Path, path: str, where: str) -> None:
    (tmp_path / "cfg/deep").mkdir(parents=True, exist_ok=True)
    file = tmp_path / where / "own.yaml"
    data = {"data": {"type": "image-folder", "path": path}, "training": {"cache": path}}
    file.write_text(strict_yaml.dump({"extends": "digits_continuous", **data}))
    found = set()
    for folder in (tmp_path / where, Path("/")):
        if (folder / path).exists() and not (tmp_path / where / path).exists():
            continue  # as recipes were once read, with a word: see below
        with standing_in(folder):
            found.add(load_recipe(file, registry=REGISTRY))
    (recipe,) = found
    assert recipe.data is not None and recipe.training is not None
    meant = os.path.abspath(tmp_path / where / path)
    assert os.path.abspath(recipe.data.config.path) == os.path.abspath(recipe.training.cache) == meant
    assert Path(recipe.data.config.path).is_absolute()
    written = tmp_path / "run.yaml"
    written.write_text(to_yaml(recipe))
    assert load_recipe(written, ["name=own"], registry=REGISTRY) == recipe  # what a run writes holds from anywhere


def test_home_is_home_in_every_path(tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tok").symlink_to(family / "models/continuous")
    assert user_path("~/x") == tmp_path / "x" and user_path("./~/x") == Path("~/x")  # a folder called so
    (tmp_path / "base.yaml").write_text("extends: digits_quick\n")
    (tmp_path / "own.yaml").write_text("extends: ~/base.yaml\ncontinuous_tokenizer: {weights: ~/tok}\n")
    for recipe in (
        load_recipe("~/own.yaml", ["training.cache=~/c"], registry=REGISTRY),
        load_recipe("digits_quick", {"continuous_tokenizer.weights": "~/tok", "training.cache": "~/c"}),
    ):
        assert recipe.continuous_tokenizer is not None and recipe.training is not None
        assert recipe.continuous_tokenizer.weights == str(tmp_path / "tok")
        assert recipe.training.cache == str(tmp_path / "c")
    files = load_recipe("digits_quick", ["data={type: datasets, path: webdataset, data_files: {train: [~/base.yaml]}}"])
    assert files.data is not None and files.data.config.data_files == {"train": (str(tmp_path / "base.yaml"),)}
    assert files.data.config.path == "webdataset"
    assert REGISTRY.find_model("~/tok") == tmp_path / "tok"
    with pytest.raises(UserError, match="no-such-user"):
        located("~no-such-user/x")


def test_marked_text_is_a_path_where_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    made = configured("file=a b", "files.x=[y, hf://z]", "name=here", "place=~/q", "text=./t")
    assert (made.file, made.files) == (f"{tmp_path}/a b", {"x": (f"{tmp_path}/y", "hf://z")})
    assert (made.name, made.text, made.place) == (f"{tmp_path}/here", "./t", Path.home() / "q")
    assert configured("name=not-here").name == "not-here"


def test_a_path_that_was_seen_from_the_working_directory_still_is_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cfg").mkdir()
    (tmp_path / "imgs").mkdir()
    (tmp_path / "base.yaml").write_text("extends: digits_quick\n")
    (tmp_path / "cfg/own.yaml").write_text("extends: base.yaml\ndata: {type: image-folder, path: imgs}\n")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        data = load_recipe("cfg/own.yaml").data
        assert data is not None and data.config.path == str(tmp_path / "imgs")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and told[0].endswith("write ../base.yaml") and told[1].endswith("write ../imgs")
    assert f"note: {tmp_path}/cfg/imgs is not there, so {tmp_path}/imgs is taken; " in told[1]
    (tmp_path / "cfg/imgs").mkdir()
    data = load_recipe("cfg/own.yaml").data
    assert data is not None and data.config.path == str(tmp_path / "cfg/imgs")


def test_an_old_runs_relative_paths_mean_the_working_directory_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for folder in (run, tmp_path / "elsewhere"):
        (folder / "imgs").mkdir(parents=True)
    old = load_recipe("digits_quick", ["data={type: image-folder, path: /x}"], registry=REGISTRY)
    (run / "recipe.yaml").write_text(to_yaml(old).replace("/x", "imgs"))
    (run / "provenance.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/digits_prior").mkdir()
    (tmp_path / "elsewhere/digits_prior/recipe.yaml").write_text("")  # no run ever wrote a folder's bare name
    recipe = load_recipe(run / "recipe.yaml", registry=REGISTRY)
    assert recipe.data is not None and recipe.data.config.path == str(tmp_path / "elsewhere/imgs")
    assert recipe.prior is not None and recipe.prior.weights == "digits_prior"
    (run / "provenance.json").unlink()  # then a person wrote it
    recipe = load_recipe(run / "recipe.yaml", registry=REGISTRY)
    assert recipe.data is not None and recipe.data.config.path == str(run / "imgs")


def test_shipped_recipes_look_for_data_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("kl16", "va_vae"):
        data = load_recipe(name, registry=REGISTRY).data
        assert data is not None and data.config.path == "data/imagenet"
    assert f"{tmp_path}/data/imagenet: no folder" in counted_data(load_recipe("kl16", registry=REGISTRY), REGISTRY)[0]
    (tmp_path / "data/imagenet").mkdir(parents=True)
    data = load_recipe("kl16", registry=REGISTRY).data  # what a run writes holds from anywhere
    assert data is not None and data.config.path == str(tmp_path / "data/imagenet")


def test_an_empty_path_is_not_the_working_directory() -> None:
    for empty in (["data.path="], {"data.path": ""}, ["data.path=''"]):
        with pytest.raises(UserError, match=r"data\.path: an empty path"):
            load_recipe("kl16", empty, registry=REGISTRY)


# ---------------------------------------------------------------- names and folders


@pytest.mark.parametrize("kind", ["empty folder", "folder of images", "file"])
def test_what_lies_in_the_working_directory_hides_no_shipped_model(
    kind: str, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = registry.find_model("digits_prior"), registry.find_recipe("digits_quick")
    for name in ("digits_prior", "digits_quick"):
        if kind == "file":
            (tmp_path / name).touch()
        else:
            (tmp_path / name).mkdir()
        if kind == "folder of images":
            (tmp_path / name / "grid.png").touch()
    assert (registry.find_model("digits_prior"), registry.find_recipe("digits_quick")) == shipped
    prior = load_recipe("digits_quick", registry=registry).prior
    assert prior is not None and prior.weights == "digits_prior"
    for spelling in ("./digits_prior", "digits_prior/", tmp_path / "digits_prior", Path("digits_prior")):
        with pytest.raises(UserError, match=f"model {tmp_path}/digits_prior: "):
            registry.find_model(spelling)


def test_a_model_in_the_working_directory_is_found_by_its_bare_name(
    tmp_path: Path, family: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(family / "models/prior")
    assert registry.find_model("mine") == tmp_path / "mine"
    assert path_of("mine", holding="recipe.yaml") == tmp_path / "mine" and path_of("mine") is None
    (tmp_path / "sub").mkdir()
    assert path_of(Text("mine", tmp_path / "sub"), holding="recipe.yaml") is None
    recipe: Recipe = load_recipe(family / "recipes/mixar.yaml", ["prior.weights=mine"], registry=registry)
    assert recipe.prior is not None and recipe.prior.weights == str(tmp_path / "mine")


def test_text_knows_where_it_was_written_however_deep(tmp_path: Path) -> None:
    plain = placed({"a": ["x", {"b": ("y", 1, None)}]}, tmp_path)
    assert plain == {"a": ["x", {"b": ["y", 1, None]}]}
    assert plain["a"][1]["b"][0].folder == tmp_path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_recipe("digits_quick", 5), "overrides 5: not"),  # type: ignore[arg-type]
        (lambda: load_recipe("digits_quick", None), "overrides None: not"),  # type: ignore[arg-type]
        (lambda: load_recipe("digits_quick", {5: 1}), "5: unknown key"),  # type: ignore[dict-item]
        (lambda: load_recipe("digits_quick", {"training": 5}), "training: 5 is not a mapping"),
        (lambda: load_recipe("digits_quick", {"training": {5: 1}}), "training.5: unknown key"),
        (lambda: load_recipe("digits_quick", [("training.steps", 5)]), "not of the form key"),  # type: ignore[list-item]
        (lambda: load_recipe(5), "5: neither a name nor a path"),  # type: ignore[arg-type]
        (lambda: mixar.build("digits_quick"), "recipe 'digits_quick': not a Recipe"),  # type: ignore[arg-type]
        (lambda: mixar.train("digits_quick", "run"), "recipe 'digits_quick': not a Recipe"),  # type: ignore[arg-type]
        (lambda: mixar.train(load_recipe("digits_quick"), None), "None: not a path"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_at_the_python_door_are_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)
