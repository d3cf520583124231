from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixar_core.errors import UserError
from mixar_core.training.callback import RunInfo, StepReport
from mixar_core.training.reference import Band, Reference
from mixar_plugins.callbacks.health import Health, HealthConfig
from mixar_plugins.callbacks.tensorboard import TensorBoard, TensorBoardConfig
from tests.core.training_toys import ToyObjective, toy_run


def info(folder: Path, *, first_step: int = 0, reference: Reference | None = None) -> RunInfo:
    return RunInfo("toy", folder, steps=1000, batch_size=8, first_step=first_step, reference=reference)


def report(step: int, losses: Mapping[str, float]) -> StepReport:
    return StepReport(step, {"loss": 1.0, **losses}, 1e-4, 2.0, 100.0, 1.0, 0.0)


def told(
    capsys: pytest.CaptureFixture[str], run: RunInfo, steps: Iterable[tuple[int, Mapping[str, float]]]
) -> list[str]:
    """What a new callback says on standard error of these reports."""
    health = Health(HealthConfig())
    health.on_start(run)
    for step, losses in steps:
        health.on_step(run, report(step, losses))
    return capsys.readouterr().err.splitlines()


COLLAPSED = {"codes_used": 0.03, "codes_perplexity": 4.2}
WRONG = {
    "codes collapse": COLLAPSED,
    "the posterior collapses": {"channels_used": 0.125},
    "latents blow up": {"latent_std": 1234.0},
    "the discriminator wins": {"discriminator": 0.02},
    "codes of discrete_tokenizer collapse": {f"discrete_tokenizer/{name}": value for name, value in COLLAPSED.items()},
}
WELL = {"codes_used": 0.6, "codes_perplexity": 300.0, "channels_used": 1.0, "latent_std": 4.3, "discriminator": 0.9}


@pytest.mark.parametrize("words", WRONG)
def test_what_lasts_is_told_once_with_what_to_do(tmp_path, capsys, words):
    lines = told(capsys, info(tmp_path), [(step, {**WELL, **WRONG[words]}) for step in range(10, 500, 10)])
    assert len(lines) == 1 and lines[0].startswith("warning: since step 0: ") and words in lines[0], lines
    assert "; try " in lines[0]
    (entry,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert entry["kind"] == "warning" and entry["step"] == 50 and lines[0].endswith(entry["text"])


def test_a_healthy_run_and_a_passing_state_are_not_told_of(tmp_path, capsys):
    assert told(capsys, info(tmp_path), [(step, WELL) for step in range(10, 500, 10)]) == []
    begins = [(step, COLLAPSED if step <= 40 else WELL) for step in range(10, 500, 10)]
    assert told(capsys, info(tmp_path), begins) == []
    assert told(capsys, info(tmp_path), [(200, COLLAPSED), (400, COLLAPSED)]) == [], "two reports are not a state"
    assert not (tmp_path / "log.jsonl").exists()


def test_it_is_told_again_only_where_it_became_worse_also_after_a_resume(tmp_path, capsys):
    worse = [(step, {**COLLAPSED, "codes_used": 0.04 if step < 200 else 0.01}) for step in range(10, 400, 10)]
    assert len(told(capsys, info(tmp_path), worse)) == 2
    again = [(step, {**COLLAPSED, "codes_used": 0.01}) for step in range(410, 600, 10)]
    assert told(capsys, info(tmp_path, first_step=400), again) == []


# ---------------------------------------------------------------- reference curves


def good_runs(folder: Path, seeds: Iterable[int], **changed) -> list[Path]:
    logs = []
    for seed in seeds:
        toy_run(folder / f"{seed}", objective=ToyObjective(), steps=80, seed=seed, log_every=5, **changed)
        logs.append(folder / f"{seed}" / "log.jsonl")
    return logs


def losses_of(log: Path) -> list[tuple[int, Mapping[str, float]]]:
    return [(line["step"], line["losses"]) for line in map(json.loads, log.read_text().splitlines())]


def test_a_run_that_leaves_the_band_is_told_of_and_one_that_stays_is_not(tmp_path, capsys):
    reference = Reference.of(good_runs(tmp_path / "good", (0, 1, 2)), seeds=[0, 1, 2])
    assert reference.steps == 80 and reference.runs == 3 and set(reference.bands) == {"train/loss", "run/gradient_norm"}

    def warned(folder: Path, **changed) -> list[str]:
        (log,) = good_runs(folder, (7,), **changed)
        return told(capsys, info(folder, reference=reference), losses_of(log))

    assert warned(tmp_path / "another seed") == []
    (line,) = warned(tmp_path / "broken", learning_rate=1e-5)
    assert "train/loss is" in line and "above its reference" in line


def test_validation_is_held_beside_its_own_band(tmp_path, capsys):
    band = Band((100, 300), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3))
    run = info(tmp_path, reference=Reference(300, 3, {"validation/ema/loss": band}))
    health = Health(HealthConfig())
    health.on_start(run)
    for step, loss in ((50, 9.0), (100, 0.25), (200, 0.5), (300, 0.55), (400, 9.0)):
        health.on_evaluation(run, step, {"ema/loss": loss, "raw/loss": 9.0})
        health.on_step(run, report(step, {}))
    (line,) = capsys.readouterr().err.splitlines()
    assert "since step 200: validation/ema/loss is 0.55, above" in line


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=12, max_size=12), min_size=1, max_size=4),
    st.integers(1, 100),
)
def test_every_run_that_a_band_is_made_of_lies_in_it(values, spacing):
    runs = [{(n + 1) * spacing: value for n, value in enumerate(run)} for run in values]
    band = Band.of(runs)
    for run in runs:
        for step, value in run.items():
            low, middle, high = band.at(step)
            slack = 1e-3 * max(1.0, abs(value), abs(low), abs(high))
            assert low - slack <= value <= high + slack and low <= middle <= high
    assert band.at(spacing - 1) is None and band.at(12 * spacing + 1) is None


def test_curves_are_read_as_they_were_written_and_small(tmp_path):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(5000, generator=generator).tolist()
    bands = {name: Band.of([{10 * n: value for n, value in enumerate(noise, 1)}]) for name in ("train/loss", "other")}
    reference = Reference(50_000, 1, bands, {"seeds": [0]})
    reference.write(tmp_path / "x.curve.json")
    assert Reference.read(tmp_path / "x.curve.json") == reference
    assert (tmp_path / "x.curve.json").stat().st_size < 4000
    (tmp_path / "x.curve.json").write_text('{"steps": 3}')
    with pytest.raises(UserError, match="holds no reference curves"):
        Reference.read(tmp_path / "x.curve.json")


def test_tensorboard_draws_the_reference_into_the_runs_own_charts(tmp_path):
    band = Band((10, 20), (1.0, 0.5), (2.0, 1.5), (3.0, 2.5))
    run = info(tmp_path, reference=Reference(20, 3, {"train/loss": band}))
    board = TensorBoard(TensorBoardConfig())
    board.on_start(run)
    board.on_step(run, report(10, {}))
    board.on_end(run, 10)
    for side, values in (("low", [1.0, 0.5]), ("middle", [2.0, 1.5]), ("high", [3.0, 2.5])):
        events = EventAccumulator(str(tmp_path / "tensorboard" / f"reference_{side}"))
        events.Reload()
        assert [(event.step, event.value) for event in events.Scalars("train/loss")] == list(
            zip((10, 20), values, strict=True)
        )
