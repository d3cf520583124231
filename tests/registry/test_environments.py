"""Other people's packages as their users meet them: real wheels, put into an environment and taken out again by pip.

Whatever is wrong with one, the program says what to do in one line, and everything else goes on working.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.registry.environments import Environment, plugin_wheel

pytestmark = pytest.mark.slow

CODES = """
    from mixar import Part, hookimpl

    MIXAR_INTERFACE = 2

    @hookimpl
    def mixar_parts():
        from mixar_plugins.tokenizers.maskbit import LFQConfig, LFQTokenizer

        class Codes(LFQTokenizer):
            "Signs, as somebody else makes them."

        return [Part("discrete-tokenizer", "codes", Codes, LFQConfig)]
"""
#: beside a good part one that derives from nothing it should
WRONG = CODES.replace("return [", 'return [Part("head", "loud", Codes, LFQConfig), ').replace('"codes"', '"signs"')
NEEDY = CODES.replace("from mixar_plugins", "import there_is_no_such_library\n        from mixar_plugins", 1)
#: where an error must not send anyone: to a package of that name in a public index
INDEX = "pip install mixar"

Put = Callable[..., Any]


@pytest.fixture(scope="module")
def put(installed: Environment, tmp_path_factory: pytest.TempPathFactory) -> Put:
    """put(package, code, version=..., entry=...): a context with that package in the environment."""
    folder, wheels = tmp_path_factory.mktemp("wheels"), {}

    @contextmanager
    def context(package: str, code: str = CODES, **kind: str) -> Iterator[None]:
        key = (package, code, *kind.items())
        if key not in wheels:
            place = folder / str(len(wheels))
            place.mkdir()
            wheels[key] = plugin_wheel(place, package, code, **kind)
        installed.pip("install", "--no-deps", "--no-index", wheels[key])
        try:
            yield
        finally:
            installed.pip("uninstall", "--yes", package)

    return context


@pytest.fixture(scope="module")
def run(installed: Environment, put: Put, family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that was trained with a part of mixar-extra 0.1.0, which is there no more."""
    folder = tmp_path_factory.mktemp("trained")
    words = ("--set", "discrete_tokenizer.type=codes", "--set", "discrete_tokenizer.bits=2", "--out", "run")
    with put("mixar-extra"):
        installed.run("mixar", "train", family / "recipes/discrete.yaml", *words, cwd=folder)
    return folder / "run"


