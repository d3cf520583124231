"""l-DeTok's file with its stats.pkl; and that a pickle of statistics makes numbers and nothing else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from mixar.assembly import build
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_import.imports import import_weights
from mixar_import.statistics import read_statistics
from tests.parity.case import load_case
from tests.weights.files import CASES

SMALL = """
    extends: detok_bb
    image_size: 32
    continuous_tokenizer:
      {latent_channels: 6, patch: 8, width: 32, depth: 2, heads: 2,
      decoder_width: 48, decoder_depth: 2, decoder_heads: 3}
"""


def pickled(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def stats(*channels: Any) -> dict[str, Any]:
    """As the authors' code collects it."""
    return {
        "detok-BB-gamm3.0-m0.7": {"single": (0.1, 1.5), "channel": channels},
        "another": {"single": (0.0, 1.0), "channel": channels},
    }


def test_detok_becomes_a_model_with_its_statistics(tmp_path: Path, registry: Registry) -> None:
    case = load_case(CASES / "detok_tokenizer")
    last = {name: torch.zeros_like(tensor) for name, tensor in case.weights.items()}
    content = {
        "model": last,
        "model_ema": case.weights,
        "optimizer": {"state": {}},
        "epoch": 3,
        "loss_scaler": {"scale": 1.0},
    }
    torch.save(content, tmp_path / "detok.pth")
    (tmp_path / "small.yaml").write_text(dedent(SMALL))
    mean, std = (torch.cat([case.io[name], torch.full((6,), 7.0)]) for name in ("stats_mean", "stats_std"))
    file = pickled(tmp_path / "stats.pkl", stats(mean.numpy(), std))

    def take(name: str, **named: Any) -> ContinuousTokenizer:
        asked = {"recipe": str(tmp_path / "small.yaml"), **named}
        done = import_weights("detok", str(tmp_path / "detok.pth"), tmp_path / name, registry, **asked)
        assert ("statistics" in named) != any("no --statistics given" in remark for remark in done.remarks)
        recipe = load_recipe(tmp_path / name / "recipe.yaml", registry=registry)
        built = build(recipe, registry, trained_weights=tmp_path / name / "weights.safetensors").trained.eval()
        assert isinstance(built, ContinuousTokenizer)
        return built

    with torch.no_grad():
        tokenizer = take("with", statistics=str(file))
        torch.testing.assert_close(tokenizer.encode(case.io["images"]), case.io["tokenized"], rtol=1e-4, atol=1e-4)
        decoded = (tokenizer.decode(case.io["tokenized"]) + 1) / 2
        torch.testing.assert_close(decoded, case.io["detokenized"], rtol=1e-4, atol=1e-4)
        bare = take("without").encode(case.io["images"])
        torch.testing.assert_close(bare, case.io["tokenized_plain"], rtol=1e-4, atol=1e-4)
        assert not take("raw", raw=True).encode(case.io["images"]).any()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (stats(torch.ones(6), torch.ones(6)), "has no mean and std of 12 channels each under detok-BB-gamm3.0-m0.7"),
        ({"another": {"channel": ([1.0] * 12, [1.0] * 12)}}, "channel; it has another"),
        (stats([0.0] * 12, [0.0] * 12), "mean and std must be finite, and std above 0"),
        (stats(np.ones(12), "twelve"), "detok-BB-gamm3.0-m0.7.channel.1 is of type str: statistics are numbers"),
    ],
)  # fmt: skip
def test_other_statistics_are_refused(content: object, complaint: str, tmp_path: Path, registry: Registry) -> None:
    torch.save(load_case(CASES / "detok_tokenizer").weights, tmp_path / "detok.pth")
    (tmp_path / "small.yaml").write_text(dedent(SMALL))
    file = pickled(tmp_path / "stats.pkl", content)
    with pytest.raises(UserError, match=complaint):
        import_weights(
            "detok", str(tmp_path / "detok.pth"), tmp_path / "out", registry,
            recipe=str(tmp_path / "small.yaml"), statistics=str(file),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


class Hostile:
    """What it would run when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Hostile(os.system, "touch harmed"), r"holds a posix\.system, which is refused"),
        ({"a": Hostile(eval, "1")}, r"holds a builtins\.eval, which is refused"),
        ({"a": Path("x")}, "a is of type .*Path: statistics are numbers"),
        ([Hostile(torch.nn.Linear, 1, 1)], r"holds a torch\.nn\.modules\.linear\.Linear, which is refused"),
    ],
)  # fmt: skip
def test_a_pickle_makes_numbers_and_nothing_else(
    content: object, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=named):
        read_statistics(pickled(tmp_path / "stats.pkl", content), where="stats.pkl")
    assert not (tmp_path / "harmed").exists()


def test_damaged_and_missing_pickles_are_one_line(tmp_path: Path) -> None:
    whole = pickled(tmp_path / "stats.pkl", stats([0.0] * 12, [1.0] * 12)).read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "stats.pkl").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="is no pickle of numbers"):
            read_statistics(tmp_path / "stats.pkl", where="stats.pkl")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_statistics(tmp_path / "none.pkl", where="none.pkl")
