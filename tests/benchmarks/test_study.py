"""What the studies of digits share: figures are kept with a run, and told of with their spread."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import typer

pytest.importorskip("mixar_zoo", reason="plugins/mixar_zoo is not installed")
pytest.importorskip("mixar_eval", reason="plugins/mixar_eval is not installed")

from benchmarks import hart, heads, study
from mixar_zoo.classifier import DigitClassifier


def test_names_are_known_ones() -> None:
    assert study.names("flow,mse", heads.HEADS) == ["flow", "mse"] and study.numbers("0,2") == [0, 2]
    with pytest.raises(typer.BadParameter, match=r"unknown: flw; allowed: diffusion, flow"):
        study.names("flw,mse", heads.HEADS)


@pytest.mark.parametrize(
    ("values", "told"),
    [([0.5], "0.5"), ([0.5, 0.5], "0.5"), ([1.0, 3.0], "2 ± 1"), ([], ""), ([1500], "1,500"), (["a", "a"], "a")],
)
def test_a_spread_is_mean_and_standard_deviation(values: list[object], told: str) -> None:
    assert study.spread(values) == told


def test_a_run_is_measured_once_and_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def measure(run: Path, about: study.Row) -> study.Found:
        asked.append(run.name)
        row = {"loss": 1.0 + 2 * about["seed"], "codes": None if about["arm"] == "plain" else 7}
        return [row], {about["arm"]: torch.full((2, 3, 8, 8), about["seed"], dtype=torch.uint8)}

    for _ in range(2):
        for arm, seed in (("plain", 0), ("plain", 1), ("other", 0)):
            (tmp_path / f"{arm}-{seed}").mkdir(exist_ok=True)
            study.measured(tmp_path / f"{arm}-{seed}", measure, arm=arm, seed=seed)
    assert asked == ["plain-0", "plain-1", "other-0"]
    study.report(tmp_path / "results/arms", tmp_path, ["arm"], ["plain", "other"])
    with (tmp_path / "results/arms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["loss"], row["codes"]) for row in rows] == [
        ("plain", "0", "1", ""), ("plain", "1", "3", ""), ("other", "0", "1", "7"),
    ]  # fmt: skip
    assert "| plain | 2 | 2 ± 1 |  |" in (said := capsys.readouterr().out) and "| other | 1 | 1 | 7 |" in said
    assert (tmp_path / "results/arms.png").stat().st_size > 500


def test_the_loss_of_a_run_is_the_last_that_was_validated(tmp_path: Path) -> None:
    lines = [{"kind": "validation", "step": step, "losses": {"ema/loss": 1.0 / step}} for step in (2, 4)]
    lines.insert(1, {"kind": "train", "step": 3, "losses": {"loss": 9.0}})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [*study.losses_of(tmp_path)] == [2, 4] and study.last_loss(tmp_path) == 0.25


def test_mixar_over_the_residual_is_trained_measured_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hart, "ARMS", {"residual": "hart-residual"})
    monkeypatch.setattr(hart, "TOKENIZER", {**hart.TOKENIZER, "channels": 4, "channel_multipliers": [1, 1, 1, 1]})
    small = {"width": 16, "depth": 1, "heads": 2, "context_width": 8, "mlp_width": 16}
    monkeypatch.setattr(hart, "PRIOR", {**hart.PRIOR, **small})
    judge = DigitClassifier().eval().requires_grad_(False)  # that has learned nothing
    monkeypatch.setattr(study, "judge", lambda: study.Judge(judge, judge.judge(study.digits("validation")[0])[1]))
    hart.main("0", tmp_path / "hart", tmp_path / "results", quick=True)
    with (tmp_path / "results/hart.csv").open() as file:
        told = [(row["what"], row["arm"], row["codes"], bool(row["psnr"])) for row in csv.DictReader(file)]
    assert told == [
        ("codes alone", "", "drawn", False), ("codes alone", "", "true", True),
        ("mixar", "residual", "drawn", False), ("mixar", "residual", "true", True),
        ("reconstructed", "residual", "true", True),
    ]  # fmt: skip
    assert (tmp_path / "results/hart.png").stat().st_size > 500
    assert "| reconstructed | residual | true | 1 |" in capsys.readouterr().out
