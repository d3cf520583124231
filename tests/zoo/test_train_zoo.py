from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

import mixar

pytest.importorskip("mixar_zoo", reason="plugins/mixar_zoo is not installed")

from benchmarks.train_zoo.__main__ import Job, Zoo
from benchmarks.train_zoo.family import EMOJI64
from benchmarks.train_zoo.measure import _mean_kernel
from benchmarks.train_zoo.worker import EARLY, LOOKS, Spec, Trial, early, fitting, planned
from mixar_core.training.callback import RunInfo, StepReport
from mixar_eval.distances import kernel_distance
from mixar_eval.probe import fit_probe

#: digits of nearly nothing
TINY = {
    "backbone": {"width": 32, "depth": 1, "heads": 2, "buffer": 1},
    "head": {"type": "diffusion", "depth": 1, "width": 16},
    "training.batch_size": 4,
    "training.cache": "none",
    "callbacks": [],
}


STEPS = {"training.steps": 5}


def zoo_in(folder: Path) -> Zoo:
    return Zoo(folder, family=EMOJI64)


def spec_of(**changes: object) -> Spec:
    return Spec("digits_quick", {**TINY, **changes}, time.time() + 2.0, "cpu")


def test_every_candidate_is_a_recipe_whose_parts_are_known():
    for stage in EMOJI64.stages.values():
        for name, run in stage.runs.items():
            if run.base is not None:
                recipe = mixar.load_recipe(run.base, {**run.changes, "training.steps": 1})
                assert recipe.image_size == EMOJI64.image_size
            needed = {
                *(n for names in run.frozen.values() for n in names),
                *run.continues,
                *([run.prior] * bool(run.prior)),
            }
            assert name not in needed
            assert all(EMOJI64.run(each) for each in needed)


def test_a_family_can_be_of_some_runs_only():
    few = EMOJI64.only(["p8", "m8"])
    assert [[*stage.runs] for stage in few.stages.values()] == [[], ["p8", "m8"], []]
    with pytest.raises(LookupError, match="no run m9"):
        EMOJI64.only(["p8", "m9"])


def test_steps_are_those_that_fit_and_a_trial_tells_how_many_a_second(tmp_path, monkeypatch):
    trial = Trial(seconds=1e9)
    run = RunInfo("r", tmp_path, 100, 1, first_step=0)
    for step, now in ((5, 100.0), (10, 108.0), (15, 109.0), (20, 110.0)):
        monkeypatch.setattr("benchmarks.train_zoo.worker.time.time", lambda now=now: now)
        trial.on_step(run, StepReport(step, {}, 0.1, 0.1, 1.0, 1.0, 0.0))
    assert trial.rate == pytest.approx(5.0)  # the first report has what is done once
    assert not trial.asked


def test_a_trial_stops_by_itself_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fitting(spec_of(), {**TINY, "training.log_every": 1}) >= LOOKS and not [*tmp_path.iterdir()]


def test_given_steps_stay_and_models_keep_states():
    changes = planned(spec_of(**{"training.steps": 80}))
    assert changes["training.steps"] == 80 and changes["training.checkpoint_every"] == 80 // LOOKS


def test_an_earlier_state_is_published_only_where_it_was_better(tmp_path):
    changes = {**TINY, "training.steps": 4, "training.checkpoint_every": 2, "training.evaluate_every": 2}
    changes |= {"training.keep_last": 9, "training.evaluate_batches": 1}
    run = tmp_path / "run"
    mixar.train(mixar.load_recipe("digits_quick", changes), run, device="cpu")
    for first, there in ((0.5, False), (0.1, True)):
        lines = [
            {"kind": "validation", "step": step, "losses": {"ema/loss": loss}} for step, loss in ((2, first), (4, 0.3))
        ]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        early(run, tmp_path / f"model{EARLY}")
        assert (tmp_path / f"model{EARLY}").exists() is there
    assert json.loads((tmp_path / f"model{EARLY}" / "provenance.json").read_text())["steps"] == 2
    assert mixar.load(tmp_path / f"model{EARLY}", device="cpu").class_names[3] == "3"


def test_the_kernel_distance_is_that_of_mixar_eval():
    noise = torch.Generator().manual_seed(0)
    one, other = torch.randn(40, 16, generator=noise), 0.5 + torch.randn(40, 16, generator=noise)
    cpu = torch.device("cpu")
    found = _mean_kernel(one, one, device=cpu) + _mean_kernel(other, other, device=cpu)
    found -= 2 * _mean_kernel(one, other, device=cpu)
    assert found == pytest.approx(kernel_distance(one, other), rel=1e-6)


def test_the_probe_finds_classes_that_a_plane_parts():
    noise = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(labels, 8).float() * 4 + torch.randn(60, 8, generator=noise) * 0.3
    assert fit_probe(features, labels.tolist(), 3).named(features, labels.tolist()).right == (20, 20, 20)


def test_the_best_is_what_the_judges_find_nearest_among_those_that_are_there(tmp_path):
    zoo = zoo_in(tmp_path)
    with pytest.raises(LookupError, match="none of c16, c16a"):
        zoo.chosen(("c16", "c16a"))
    for name in ("c16", "c16a", "m8", "p8"):
        zoo.model(name).mkdir(parents=True)
        (zoo.model(name) / "recipe.yaml").write_text("")
    assert zoo.chosen(("c16", "c16a")) == "c16"  # nothing measured: the first

    measured = [{"what": "c16 reconstructions", "judge": 0.3}, {"what": "c16a reconstructions", "judge": 0.2}]
    (tmp_path / "table.json").write_text(json.dumps(measured))
    assert zoo.chosen(("c16", "c16a")) == "c16a"
    measured.append({"what": "m8 + p8 samples", "judge": 0.1})
    (tmp_path / "table.json").write_text(json.dumps(measured))
    assert zoo.winner() == "m8" and zoo.prior_of("longer") == "p8"


def test_a_job_waits_for_what_it_builds_on_and_a_discriminator_begins_late(tmp_path):
    """Of candidates one is enough; a run's own steps are behind a part without the discriminator."""
    zoo, runs = zoo_in(tmp_path), EMOJI64.stages["finish"].runs
    assert Job.of("c16e", runs["c16e"], zoo).needs == {"c16d"} and Job.of("longer", runs["longer"], zoo).needs
    zoo.model("m8").mkdir(parents=True)
    (zoo.model("m8") / "recipe.yaml").write_text("")
    assert Job.of("longer", runs["longer"], zoo).needs == frozenset()
    of_codes = planned(Spec("emoji64_lfq", {"training.steps": 100}, 0.0))
    assert of_codes["adversarial.start_step"] == 40 and "adversarial.start_step" not in planned(spec_of(**STEPS))
