"""What a report on own images says beside its scores: which lies closer, what is left out, what is learned by heart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

import mixar
from mixar.plugins import Registry
from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_eval import beside, generation, references, tokenizers
from mixar_eval.context import EvalContext
from mixar_eval.distances import Gaussian
from mixar_eval.features import Features
from mixar_eval.images import ImageSet, open_images
from mixar_eval.references import Reference, open_reference
from mixar_eval.scores import Scores, distances_of, floor_at
from mixar_eval.views import Drawn
from tests.eval.test_references import Grey


class Torn(ImageDataset):
    """Six grey images of two classes; some cannot be read."""

    def __init__(self, torn: tuple[int, ...] = (1, 4)) -> None:
        self.torn, self.num_classes, self.class_names = torn, 2, ("cat", "dog")

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.torn:
            raise UserError(f"{index}.png: unreadable image: torn")
        return torch.full((3, 8, 8), index, dtype=torch.uint8), index % 2

    def labels(self) -> list[int]:
        return [index % 2 for index in range(6)]


def test_what_cannot_be_read_is_left_out_and_named(registry: Registry) -> None:
    images = open_images(Torn(), registry)
    with pytest.raises(UserError, match=r"1\.png: unreadable image"):
        list(images.batches())
    good = images.readable()
    assert len(good) == 4 and good.labels == [0, 0, 1, 1] and good.description.startswith("4 images")
    assert good.notes[-1].startswith("2 images cannot be read and are left out: 1.png: unreadable image: torn, 4.png")
    assert [int(value) for batch in good.batches(batch_size=3) for value in batch[:, 0, 0, 0]] == [0, 2, 3, 5]
    some = images.take(torch.tensor([5, 1, 0])).readable()
    assert some.labels == [0, 1] and len(some) == 2
    whole = open_images(Torn(()), registry)
    assert whole.readable() is whole


def test_what_is_left_out_is_told_wherever_real_images_are_measured(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing, torn = EvalContext(registry=registry, extractor=Grey()), open_images(Torn(), registry)
    left_out = "2 images cannot be read and are left out"
    with monkeypatch.context() as few:
        few.setattr(references, "KEPT", 5)  # of more images the statistics alone are kept
        many = open_reference(Torn(), seeing)
    assert many.count == 4 and many.features_AF is None and many.description.startswith("4 images")
    assert any(left_out in note for note in many.notes)
    whole = open_reference(Torn(()), seeing)
    split = evolve(whole, others=torn)
    report = generation.measure([Drawn(open_images(Torn(()), registry))], [(seeing, split)])
    assert report.plain["real_images"]["what"].startswith("4 real images") and sum(left_out in n for n in report.notes)
    assert any(left_out in note for note in floor_at(6, split, seeing).notes)
    reference, _, found_AF, between = tokenizers._compared(
        tokenizers.Chosen(torn, torn, "of another split"), whole.features_AF, None, seeing
    )
    assert len(found_AF) == 4 and between.startswith("4 of another split") and left_out in reference.notes[-1]


def context(features: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Features by what they are of, and no processes."""
    monkeypatch.setattr(beside, "features_of", lambda images, context, what, **_: Features(features[what]))
    monkeypatch.setattr(
        beside, "features_of_readable", lambda images, context, what, **_: (images, Features(features[what]))
    )
    return SimpleNamespace(
        processes=SimpleNamespace(on_main=lambda work: work()), extractor=SimpleNamespace(gives_fid=False)
    )


def reference(registry: Registry, real_AF: Tensor) -> Reference:
    images = open_images(Torn(()), registry)
    train, validation = (ImageSet(images.data, "", 8, 8, split=split) for split in ("train", "validation"))
    return Reference("", Gaussian.of(real_AF), real_AF, images=validation, others=train)


def test_which_lies_closer_is_said_and_what_to_do(registry: Registry) -> None:
    draw = torch.Generator().manual_seed(0)
    real, codes = (torch.randn(6, 4, generator=draw) + shift for shift in (0, 3))
    against, found = reference(registry, real), distances_of(codes, reference(registry, real))
    near, far = (Scores(6, 1.0, kernel) for kernel in (0.001, 1e6))
    said = beside.compare_codes([near], [found], against, False)
    assert found.kernel is not None and found.kernel > 0.001 and "closer to the reference than the codes'" in said
    said = beside.compare_codes([near, far], [found, found], against, False)  # on average
    assert "no closer" in said and "6 training images may be too few" in said and "init:" in said


@pytest.mark.parametrize(("away", "copied"), [(0.001, True), (5.0, False)])
def test_what_was_learned_by_heart_is_said(
    away: float, copied: bool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = torch.arange(24.0).reshape(6, 4)
    samples, real = train[[3, 0]] + away, train[:4] + 1.0
    seen = context({"training images": train, "samples": samples}, monkeypatch)
    found = beside.nearest_training(
        open_images(Torn(()), registry).take(torch.tensor([0, 1])), reference(registry, real), seen
    )
    assert found.plain["training_images"] == 6 and found.plain["of_validation"] == pytest.approx(2.0)
    assert any("learned by heart" in note for note in found.notes) == copied
    equal = found.plain["equal"]
    assert equal["count"] == 4 and found.section.to_markdown().count("4 training images") == 1
    every = beside.nearest_training(
        open_images(Torn(()), registry).take(torch.tensor([0, 1])), reference(registry, train + 1.0), seen
    )
    nearer = every.plain["equal"]["training"] < every.plain["equal"]["validation"]  # both of six images
    assert nearer == copied and every.plain["equal"]["training"] == pytest.approx(0.002 if copied else 2.0, rel=1e-3)
    bare = Reference("", Gaussian.of(real), real)
    with pytest.raises(UserError, match="--nearest: needs --reference data:validation or data:train"):
        beside.nearest_training(open_images(Torn(()), registry), bare, seen)


def test_codes_are_drawn_a_chunk_at_a_time_as_the_samples_were(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixar.load(family / "models/mixar", device="cpu")
    plan = generation.plan(model, count=7, batch=3, seed=5)
    codes = model.sample_codes(plan.labels_N().tolist(), seed=5, batch_size=3)
    whole = torch.cat([model.decode_codes(some) for some in codes.split(3)])
    asked = list[int]()
    draw_codes = mixar.Model.draw_codes

    def counted(self: mixar.Model, labels_B: Tensor, *more: Any) -> Tensor:
        asked.append(len(labels_B))
        return draw_codes(self, labels_B, *more)

    monkeypatch.setattr(mixar.Model, "draw_codes", counted)
    alone = beside.CodesAlone(model, plan)
    assert len(alone) == 7 and not asked
    batches = alone.batches(torch.arange(7), 3)
    assert torch.equal(next(batches), whole[:3]) and asked == [3]
    assert torch.equal(torch.cat([*batches]), whole[3:]) and asked == [3, 3, 1]
    # a process's share: the second of two; and batches that are not the plan's
    assert torch.equal(next(alone.batches(torch.arange(3, 6), 3)), whole[3:6]) and asked[3:] == [3]
    assert torch.equal(torch.cat([*alone.batches(torch.tensor([6, 2, 3, 0]), 2)]), whole[[6, 2, 3, 0]])
    with pytest.raises(UserError, match="--codes-too: model prior draws no codes to be guided by"):
        beside.CodesAlone(mixar.load(family / "models/prior", device="cpu"), plan)