def parts(installed: Environment, cwd: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What `mixar plugins` says of plugins, and the plugin of every part, each by its name."""
    listed = json.loads(installed.run("mixar", "plugins", "--json", cwd=cwd))
    return {p["distribution"]: p for p in listed["plugins"]}, {p["name"]: p["plugin"] for p in listed["parts"]}


def test_a_package_comes_in_can_be_left_out_and_is_missed(
    installed: Environment, put: Put, run: Path, tmp_path: Path
) -> None:
    noted = json.loads((run / "provenance.json").read_text())["parts"]["discrete_tokenizer"]
    assert (noted["plugin"], noted["distribution"], noted["version"]) == ("extra", "mixar-extra", "0.1.0")
    measured = ("mixar", "recipe", "check", run)
    with put("mixar-extra"):
        assert parts(installed, tmp_path)[1]["codes"] == "extra"
        assert "codes" in installed.run(*measured, cwd=tmp_path)
        out = installed.run(*measured, "--no-plugin", "extra", cwd=tmp_path, code=2)
        assert 'unknown discrete-tokenizer "codes"' in out and "mixar-extra 0.1.0 is left out by --no-plugin)" in out
        program = f"import mixar; mixar.load({str(run)!r}, without_plugins=['extra'])"
        assert "is left out by without_plugins)" in installed.run("python", "-c", program, cwd=tmp_path, code=1)
        script = f"import mixar; print(mixar.load({str(run)!r}).recipe.discrete_tokenizer.type)"
        assert installed.run("python", "-c", script, cwd=tmp_path) == "codes\n"
    for words in (measured, ("mixar", "eval", "tokenizer", run), ("mixar", "train", run, "--resume")):
        missed = installed.run(*words, cwd=tmp_path, code=2)
        assert missed.count("\n") == 1 and 'unknown discrete-tokenizer "codes"' in missed
        assert "made with that of the package mixar-extra, version 0.1.0: install it" in missed and INDEX not in missed
    with put("mixar-extra", version="0.2.0"):
        assert "codes" in installed.run(*measured, cwd=tmp_path)


def test_two_packages_offer_one_name(installed: Environment, put: Put, run: Path, family: Path, tmp_path: Path) -> None:
    own = family / "recipes/discrete.yaml"
    check = ("mixar", "recipe", "check")
    with put("mixar-extra"), put("mixar-dup"):
        _, owners = parts(installed, tmp_path)
        assert (owners["extra:codes"], owners["dup:codes"]) == ("extra", "dup") and "codes" not in owners
        installed.run(*check, "digits_quick", cwd=tmp_path)  # it uses neither
        out = installed.run(*check, own, "--set", "discrete_tokenizer.type=codes", cwd=tmp_path, code=2)
        assert "write dup:codes (of mixar-dup 0.1.0) or extra:codes (of mixar-extra 0.1.0)" in out
        chosen = ("--set", "discrete_tokenizer.type=dup:codes", "--set", "discrete_tokenizer.bits=2")
        assert "type: dup:codes\n" in installed.run("mixar", "recipe", "show", own, *chosen, cwd=tmp_path)
        assert "type: extra:codes\n" in installed.run("mixar", "recipe", "show", run, cwd=tmp_path)
        assert " steps in " in installed.run("mixar", "train", run, "--resume", cwd=tmp_path)
    with put("mixar-dup"):  # what it was made with is gone: the other is not taken for it
        out = installed.run(*check, run, cwd=tmp_path, code=2)
        assert 'unknown discrete-tokenizer "extra:codes"; did you mean dup:codes? allowed: dup:codes;' in out
        assert "of the package mixar-extra, version 0.1.0: install it" in out
    with put("mixar-extra"), put("mixar-rival", entry="extra"):
        plugins, owners = parts(installed, tmp_path)
        clash = "mixar-extra 0.1.0 and mixar-rival 0.1.0 each have a plugin of this name; uninstall one, or"
        for distribution in ("mixar-extra 0.1.0", "mixar-rival 0.1.0"):
            assert plugins[distribution]["problem"] == f"{clash} --no-plugin extra"
        assert "codes" not in owners and owners["lfq"] == "builtin"
        installed.run(*check, "digits_quick", cwd=tmp_path)
        assert clash in installed.run(*check, run, cwd=tmp_path, code=2)
        assert "mixar-extra" not in installed.run("mixar", "--no-plugin", "extra", "plugins", cwd=tmp_path)


def test_a_broken_package_is_told_of_where_it_is_missed(
    installed: Environment, put: Put, run: Path, tmp_path: Path
) -> None:
    check = ("mixar", "recipe", "check")
    broken = {
        "raise RuntimeError('out of order')\n": "RuntimeError: out of order",
        NEEDY: "No module named 'there_is_no_such_library'; install what mixar-extra requires",
    }
    for code, problem in broken.items():
        with put("mixar-extra", code):
            plugins, owners = parts(installed, tmp_path)
            assert problem in plugins["mixar-extra 0.1.0"]["problem"] and owners["lfq"] == "builtin"
            shown = installed.run("mixar", "plugins", cwd=tmp_path)
            assert "not in use: " in shown and "uninstall its package" in shown and "Traceback" not in shown
            quiet = installed.run("python", "-c", HEARD, *check, "digits_quick", cwd=tmp_path)
            assert quiet == "", quiet
            out = installed.run(*check, run, cwd=tmp_path, code=2)
            assert "(plugin extra of mixar-extra 0.1.0 was not loaded: " in out and problem in out
            assert out.count("\n") == 1 and INDEX not in out and "install it" not in out
    with put("mixar-extra", WRONG):
        plugins, owners = parts(installed, tmp_path)
        (part,) = plugins["mixar-extra 0.1.0"]["broken_parts"]
        assert (part["kind"], part["name"]) == ("head", "loud") and "does not derive from" in part["problem"]
        assert plugins["mixar-extra 0.1.0"]["problem"] is None and owners["signs"] == "extra"
        installed.run(*check, run, "--set", "discrete_tokenizer.type=signs", cwd=tmp_path)
        out = installed.run(*check, "mar_b", "--set", "head.type=loud", cwd=tmp_path, code=2)
        assert "plugin extra of mixar-extra 0.1.0 offers one that cannot be used: part head" in out


def test_a_tokenizer_of_another_package_takes_its_place_in_every_step(installed: Environment, tmp_path: Path) -> None:
    """One --set where there is no prior, two where there is one that was trained on other codes."""
    needed = ("mixar-", "mixar_eval-", "mixar_fsq-", "mixar_zoo-")
    wheels = [wheel for wheel in installed.wheels if wheel.name.startswith(needed)]
    environment = Environment(tmp_path / "environment", wheels)
    short = "training: {steps: 3, warmup_steps: 0, evaluate_every: 0, preview_every: 0}\ncallbacks: []\n"
    for name, text in (("fsq", ""), ("prior", ""), ("alone", "prior: null\nti_mix: null\n"), ("mixed", "")):
        parent = {"fsq": "digits_fsq", "prior": "digits_prior"}.get(name, "digits")
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}\n{text}{short}")
    tokenizer, prior = ("--set", "discrete_tokenizer.weights=runs/fsq"), ("--set", "prior.weights=runs/prior")

    def mixar(*words: object, code: int = 0) -> str:
        return environment.run("mixar", *words, cwd=tmp_path, code=code)

    plugins, owners = parts(environment, tmp_path)
    assert [p["name"] for p in plugins.values()] == ["builtin", "eval", "fsq", "zoo"] and owners["fsq"] == "fsq"
    mixar("train", "fsq.yaml")
    mixar("train", "alone.yaml", *tokenizer)
    assert "do not fit: codes of digits_lfq" in mixar("train", "mixed.yaml", *tokenizer, code=2)
    mixar("train", "prior.yaml", *tokenizer)
    mixar("train", "mixed.yaml", *tokenizer, *prior)
    mixar("sample", "runs/mixed", "-n", 2, "--out", "drawn")
    assert (tmp_path / "drawn/grid.png").is_file()
    mixar("eval", "tokenizer", "runs/fsq", "--images", 20, "--out", "measured/tokenizer")
    mixar(
        "eval", "generation", "runs/mixed", "--reference", "digits:validation", "--count", 20, "--out", "measured/drawn"
    )
    assert all((tmp_path / "measured" / name / "report.json").is_file() for name in ("tokenizer", "drawn"))
    for name in ("fsq", "alone", "prior", "mixed"):
        noted = json.loads((tmp_path / f"runs/{name}/provenance.json").read_text())["parts"]["discrete_tokenizer"]
        assert noted == {"name": "fsq", "plugin": "fsq", "distribution": "mixar-fsq", "version": "0.1.0"}
    environment.pip("uninstall", "--yes", "mixar-fsq")
    missed = mixar("sample", "runs/mixed", code=2)
    assert 'unknown discrete-tokenizer "fsq"' in missed and "the package mixar-fsq, version 0.1.0: install it" in missed


#: runs the program and prints what it wrote to stderr
HEARD = """
import subprocess, sys
done = subprocess.run([sys.executable, "-m", *sys.argv[1:]], capture_output=True, text=True)
sys.exit(done.returncode) if done.returncode else print(done.stderr, end="")
"""
