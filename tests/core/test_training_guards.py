"""What stops a run: values that are not finite, found where they began; images that cannot be read."""

from __future__ import annotations

import json
import time

import pytest
import torch

from mixar_core.data.tokens import CachedTokens
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_core.storage import read_weights
from mixar_core.training.checkpoint import Checkpoints
from mixar_core.training.guards import tensors_of
from mixar_core.training.log import RunLog, Unreadable
from mixar_core.types import Posterior
from tests.core.test_training import assert_same_weights, losses
from tests.core.training_toys import ToyImages, ToyObjective, toy_run


class Infinite(torch.autograd.Function):
    """One number on the way forward, and no number on the way back."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")


class Spoilt(ToyObjective):
    """Spoils one thing at the fourth step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.calls = what, 0
        self.net.body[0].register_forward_hook(self._after_first_layer)

    def forward(self, batch, *, step, steps, noise):
        self.now, self.calls = step == 3, self.calls + (step == 3)
        if self.now and self.what == "weights":
            with torch.no_grad():
                self.net.head.bias[1] = float("nan")
        return super().forward(batch, step=step, steps=steps, noise=noise)

    def _after_first_layer(self, module, arguments, output):
        if self.now and self.what == "gradient":
            return Infinite.apply(output)
        if self.now and (self.what == "activation" or (self.what == "once" and self.calls == 1)):
            return output / 0.0
        return None


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("weights", r"not finite: loss, gradient norm; first in process 0: weights head\.bias; the batch"),
        ("activation", r"first in process 0: output of trained\.body\.0 \(Linear\) of images (\d+, ){3}\d+; the batch"),
        ("gradient", r"not finite: gradient norm; first in process 0: gradient of body\.0\.bias of images"),
        ("once", r"finite when computed again, which points at the hardware"),
    ],
)
def test_what_went_bad_first_is_found(tmp_path, what, found):
    with pytest.raises(UserError, match=rf"^step 4: .*{found}.*the last good state is .*step-00000002$"):
        toy_run(tmp_path / "run", objective=Spoilt(what), micro_batch=4, checkpoint_every=2)
    if what == "once":
        assert not (tmp_path / "run/bad").exists()
        return
    facts = json.loads((tmp_path / "run/bad/step-00000004-rank-0.json").read_text())
    kept = read_weights(tmp_path / "run/bad/step-00000004-rank-0.safetensors")
    assert facts["step"] == 4 and kept["images"].shape == (8, 3, 16, 16)
    toy_run(tmp_path / "whole", micro_batch=4)
    toy_run(tmp_path / "run", objective=Spoilt("nothing"), micro_batch=4, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


class Dropped(ToyObjective):
    """Its fourth step overflows where dropout leaves the units that it left first."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.now, self.first = False, None
        self.net.body[2].register_forward_hook(self._after_dropout)

    def forward(self, batch, *, step, steps, noise):
        self.now = step == 3
        return super().forward(batch, step=step, steps=steps, noise=noise)

    def _after_dropout(self, module, arguments, output):
        if self.now:
            self.first = output == 0.0 if self.first is None else self.first
            return output / 0.0 if torch.equal(output == 0.0, self.first) else output
        return None


def test_a_repeated_step_drops_the_same_units(tmp_path):
    with pytest.raises(UserError, match=r"first in process 0: output of trained\.body\.2 \(Dropout\) of images"):
        toy_run(tmp_path / "run", objective=Dropped())


def test_images_that_are_not_finite_are_named(tmp_path):
    class Odd(ToyImages):
        def __getitem__(self, index):
            pixels, label = super().__getitem__(index)
            return (pixels.float() * float("nan") if index == 11 else pixels), label

    with pytest.raises(UserError, match=r"first in process 0: input images of images 11; the batch"):
        toy_run(tmp_path / "run", data=Odd(), steps=3)


def test_latents_of_which_nobody_knows_how_wide_they_are_are_named():
    mean = torch.zeros(2, 3, 4, 4)
    logvars = (torch.full_like(mean, value) for value in (-torch.inf, torch.nan))
    sound, odd = (CachedTokens(Posterior(mean, logvar), None, torch.zeros(2)) for logvar in logvars)
    assert all(tensor.isfinite().all() for tensor in tensors_of(sound).values())
    assert [name for name, tensor in tensors_of(odd).items() if not tensor.isfinite().all()] == ["deviations"]


def test_an_image_that_several_processes_met_counts_once(tmp_path, monkeypatch, capsys):
    asked = []

    def two(_, value):
        asked.append(value)
        return [value, value | {7}] if isinstance(value, set) else [value, value + 1]

    monkeypatch.setattr(Processes, "all_gather", two)
    unreadable = Unreadable(tmp_path, Processes(0, 2, torch.device("cpu")), limit=2, split="train")
    found = {3: "torn"}
    assert unreadable.too_many(found, step=1, total=2) is None and not asked
    found[7] = "cut off"
    assert unreadable.too_many(found, step=2, total=4) is None and asked == [{3, 7}]
    assert unreadable.too_many(found, step=3, total=4) is None and len(asked) == 1
    found[8] = "empty"
    assert "3 train images cannot be read, more than training.max_unreadable 2" in unreadable.too_many(found, step=4)
    assert len((tmp_path / "unreadable.jsonl").read_text().splitlines()) == 3
    assert capsys.readouterr().err.count("is skipped") == 3


def test_unreadable_validation_images_are_named_and_limited(tmp_path, capsys):
    settings = {"validation": ToyImages(broken=3), "evaluate_every": 2}
    toy_run(tmp_path / "run", **settings)
    (line,) = (tmp_path / "run/unreadable.jsonl").read_text().splitlines()
    assert json.loads(line)["split"] == "validation" and "validation image 3 is skipped" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"1 validation images cannot be read, .*max_unreadable 0; .*step-00000001$"):
        toy_run(tmp_path / "strict", **settings, max_unreadable=0, checkpoint_every=1)


def test_a_run_that_is_stopped_keeps_what_is_being_written(tmp_path, monkeypatch):
    complete = Checkpoints._complete

    def slowly(self, *arguments):
        time.sleep(1.0)
        complete(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_complete", slowly)
    with pytest.raises(UserError, match=r"^step 4: not finite: .*the last good state is .*step-00000003$"):
        toy_run(tmp_path / "run", objective=Spoilt("gradient"), checkpoint_every=3, background_checkpoints=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_and_named(tmp_path, capsys, workers):
    toy_run(tmp_path / "run", data=ToyImages(broken=11), max_unreadable=1, workers=workers)
    assert len(losses(tmp_path / "run")) == 6
    (line,) = (tmp_path / "run/unreadable.jsonl").read_text().splitlines()
    assert json.loads(line)["index"] == 11 and "image 11 cannot be read" in line
    assert capsys.readouterr().err.count("warning: train image 11 is skipped: image 11 cannot be read") == 1
    with pytest.raises(
        UserError, match=r"1 train images cannot be read, more than training\.max_unreadable 0; .*jsonl"
    ):
        toy_run(tmp_path / "strict", data=ToyImages(broken=11), max_unreadable=0, workers=workers)


def test_a_log_of_which_a_disk_lost_bytes_is_read_up_to_there(tmp_path):
    whole = '{"kind": "train", "step": 1}\n'
    (tmp_path / "log.jsonl").write_bytes(whole.encode() + b"\xff\xfe\n" + whole.encode())
    RunLog(tmp_path).forget_after(1)
    assert (tmp_path / "log.jsonl").read_text() == whole
