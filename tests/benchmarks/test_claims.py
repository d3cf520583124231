"""The claims' plan, runner and reports; and two of them from training to report, in miniature."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import product

import pytest
import torch
from attrs import asdict, frozen
from typer.testing import CliRunner

pytest.importorskip("mixar_zoo", reason="plugins/mixar_zoo is not installed")
pytest.importorskip("mixar_eval", reason="plugins/mixar_eval is not installed")

import typer

from benchmarks import runner
from benchmarks.claims import __main__ as program
from benchmarks.claims.claim import Expected
from benchmarks.claims.judging import FIGURES
from benchmarks.claims.parts import registry_with_parts
from benchmarks.claims.plan import CLAIMS, PARTS, few, jobs_of
from benchmarks.claims.report import report, spikes, verdict
from benchmarks.runner import Desk
from mixar import build, load_recipe
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.types import DrawnCodes, MaskSplit, Step, TokenBatch

#: codes of the shipped prior that the claims below draw
SHIPPED = ("digits_prior-prior",)


@pytest.mark.parametrize("quick", [False, True])
def test_jobs_come_behind_what_they_build_on_and_do_everything_once(quick):
    jobs = jobs_of(CLAIMS.values(), quick=quick)
    placed, drawn = set(), []
    for job in jobs:
        assert job.needs <= placed, job.name
        placed.add(job.run)
        drawn += [(job.run, each.name) for each in job.sets]
    assert len(set(drawn)) == len(drawn) and len({job.name for job in jobs}) == len(jobs)
    entries = [entry for claim in CLAIMS.values() for entry in (few(claim) if quick else claim.entries)]
    assert {(entry.training.name, entry.drawn.name) for entry in entries} == set(drawn)


def test_equal_names_mean_equal_runs_and_arms_have_three_seeds():
    runs = {}
    for claim in CLAIMS.values():
        for entry in claim.entries:
            assert runs.setdefault(entry.training.name, entry.training) == entry.training
        for arm, x in {(entry.arm, entry.x) for entry in claim.entries}:
            seeds = [e.training.seed for e in claim.entries if (e.arm, e.x) == (arm, x)]
            assert sorted(seeds) == [0, 1, 2], (claim.name, arm, x)
        for expected in claim.expected:
            assert {expected.lower, expected.higher} <= {entry.arm for entry in claim.entries}
    assert all(PARTS[name].name == name for name in PARTS)


def test_codes_in_the_encoder_change_nothing_else_of_the_backbone():
    registry = registry_with_parts()
    runs = {entry.training.name: entry.training for entry in CLAIMS["fill-where"].entries}
    one, other = (
        load_recipe(runs[name].recipe, dict(runs[name].changes), registry=registry).backbone
        for name in ("dc-mix-0", "fill-in-the-encoder-0")
    )
    assert (one.type, other.type) == ("masked", "early-mixing")
    assert asdict(one.config) == asdict(other.config)


def test_two_claims_from_training_to_report(tmp_path):
    names = "ti-mix,figure-2"
    app = typer.Typer()
    app.command()(program.main)
    said = CliRunner().invoke(app, [names, "--quick", "--jobs", "0", "--out", str(tmp_path)])
    assert said.exit_code == 0, said.output
    for name in names.split(","):
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 1000
        text = (tmp_path / "results" / f"{name}.md").read_text()
        assert "one seed, no verdict" in text and "The floor, 20 real images" in text
    training = json.loads((tmp_path / "measured/dc-mix+plain-0/training.json").read_text())
    assert training["steps"] == 2 and len(training["norms"]) == 2 and training["loss"] > 0
    figures = json.loads((tmp_path / "measured/dc-mix+plain-0/prior-4x25-t1.json").read_text())
    assert {*FIGURES} <= figures.keys()
    drawn = {file.stem for file in (tmp_path / "codes").iterdir()}  # of each prior its own
    assert drawn == {f"{name}-0" for name in (*("digits-prior-50-0-prior", "digits-prior-150-0-prior"), *SHIPPED)}
    assert not (tmp_path / "runs/dc-mix-0/checkpoints").exists()
    assert runner.to_do(program.tasks_of(names.split(","), quick=True), Desk(tmp_path, quick=True)) == []
    (tmp_path / "runs/dc-mix-0/weights.safetensors").unlink()  # nothing that is left to do needs it
    (tmp_path / "measured/dc-mix+plain-0/prior-4x25-t1.json").unlink()
    again = runner.to_do(program.tasks_of(names.split(","), quick=True), Desk(tmp_path, quick=True))
    assert {task.run for task in again} == {"dc-mix-0", "dc-mix+plain-0"}


def test_every_claim_is_reported_from_its_figures_and_what_people_wrote_stays(tmp_path):
    desk, draw = Desk(tmp_path), random.Random(0)
    for claim, data in product(CLAIMS.values(), ("digits", "emoji")):
        (tmp_path / "measured").mkdir(exist_ok=True)
        floor = {**dict.fromkeys(FIGURES, 0.5), "count": 500}
        (tmp_path / "measured" / f"real-{data}.json").write_text(json.dumps(floor))
        for entry in claim.entries:
            folder = tmp_path / "measured" / entry.training.name
            folder.mkdir(exist_ok=True)
            log = {
                "losses": [1.0, 2.0],
                "norms": [1.0, 3.0],
                "seconds_a_step": 0.1,
                "parameters": 7,
                "loss": draw.random(),
            }
            log["curve"] = {"1": 2.0, "2": log["loss"]}
            (folder / "training.json").write_text(json.dumps(log))
            figures = {name: draw.random() for name in FIGURES} | {"seconds_an_image": 0.01}
            (folder / f"{entry.drawn.name}.json").write_text(json.dumps(figures))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/guidance.md").write_text("Earlier figures.\n\n## What it says\n\nMine.\n")
    for claim in CLAIMS.values():
        report(claim.name, desk, tmp_path / "results")
        text = (tmp_path / "results" / f"{claim.name}.md").read_text()
        assert "not measured" not in text and all(expected.says in text for expected in claim.expected)
        rows = (tmp_path / "results" / f"{claim.name}.csv").read_text().splitlines()
        assert len(rows) == 1 + len(claim.entries)
    text = (tmp_path / "results/guidance.md").read_text()
    assert text.endswith("## What it says\n\nMine.\n") and "Earlier figures" not in text


@pytest.mark.parametrize(
    "changes", [{"injector": {"type": "dc-mix-learned"}}, {"backbone.type": "early-mixing"}], ids=["learned", "early"]
)
def test_the_parts_of_a_claim_train_and_draw(changes):
    small = {
        "backbone.width": 16,
        "backbone.depth": 1,
        "head.width": 16,
        "head.depth": 1,
        "ti_mix.schedule": "constant",
    }
    registry = registry_with_parts()
    system = build(load_recipe("digits_quick", {**small, **changes}, registry=registry), registry, load_weights=False)
    model, noise = system.model, Noise.seeded(0)
    latents, codes = torch.randn(2, 16, 4, 4), torch.randint(1023, (2, 16))
    model.train()
    condition = model.condition(torch.tensor([0, 1]))
    model.loss(TokenBatch(latents, codes, condition.labels_B), noise=noise).total.backward()
    assert all(p.grad is not None for p in model.trained["injector"].parameters())
    model.eval()
    positions_BK = torch.arange(16).expand(2, -1)
    states = [
        model.backbone.start(condition, model.guidance(DrawnCodes(each)), guided=False) for each in (codes, codes + 1)
    ]
    one, other = (state.predict(positions_BK, Step()).cond_BKD for state in states)
    assert not torch.allclose(one, other), "the codes say nothing"
    known_BU, masked_BK = positions_BK[:, :6], positions_BK[:, 6:]
    tokens_BNC = torch.randn(2, 16, model.backbone.token_dim)
    states[0].reveal(known_BU, tokens_BNC[:, :6])
    trained = model.backbone(tokens_BNC, MaskSplit(known_BU, masked_BK), condition, states[0].guidance)
    torch.testing.assert_close(states[0].predict(masked_BK, Step()).cond_BKD, trained, msg="it samples as it trains")
    settings = SamplingConfig(steps=3, head_steps=2)
    drawn = model.generate(condition, settings=settings, noise=noise, codes_BN=codes)
    assert drawn.images_B3HW.shape == (2, 3, 32, 32) and drawn.images_B3HW.isfinite().all()


def test_a_verdict_needs_more_than_the_spread():
    def said(*pairs):
        rows = [
            {"arm": arm, "x": None, "seed": seed, "loss": value}
            for seed, pair in enumerate(pairs)
            for arm, value in zip(("new", "old"), pair, strict=True)
        ]
        return verdict(Expected("", "loss", "new", "old"), rows)

    assert said((1.0, 2.0), (1.1, 2.2), (0.9, 1.8)).startswith("holds (loss 1 against 2; 3 pairs")
    assert said((2.0, 1.0), (2.2, 1.1), (1.8, 0.9)).startswith("the other way round")
    assert said((1.0, 2.0), (2.2, 1.0), (0.9, 1.8)).startswith("not beyond the spread")
    assert said((1.0, 2.0)).startswith("one seed, no verdict")
    assert said() == "not measured"


def test_spikes_are_what_stands_out_of_its_neighbours():
    steady = [1.0 + 0.01 * (i % 3) - 0.001 * i for i in range(100)]
    assert spikes(steady) == 0.0
    steady[40] = steady[70] = 2.0
    assert spikes(steady) == 0.02


@frozen
class Sleeper:
    """A job that writes a file, or fails, or sleeps."""

    name: str
    code: str = "pass"
    needs: frozenset[str] = frozenset()
    threads: int = 1

    @property
    def run(self) -> str:
        return self.name

    def done(self, desk: Desk) -> bool:
        return desk.has(self.name)


def test_the_runner_outlives_a_failure_and_stops_in_time(tmp_path, monkeypatch, capsys):
    desk, order = Desk(tmp_path), tmp_path / "order"

    def start(task, desk, of):
        folder = desk.folder(task.name)
        folder.mkdir(parents=True, exist_ok=True)
        good = f"open({str(folder / 'weights.safetensors')!r}, 'w'); open({str(order)!r}, 'a').write({task.name!r})"
        return subprocess.Popen([sys.executable, "-c", f"{task.code}; {good}"], stderr=subprocess.DEVNULL)

    monkeypatch.setattr(runner, "_start", start)
    tasks = [
        Sleeper("b", needs=frozenset("a")),
        Sleeper("x", "raise SystemExit(1)"),
        Sleeper("y", needs=frozenset("x")),
        Sleeper("a"),
    ]
    outcome = runner.run_all(tasks, desk, of=(), jobs=2, limit_s=None)
    assert outcome == runner.Outcome(("x",), 1)
    assert order.read_text() == "ab" and "FAILED x" in capsys.readouterr().out
    assert [task.name for task in runner.to_do(tasks, desk)] == ["x", "y"]
    late = [Sleeper("long", "import time; time.sleep(60)"), Sleeper("never")]
    monkeypatch.setattr(runner, "LAST", 0.3)
    outcome = runner.run_all(late, desk, of=(), jobs=1, limit_s=runner.GRACE + 0.5)
    assert outcome == runner.Outcome((), 2)
