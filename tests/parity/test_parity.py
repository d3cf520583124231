"""Golden values of the published systems, and tensor lists of their full-size files, against our parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import TOLERANCE, errors_of, main
from tests.parity.case import read_manifest, seeded
from tests.parity.runners import RUNNERS

HERE = Path(__file__).parent
CASES = sorted(path for path in (HERE / "cases").iterdir() if path.is_dir())
MANIFESTS = {name: check for runner in RUNNERS for name, check in runner.manifests.items()}


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case_agrees(folder: Path) -> None:
    errors = errors_of(folder)
    assert errors
    assert {label: error for label, error in errors if error > TOLERANCE} == {}


def test_a_case_under_autocast_is_further_off() -> None:
    exact, rounded = (dict(errors_of(HERE / "cases" / "kl16", bf16=bf16)) for bf16 in (False, True))
    assert all(exact[label] < 1e-5 < 1e-3 < rounded[label] < 0.1 for label in exact)


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(HERE / "cases" / "kl16"), "--device", "nowhere"]) == 2
    assert "device nowhere: not available here" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_released_file_maps_one_to_one(name: str) -> None:
    MANIFESTS[name](read_manifest(HERE / "manifests" / f"{name}.txt"))


def test_every_manifest_is_checked() -> None:
    assert {file.stem for file in (HERE / "manifests").glob("*.txt")} == MANIFESTS.keys()


def test_agreement_ends_with_the_worst_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(HERE / "cases" / "kl16"), str(HERE / "cases" / "vqgan_plus_tokenizer")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("worst: ")
    assert sum(line.startswith("kl16 ") for line in lines) == 4


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / "cases" / "kl16", tmp_path / "kl16"))


def test_tampered_expectation_exits_1(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(copied / "io.safetensors")
    tensors["decoded"][0, 0, 0, 0] += 1.0
    save_file(tensors, copied / "io.safetensors")
    assert main([str(copied)]) == 1
    assert "kl16 decoded" in capsys.readouterr().out.splitlines()[-1]


def test_expectation_nobody_computes_exits_1(copied: Path) -> None:
    tensors = load_file(copied / "io.safetensors")
    save_file({**tensors, "surprise": torch.ones(1)}, copied / "io.safetensors")
    assert main([str(copied)]) == 1


def test_weights_of_another_architecture_exit_1(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = json.loads((copied / "case.json").read_text())
    described["config"]["decoder_attn_resolutions"] = [16]
    (copied / "case.json").write_text(json.dumps(described))
    assert main([str(copied)]) == 1
    assert "missing decoder.up.1.attn.0.k.bias" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["empty", "no io", "truncated io", "no json", "no config", "other kind", "config"])
def test_folder_that_is_no_case_exits_2(harm: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described, io = copied / "case.json", copied / "io.safetensors"
    match harm:
        case "empty":
            shutil.rmtree(copied)
            copied.mkdir()
        case "no io":
            io.unlink()
        case "truncated io":
            io.write_bytes(io.read_bytes()[:1000])
        case "no json":
            described.write_text("{")
        case "no config":
            described.write_text("{}")
        case "other kind":
            described.write_text('{"config": {}, "salt": "", "keys": {}}')
        case "config":
            described.write_text('{"config": {"embed_dim": 1, "ch": 1}, "salt": "", "keys": {}}')
    # The others are still run, and their worst is still the last line.
    assert main([str(copied), str(HERE / "cases" / "vqgan_plus_tokenizer")]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert "not a case" in printed.err
    assert printed.out.splitlines()[-1].startswith("worst: ")


def test_seeded_weights_follow_the_published_rule() -> None:
    assert seeded("a.weight", (4, 3), "x").std() < 1.5 / 3**0.5
    assert (seeded("norm.weight", (500,), "x").mean() - 1).abs() < 0.05
    assert seeded("norm.bias", (500,), "x").mean().abs() < 0.05
    assert not torch.equal(seeded("a.bias", (5,), "x"), seeded("a.bias", (5,), "y"))
