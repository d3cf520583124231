"""The trainer on toys: what a run leaves, how it stops and goes on, and that sharing the batch changes nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixar.folder import weights_file
from mixar_core import storage as files
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_core.mixture import TIMixConfig
from mixar_core.model import SamplingConfig
from mixar_core.training import trainer
from mixar_core.training.callback import Callback
from mixar_core.training.checkpoint import list_checkpoints, own_part, read_sharded
from mixar_core.training.objective import MixARObjective
from tests.core.training_toys import ToyImages, ToyObjective, toy_run
from tests.toys import small_mixar


class Watch(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.calls, self.reports, self.previews = stop_at, [], [], []

    def on_start(self, run):
        self.calls.append(("start", run.first_step))

    def on_step(self, run, report):
        self.reports.append(report)
        if report.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluation(self, run, step, losses):
        self.calls.append(("evaluation", step))

    def on_preview(self, run, step, rows):
        self.previews.append(rows)
        self.calls.append(("preview", step))

    def on_checkpoint(self, run, step, path):
        self.calls.append(("checkpoint", step))

    def on_end(self, run, step):
        self.calls.append(("end", step))


def losses(folder: Path, kind: str = "train") -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    key = "loss" if kind == "train" else "ema/loss"
    return [line["losses"][key] for line in lines if line["kind"] == kind]


def weights(folder: Path, name: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("weights", "weights_raw"):
        a, b = weights(one, name), weights(other, name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def mixar_objective(**settings) -> MixARObjective:
    model = small_mixar(**settings)
    model.ti_mix = TIMixConfig(schedule="linear")
    return MixARObjective(model, SamplingConfig())


def test_a_run_learns_and_leaves_both_sets_of_weights(tmp_path):
    result = toy_run(tmp_path / "run", steps=80)
    curve = losses(tmp_path / "run")
    assert len(curve) == 80 and sum(curve[-10:]) < 0.3 * sum(curve[:10])
    assert not result.stopped and result.step == 80
    raw, averaged = weights(tmp_path / "run", "weights_raw"), weights(tmp_path / "run")
    assert not torch.equal(raw["head.weight"], averaged["head.weight"])
    # what the objective measures at the end belongs to the weights it was measured with
    for tensors in (raw, averaged):
        assert tensors["seen"].item() == pytest.approx(20 + tensors["head.bias"].sum().item())


def test_callbacks_see_the_run(tmp_path):
    watch = Watch()
    toy_run(
        tmp_path / "run",
        validation=ToyImages(10),
        callbacks=[watch],
        evaluate_every=4,
        preview_every=3,
        checkpoint_every=5,
        log_every=2,
        preview_images=3,
    )
    assert watch.calls == [
        ("start", 0),
        ("preview", 3),
        ("evaluation", 4),
        ("checkpoint", 5),
        ("evaluation", 6),
        ("preview", 6),
        ("checkpoint", 6),
        ("end", 6),
    ]
    assert [report.step for report in watch.reports] == [2, 4, 6]
    report = watch.reports[0]
    assert set(report.losses) == {"loss", "share"} and report.images_per_second > 0 and report.seconds_left > 0
    assert watch.previews[0]["real"].shape == (3, 3, 16, 16)
    averaged = weights(tmp_path / "run")["head.weight"]
    assert torch.equal(watch.previews[-1]["weight"][0, :, 0], averaged)


@pytest.mark.parametrize("make", [ToyObjective, mixar_objective])
@pytest.mark.parametrize("micro", [4, 3])
def test_micro_batches_change_nothing(tmp_path, make, micro):
    settings = {"flip": True, "validation": ToyImages(12), "evaluate_every": 2}
    toy_run(tmp_path / "whole", objective=make(), **settings)
    toy_run(tmp_path / "micro", objective=make(), micro_batch=micro, **settings)
    for kind in ("train", "validation"):
        assert losses(tmp_path / "micro", kind) == pytest.approx(losses(tmp_path / "whole", kind), rel=1e-5)


def test_kept_tokens_change_nothing(tmp_path, capsys):
    settings = {"flip": True, "validation": ToyImages(12), "evaluate_every": 2}
    toy_run(tmp_path / "images", objective=mixar_objective(), **settings)
    assert "kept" not in capsys.readouterr().err
    toy_run(tmp_path / "tokens", objective=mixar_objective(), cache="memory", **settings)
    said = [line for line in capsys.readouterr().err.splitlines() if "training.cache: memory" in line]
    assert [line.partition("the ")[2].partition(" split is kept as ")[0] for line in said] == ["training", "validation"]
    assert "12 encoded images, 0." in said[1]
    for kind in ("train", "validation"):
        assert losses(tmp_path / "tokens", kind) == pytest.approx(losses(tmp_path / "images", kind), rel=1e-5)


@pytest.mark.parametrize("make", [lambda: ToyObjective(dropout=0.3), lambda: mixar_objective(dropout=0.1)])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, make):
    settings = {"flip": True, "schedule": "cosine", "validation": ToyImages(10), "evaluate_every": 2}
    toy_run(tmp_path / "whole", objective=make(), **settings)
    stopped = toy_run(tmp_path / "parts", objective=make(), callbacks=[Watch(stop_at=3)], **settings)
    assert stopped.stopped and stopped.step == 4
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    watch = Watch()
    ended = toy_run(tmp_path / "parts", objective=make(), callbacks=[watch], resume=True, **settings)
    assert watch.calls[0] == ("start", 4) and not ended.stopped
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_run_that_died_goes_on_from_its_checkpoint(tmp_path):
    toy_run(tmp_path / "whole", checkpoint_every=2)
    with pytest.raises(UserError, match=r"step 6: not finite: loss, gradient norm; first in process 0"):
        toy_run(tmp_path / "died", objective=ToyObjective(bad_step=5), checkpoint_every=2)
    with (tmp_path / "died" / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')
    assert [path.name for path in list_checkpoints(tmp_path / "died")] == ["step-00000002", "step-00000004"]
    toy_run(tmp_path / "died", resume=True, checkpoint_every=2)
    assert_same_weights(tmp_path / "whole", tmp_path / "died")
    assert losses(tmp_path / "whole") == losses(tmp_path / "died")


def test_a_finished_run_can_be_made_longer(tmp_path):
    toy_run(tmp_path / "whole", steps=9)
    toy_run(tmp_path / "parts", steps=6)
    toy_run(tmp_path / "parts", steps=9, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_weights_of_an_end_that_is_no_end_any_more_are_removed(tmp_path):
    toy_run(tmp_path / "run")
    before = weights(tmp_path / "run")
    assert toy_run(tmp_path / "run", resume=True).step == 6  # there is nothing to do
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "run").items())
    with pytest.raises(UserError, match="batch_size was 8, is 4"):
        toy_run(tmp_path / "run", steps=12, batch_size=4, resume=True)
    assert weights(tmp_path / "run") and weights(tmp_path / "run", "weights_raw")
    assert toy_run(tmp_path / "run", steps=12, callbacks=[Watch(stop_at=9)], resume=True).step == 10
    assert not [*(tmp_path / "run").glob("*.safetensors")]
    assert weights_file(tmp_path / "run").parent.name == "step-00000010"


def test_the_processs_own_precision_comes_back_after_a_run(tmp_path, monkeypatch):
    seen = []

    def fail(*_):
        seen.append(torch.get_float32_matmul_precision())
        raise UserError("stop here")

    monkeypatch.setattr(trainer, "Trainer", fail)
    before = torch.get_float32_matmul_precision()
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(trainer, "join_processes", lambda _, name=device: Processes(0, 1, torch.device(name)))
        with pytest.raises(UserError, match="stop here"):
            toy_run(tmp_path / "run", precision="bf16")
        assert torch.get_float32_matmul_precision() == before
    assert seen == ["high", before] and before == "highest"


def test_a_run_whose_loss_ends_somewhere_keeps_its_length(tmp_path):
    toy_run(tmp_path / "run", objective=mixar_objective(), steps=3)
    with pytest.raises(UserError, match="steps was 3, is 6"):  # lambda would jump
        toy_run(tmp_path / "run", objective=mixar_objective(), steps=6, resume=True)


def test_the_last_checkpoints_are_kept(tmp_path):
    toy_run(tmp_path / "run", checkpoint_every=1, keep_last=3)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005", "step-00000006"]


def test_every_nth_checkpoint_is_kept_for_good(tmp_path):
    toy_run(tmp_path / "run", steps=9, checkpoint_every=1, keep_last=2, keep_every=4)
    assert [path.name[-1] for path in list_checkpoints(tmp_path / "run")] == ["4", "8", "9"]


def test_checkpoints_in_the_background_are_the_same(tmp_path):
    watch = Watch()
    for name, background in (("whole", False), ("run", True)):
        settings = {"checkpoint_every": 1, "keep_last": 6, "background_checkpoints": background}
        toy_run(tmp_path / name, callbacks=[watch], **settings)
    assert [call[1] for call in watch.calls if call[0] == "checkpoint"] == [1, 2, 3, 4, 5, 6] * 2
    for ours, theirs in zip(*(list_checkpoints(tmp_path / name) for name in ("whole", "run")), strict=True):
        for part in ("raw", "ema", "optimizer"):
            a, b = read_sharded(ours / part), read_sharded(theirs / part)
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume"):
        toy_run(tmp_path / "run", resume=True)
    toy_run(tmp_path / "run")
    with pytest.raises(UserError, match="not an empty folder"):
        toy_run(tmp_path / "run")
    with pytest.raises(UserError, match="batch_size was 8, is 4"):
        toy_run(tmp_path / "run", resume=True, batch_size=4)
    with pytest.raises(UserError, match="images was 20, is 21"):
        toy_run(tmp_path / "run", resume=True, data=ToyImages(21))


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    toy_run(tmp_path / "whole", checkpoint_every=2)
    toy_run(tmp_path / "run", checkpoint_every=2)
    older, newer = list_checkpoints(tmp_path / "run")
    (file,) = (newer / "optimizer").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    toy_run(tmp_path / "run", checkpoint_every=2, resume=True)
    assert f"not resumed from {newer}: optimizer/{file.name} has" in capsys.readouterr().err
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    for checkpoint in (older, newer):  # one bit of each
        (file,) = (checkpoint / "ema").iterdir()
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"no whole checkpoint.*ema/.*checksum.*ema/.*checksum"):
        toy_run(tmp_path / "run", checkpoint_every=2, resume=True)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_is_not_one_of_the_last_that_are_kept(tmp_path, capsys, keep):
    run, watch = tmp_path / "run", Watch()
    toy_run(run, checkpoint_every=2)
    newest = list_checkpoints(run)[-1]
    (newest / "run.json").write_text("{}")
    toy_run(run, steps=5, checkpoint_every=1, keep_last=keep, resume=True, callbacks=[watch])
    assert [path.name[-1] for path in list_checkpoints(run)] == ["4", "5"][-keep:]
    assert [call for call in watch.calls if call[0] == "checkpoint"] == [("checkpoint", 5)]
    assert (newest.parent / f"{newest.name}.damaged").is_dir()
    assert f"warning: {newest} is damaged, and is kept as {newest.name}.damaged\n" in capsys.readouterr().err
    toy_run(run, checkpoint_every=1, keep_last=keep, resume=True)
    toy_run(tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", run)


def test_each_process_copies_and_writes_its_part_of_the_weights():
    tensors = {f"{key}.{name}": torch.zeros(name) for name in (7, 1000, 400, 600) for key in ("step", "exp_avg")}
    parts = [own_part(tensors, Processes(rank, 3, torch.device("cpu"))) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(tensors)
    sizes = [sum(tensor.numel() for tensor in part.values()) for part in parts]
    assert max(sizes) < 1.2 * min(sizes)


def test_another_model_is_not_resumed(tmp_path):
    toy_run(tmp_path / "run", objective=mixar_objective())
    with pytest.raises(UserError, match="does not fit what is trained"):
        toy_run(tmp_path / "run", objective=mixar_objective(depth=1), resume=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_stops_the_run_with_its_checkpoint_intact(tmp_path, background):
    """The file system's own refusal: no file may grow beyond a size that only the second checkpoint's files exceed."""

    class Fill(Callback):
        def on_step(self, run, report):  # the first one is complete, and said to be, before the second one begins
            until = time.monotonic() + 60
            while report.step == 3 and not (run.folder / "checkpoints/step-00000002").is_dir():
                assert time.monotonic() < until
                time.sleep(0.1)

        def on_checkpoint(self, run, step, path):
            largest = max(file.stat().st_size for file in path.rglob("*.safetensors"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    settings = {"checkpoint_every": 2, "background_checkpoints": background, "callbacks": [Fill()]}
    try:
        with pytest.raises(UserError, match=r"step-0000000[46].* cannot be written: File too large"):
            toy_run(tmp_path / "run", **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    toy_run(tmp_path / "whole", checkpoint_every=2)
    toy_run(tmp_path / "run", checkpoint_every=2, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        toy_run(tmp_path / "file" / "run")


def test_validation_curves_compare_between_runs(tmp_path):
    settings = {"validation": ToyImages(12), "evaluate_every": 2, "learning_rate": 1e-12}
    toy_run(tmp_path / "one", seed=1, **settings)
    toy_run(tmp_path / "other", seed=2, **settings)
    assert losses(tmp_path / "one", "validation") == pytest.approx(losses(tmp_path / "other", "validation"))
    assert losses(tmp_path / "one") != pytest.approx(losses(tmp_path / "other"))


def test_only_what_is_trained_is_in_training_mode(tmp_path):
    objective = mixar_objective()
    objective.train()
    assert objective.training and objective.trained.training
    assert not objective.tokenizers.training and not objective.model.prior.training
    objective.eval()
    assert not objective.training and not objective.trained.training


def test_bf16_trains_float32_weights(tmp_path):
    toy_run(tmp_path / "run", objective=mixar_objective(), precision="bf16")
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run").values())
    assert len(losses(tmp_path / "run")) == 6


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images"):
        toy_run(tmp_path / "run", data=ToyImages(0))


def test_tied_weights_are_written_under_each_name(tmp_path):
    layer = torch.nn.Linear(2, 2)
    both = torch.nn.ModuleDict({"a": layer, "b": layer})
    files.write_weights(tmp_path / "w.safetensors", both.state_dict(), dtype=torch.bfloat16)
    read = files.read_weights(tmp_path / "w.safetensors")
    assert torch.equal(read["a.weight"], read["b.weight"]) and read["a.weight"].dtype == torch.bfloat16
    (tmp_path / "w.safetensors").write_bytes(b"short")
    for name in ("w.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match=name):
            files.read_weights(tmp_path / name)
