"""What is shipped: a wheel brings the recipes, and works from wherever it is unpacked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_the_packages_the_recipes_and_nothing_else(unpacked: Path) -> None:
    packages = {"mixar", "mixar_core", "mixar_plugins"}
    assert {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")} == packages
    for package in packages:
        assert (unpacked / package / "py.typed").is_file()
    shipped = {path.name for path in (unpacked / "mixar_plugins/recipes").rglob("*.yaml")}
    assert shipped == {path.name for path in (ROOT / "recipes").rglob("*.yaml")} and "mixar_l.yaml" in shipped


def test_recipes_and_plugins_are_found_from_a_wheel(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "mixar", "recipes", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    paths = {recipe["name"]: Path(recipe["path"]) for recipe in json.loads(done.stdout)}
    assert paths["mixar_l"].is_relative_to(unpacked) and paths["maskbit_tokenizer_18bit"].is_relative_to(unpacked)
