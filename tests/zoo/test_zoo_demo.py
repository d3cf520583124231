from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from PIL import Image

pytest.importorskip("mixar_zoo", reason="plugins/mixar_zoo is not installed")

from mixar_core.errors import UserError
from mixar_core.training.trainer import Result
from mixar_zoo import demo
from mixar_zoo.classifier import fit_classifier
from mixar_zoo.demo import Score, run_demo, show_digits, verdict


class RealDigits:
    """Stands in for a model: `codes` are rows of the real training digits; decoding them alone blurs the digit."""

    class_names = tuple("0123456789")
    seeds: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.real, self.of = demo._digits("train")

    def sample_codes(self, labels, *, seed):
        rows = [(self.of == label).nonzero()[:, 0] for label in range(10)]
        return torch.stack([rows[int(label)][index % 400] for index, label in enumerate(labels)])[:, None]

    def decode_codes(self, codes):
        return torch.nn.functional.avg_pool2d(self.real[codes[:, 0]].float(), 7, 1, 3).to(torch.uint8)

    def generate(self, labels, *, codes, seed, batch_size=None):
        self.seeds.append(seed)
        names = tuple(str(int(label)) for label in labels)
        return type("Generation", (), {"images": self.real[codes[:, 0]], "names": names})


@pytest.fixture
def stood_in(monkeypatch):
    """Two minutes of training, and the shipped models, replaced; what is left is the demo itself."""
    RealDigits.seeds.clear()
    monkeypatch.setattr(demo.mixar, "load", lambda name: RealDigits())
    monkeypatch.setattr(demo.mixar, "load_recipe", lambda name: name)
    monkeypatch.setattr(demo.mixar, "train", lambda recipe, folder: folder.mkdir() or Result(folder, 9, 9))
    monkeypatch.setattr(demo, "fit_classifier", lambda images, labels: fit_classifier(images, labels, epochs=1))


def test_the_demo_measures_shows_and_says(stood_in, tmp_path, capsys):
    run_demo(tmp_path / "deep" / "out", 3, samples=200, emoji_per_class=2)
    assert RealDigits.seeds == [3, 3, 3]  # all of a set in one call, so it is what `mixar sample --seed 3` draws
    out = tmp_path / "deep" / "out"
    report = json.loads((out / "demo.json").read_text())
    sets = report["sets"]
    assert list(sets) == ["real digits", "the codes' own decoding", "MixAR trained just now", "shipped MixAR"]
    assert report["samples"] == 200 and report["seed"] == 3
    assert sets["shipped MixAR"]["frechet"] < sets["the codes' own decoding"]["frechet"]
    assert sets["shipped MixAR"]["recognised"] > 0.8
    for name in ("emoji", "emoji_and_codes", "digits"):
        assert min(Image.open(out / f"{name}.png").size) > 100
    printed = capsys.readouterr().out
    assert "lie closer to real ones than the codes' own decoding" in printed
    assert str(out / "digits.png") in printed
    show_digits(out, 3, samples=200)  # a second demo keeps the first one's run
    assert (out / "digits_quick_2").is_dir()


def test_a_demo_that_is_stopped_while_it_trains_measures_nothing(stood_in, tmp_path, monkeypatch):
    """What had two steps stood in the table as what was trained."""
    monkeypatch.setattr(demo.mixar, "train", lambda recipe, folder: Result(folder, 2, 9))
    with pytest.raises(KeyboardInterrupt):
        show_digits(tmp_path, 3, samples=200)
    assert RealDigits.seeds == []


def test_the_verdict_is_plain_where_it_disappoints():
    good, bad = Score(0.9, 1.0, 0.1), Score(0.9, 2.0, 0.2)

    def said(codes, fresh, shipped):
        names = ("the codes' own decoding", "MixAR trained just now", "shipped MixAR")
        return " ".join(verdict(dict(zip(names, (codes, fresh, shipped), strict=True)), 130.0))

    assert "2 min 10 s of training were not enough" in said(good, bad, good)
    assert "does not lie closer either" in said(good, bad, bad)
    figures = "Frechet distance 1.0000 against 2.0000; recognised 90.0% against 90.0%"
    assert f"lies closer ({figures})" in said(bad, bad, good)


def test_so_many_digits_as_there_are(tmp_path):
    for samples in (0, 19, 1001):
        with pytest.raises(UserError, match="allowed: 20 to 1000"):
            run_demo(tmp_path / "out", samples=samples)
    assert not (tmp_path / "out").exists()
