"""What is shipped: wheels bring the recipes and the models, and work from wherever they are installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from mixar.scaffold import template_files
from tests.registry.environments import PLUGINS, ROOT, Environment, made


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(made("wheel", ROOT, folder / "dist")) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_the_packages_the_recipes_and_nothing_else(unpacked: Path) -> None:
    packages = {"mixar", "mixar_core", "mixar_plugins"}
    assert {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")} == packages
    for package in packages:
        assert (unpacked / package / "py.typed").is_file()
    shipped = {path.name for path in (unpacked / "mixar_plugins/recipes").rglob("*.yaml")}
    template = {path.relative_to(unpacked / "mixar") for path in (unpacked / "mixar/template").rglob("*.*")}
    assert template == {path.relative_to(ROOT / "registry/mixar") for path in template_files()}
    assert shipped == {path.name for path in (ROOT / "recipes").rglob("*.yaml")} and "mixar_l.yaml" in shipped


def test_the_guides_travel_with_the_wheel_and_help_says_where(unpacked: Path, tmp_path: Path) -> None:
    packed = {path.relative_to(unpacked / "mixar/docs") for path in (unpacked / "mixar/docs").rglob("*")}
    assert {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")} <= packed
    for site, folder in ((unpacked, unpacked / "mixar/docs"), (None, ROOT / "docs")):
        environment = {**os.environ, "COLUMNS": "400"} | ({"PYTHONPATH": str(site)} if site else {})
        command = [sys.executable, "-P", "-m", "mixar", "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and f"Guides: {folder}" in done.stdout


@pytest.mark.slow
def test_every_public_name_gets_a_page(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.M)
    command = recipe.replace("$(BIN)/python", sys.executable).replace("build/docs", str(tmp_path))
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "arn" not in done.stderr, done.stderr
    for name in ("mixar", "mixar_core", "mixar_core.testing"):
        page = (tmp_path / f"{name.replace('.', '/')}.html").read_text()
        assert [public for public in import_module(name).__all__ if f'id="{public}"' not in page] == []


def test_recipes_and_plugins_are_found_from_a_wheel(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "mixar", "recipes", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    paths = {recipe["name"]: Path(recipe["path"]) for recipe in json.loads(done.stdout)}
    assert paths["mixar_l"].is_relative_to(unpacked) and paths["maskbit_tokenizer_18bit"].is_relative_to(unpacked)


@pytest.mark.slow
def test_all_packages_work_from_their_wheels(installed: Environment, tmp_path: Path) -> None:
    plugins = json.loads(installed.run("mixar", "plugins", "--json", cwd=tmp_path))
    assert [(p["name"], p["problem"]) for p in plugins["plugins"]] == [
        ("adaptive", None), ("builtin", None), ("diffusers", None), ("eval", None), ("fsq", None), ("import", None),
        ("zoo", None),
    ]  # fmt: skip
    names = ("mixar", "mixar_core", "mixar_plugins", *PLUGINS)
    where = f"import {', '.join(names)}; print(mixar_zoo.__file__)"
    assert installed.run("python", "-c", where, cwd=tmp_path).startswith(str(installed.site))
    assert "digits" in plugins["models"]
    for command in ("eval", "weights", "demo"):
        installed.run("mixar", command, "--help", cwd=tmp_path)
    assert "4,000 training images" in installed.run("mixar", "recipe", "check", "digits_quick", cwd=tmp_path)


@pytest.mark.slow
def test_mixar_does_without_what_is_optional(installed: Environment, tmp_path: Path, family: Path) -> None:
    installed.run("mixar", "sample", "digits", "-n", 2, "--out", "drawn", cwd=tmp_path, lacking=True)
    assert (tmp_path / "drawn/grid.png").is_file()
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"extends: {family / 'recipes/mixar.yaml'}\ncallbacks: null\n")
    installed.run("mixar", "train", recipe, "--out", "run", cwd=tmp_path, lacking=True)
    assert (tmp_path / "run/weights.safetensors").is_file()
    assert "tensorboard" not in (tmp_path / "run/recipe.yaml").read_text()
    for setting, package in (
        ("callbacks=[{type: tensorboard}]", "tensorboard"),
        ("data={type: parquet, path: /}", "mixar[datasets]"),
        ("data={type: datasets, path: parquet}", "mixar[datasets]"),
    ):
        error = installed.run(
            "mixar", "train", recipe, "--out", "no", "--set", setting, cwd=tmp_path, lacking=True, code=2
        )
        assert "pip install" in error and package in error and "Traceback" not in error
    error = installed.run(
        "mixar", "train", family / "recipes/continuous.yaml", "--set", "reconstruction.perceptual_weight=1",
        "--out", "no", cwd=tmp_path, lacking=True, code=2,
    )  # fmt: skip
    assert "pip install 'mixar[perceptual]'" in error
