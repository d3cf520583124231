"""`mixar plugin new`: packages that work as they stand, or nothing."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

import mixar_core
from mixar.plugins import Part, Registry, plugin_manager
from mixar.scaffold import KINDS, TEMPLATE, new_plugin
from mixar_core.errors import UserError
from mixar_core.testing import check_part
from tests.cli.process import good, refused
from tests.registry.environments import PLUGINS, ROOT, Environment, made
from tests.tiny import TRAINING

NAME = "toy-parts"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """A package with a part of every kind."""
    folder = tmp_path_factory.mktemp("new") / "package"
    new_plugin(NAME, [*KINDS], folder, registry)
    return folder


@pytest.fixture
def importable(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """As if it were installed."""
    info = tmp_path / "toy_parts-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[mixar]\n{NAME} = toy_parts\n")
    monkeypatch.syspath_prepend(package / "src")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield plugin_manager()
    for module in [module for module in sys.modules if module.split(".")[0] == "toy_parts"]:
        del sys.modules[module]


def test_there_is_a_template_for_every_kind_of_the_core(registry: Registry) -> None:
    assert KINDS.keys() == registry.kinds.keys() - {"importer"}
    declared = re.search(r"^MIXAR_INTERFACE = (\d+)$", (TEMPLATE / "src/my_plugin/__init__.py").read_text(), re.M)
    assert declared is not None and int(declared[1]) == mixar_core.INTERFACE


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_keeps_the_contract_of_its_kind_as_it_stands(kind: str, importable: Registry) -> None:
    part = importable.part(kind, NAME)
    assert part.summary.endswith(".") and part.component.__name__.startswith("ToyParts")
    check_part(part.component, part.config())


def test_its_own_test_can_be_told_the_settings_that_a_part_needs(package: Path, importable: Registry) -> None:
    @frozen
    class Needs:
        width: int
        depth: int = 1

    sizes = []

    class Noted(importable.part("head", NAME).component):  # type: ignore[misc]
        def __init__(self, config: Needs, **given: object) -> None:
            super().__init__(config, **given)
            sizes.append(config.width)

    space = runpy.run_path(str(package / "tests/test_parts.py"))
    space["SETTINGS"]["head"] = {"width": 8}
    space["test_it_keeps_the_contract_of_its_kind"](Part("head", NAME, Noted, Needs))
    assert {*sizes} == {8}


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_of_one_kind_speaks_of_that_kind_alone(kind: str, tmp_path: Path, registry: Registry) -> None:
    written = new_plugin("one_part", [kind, kind], tmp_path / "one", registry)
    module = kind.replace("-", "_")
    assert {path.name for path in written} == {
        "README.md", "pyproject.toml", "__init__.py", "py.typed", f"{module}.py", "test_parts.py"
    }  # fmt: skip
    assert sorted(written) == sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    every = {path.name: path.read_text() for path in (tmp_path / "one").rglob("*.*")}
    assert not [name for name, text in every.items() if re.search("my.?plugin", text, re.I)]
    hook = every["__init__.py"]
    assert re.findall(r"^ +from one_part\.(\w+) import", hook, re.M) == [module]
    assert re.findall(r'Part\("([\w-]+)", "one-part"', hook) == [kind]
    assert re.findall(r"^\| `([\w-]+)` ", every["README.md"], re.M) == [kind]


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("My-Parts", ["head"], "needed: lower-case letters"),
        ("my--parts", ["head"], "needed: lower-case letters"),
        ("2parts", ["head"], "needed: lower-case letters"),
        ("../parts", ["head"], "needed: lower-case letters"),
        ("class", ["head"], "needed: lower-case letters"),
        ("parts", ["head", "heads"], "no template for it; did you mean head?"),
        ("parts", ["importer"], "no template for it; allowed: backbone, "),
        ("mixar-eval", ["head"], "taken: a distribution mixar-eval is installed"),
        ("random", ["head"], "taken: Python has a module random"),
        ("builtin", ["head"], "taken: there is a plugin of that name"),
        ("flow", ["sampler", "head"], "taken: there is a head of that name"),
    ],
)
def test_a_name_or_kind_that_cannot_be_is_refused(
    name: str, kinds: list[str], message: str, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        new_plugin(name, kinds, tmp_path / "new", registry)
    assert not [*tmp_path.iterdir()]


def test_what_is_there_stays_and_nothing_is_half_written(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there is there already; give another folder by --out"):
        new_plugin(NAME, ["head"], tmp_path / "there", registry)

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fails)
        with pytest.raises(UserError, match="new cannot be written: No space left on device"):
            new_plugin(NAME, ["head"], tmp_path / "new", registry)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_command_says_what_it_wrote_and_what_is_next(tmp_path: Path) -> None:
    told = good("plugin", "new", "toy_parts", "--kind", "head", "--out", "a folder", cwd=tmp_path)
    listed, following = told.split("\nnext:\n")
    assert all((tmp_path / line).is_file() for line in listed.splitlines()) and "head.py" in listed
    assert following.splitlines() == ["  pip install -e 'a folder'", "  mixar plugin check toy-parts"]
    assert "is there already" in refused("plugin", "new", NAME, "--kind", "head", "--out", "a folder", cwd=tmp_path)
    assert "Missing option '--kind'" in refused("plugin", "new", NAME, cwd=tmp_path)


# ---------------------------------------------------------------- in an environment of its own


def recipes(runs: Path) -> dict[str, dict[str, object]]:
    """By name, in the order in which they are trained; every kind is in one of them at least."""
    toy = {"type": NAME}
    base = {
        "image_size": 16, "num_classes": 3, "data": toy, "callbacks": [toy], "optimizer": toy,
        "training": {**TRAINING, "evaluate_every": 2},
    }  # fmt: skip
    losses = {"extractor": toy, "reconstruction": {"perceptual_weight": 0.1}, "discriminator": toy}
    codes = {"discrete_tokenizer": {"weights": str(runs / "discrete")}}
    whole = {
        "trains": "mixar", "continuous_tokenizer": {"weights": str(runs / "continuous")}, **codes,
        "prior": {"weights": str(runs / "prior")}, "injector": toy, "head": toy, "sampler": toy,
        "ti_mix": {"schedule": "linear"},
    }  # fmt: skip
    masked = {"type": "masked", "width": 16, "depth": 1, "heads": 2, "buffer": 1}
    plain = {
        "continuous": {"trains": "continuous_tokenizer", "continuous_tokenizer": toy, **losses},
        "discrete": {"trains": "discrete_tokenizer", "discrete_tokenizer": toy},
        "prior": {"trains": "prior", **codes, "prior": toy},
        "mixar": {**whole, "backbone": toy},
        "conditioned": {**whole, "backbone": masked, "conditioner": toy},
    }
    return {name: {**base, **values} for name, values in plain.items()}


@pytest.mark.slow
def test_a_new_package_installs_passes_its_tests_and_trains(tmp_path: Path) -> None:
    wheels = [made("wheel", ROOT, tmp_path / "mixar")]
    wheels += [made("wheel", ROOT / "plugins" / name, tmp_path / name) for name in PLUGINS]
    environment = Environment(tmp_path / "environment", wheels)
    kinds = [word for kind in KINDS for word in ("--kind", kind)]
    environment.run("mixar", "plugin", "new", NAME, *kinds, cwd=tmp_path)  # the template is in the wheel
    environment.pip("install", "--no-build-isolation", "--no-deps", "--no-index", tmp_path / NAME)
    environment.run("python", "-m", "pytest", "-q", cwd=tmp_path / NAME)
    report = environment.run("mixar", "plugin", "check", NAME, cwd=tmp_path)
    assert report.endswith(f"\nparts: {len(KINDS)} ok\n")
    told = json.loads(environment.run("mixar", "plugins", "--json", cwd=tmp_path))
    assert {part["kind"] for part in told["parts"] if part["plugin"] == NAME} == KINDS.keys()
    for name, plain in recipes(tmp_path / "runs").items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(plain))
        environment.run("mixar", "train", f"{name}.yaml", "--out", f"runs/{name}", cwd=tmp_path)
        assert (tmp_path / f"runs/{name}/losses.csv").read_text().startswith("step,learning_rate,")
    for name in ("mixar", "conditioned"):
        environment.run("mixar", "sample", f"runs/{name}", "-n", 2, "--out", f"drawn/{name}", cwd=tmp_path)
        assert (tmp_path / f"drawn/{name}/grid.png").is_file()
