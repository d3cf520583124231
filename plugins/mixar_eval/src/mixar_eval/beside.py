"""What a report on own images shows beside the samples: what their codes alone decode to, and the training images that
lie nearest to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

from mixar.generation import batch_noise
from mixar.model import Model
from mixar.sampling import Plan
from mixar_core.errors import UserError
from mixar_core.pictures import rows_picture
from mixar_eval.context import EvalContext
from mixar_eval.distances import SEED
from mixar_eval.features import features_of, features_of_readable
from mixar_eval.images import ImageSet
from mixar_eval.references import Reference
from mixar_eval.report import Section, number, score_names
from mixar_eval.scores import Scores, real_at

#: samples in the picture, and training images under each
SHOWN, NEAREST = 8, 3
#: fewer training images than this may be too few for what a report says of them
FEW = 5000
#: samples that lie so much nearer to training images than other real images do were learned by heart
BY_HEART = 0.5


def draws_codes(model: Model) -> bool:
    """Whether it is guided by codes that it draws."""
    system = model.system
    return system.prior is not None and system.model is not None and system.model.injector.needs_codes


@frozen(eq=False)
class CodesAlone:
    """What the discrete tokenizer makes of the codes that the samples of a plan are drawn from.

    They are drawn when they are asked for, and not kept: features are all that is wanted of them.

    Raises:
        UserError: the model draws no codes.
    """

    model: Model
    plan: Plan

    def __attrs_post_init__(self) -> None:
        if not draws_codes(self.model):
            raise UserError(f"--codes-too: model {self.model.recipe.name} draws no codes to be guided by")

    def __len__(self) -> int:
        return self.plan.count

    def batches(self, indices: Tensor, batch_size: int, workers: int = 0) -> Iterator[Tensor]:
        """Images uint8 (B, 3, H, W) at `indices`, in that order; no process beside this one draws them."""
        for rows in indices.split(batch_size):
            places = [divmod(row, self.plan.batch) for row in rows.tolist()]
            chunks = {chunk: self._drawn(chunk) for chunk in sorted({chunk for chunk, _ in places})}
            yield torch.stack([chunks[chunk][row] for chunk, row in places])

    @torch.no_grad()
    def _drawn(self, chunk: int) -> Tensor:
        plan, model = self.plan, self.model
        labels_B = model.labels(plan.labels_N()[plan.rows(chunk)])
        return model.decode_codes(model.draw_codes(labels_B, plan.settings, batch_noise(plan.seed, chunk)))


def compare_codes(samples: Sequence[Scores], codes: Sequence[Scores], reference: Reference, gives_fid: bool) -> str:
    """Which of the two lies closer to the reference, the samples or the codes' own decoding; of sets of either."""
    frechet, kernel, _ = score_names(gives_fid)
    name, mine, theirs = kernel, [each.kernel for each in samples], [each.kernel for each in codes]
    if None in mine or None in theirs:
        name, mine, theirs = frechet, [each.frechet for each in samples], [each.frechet for each in codes]
    own, alone = (sum(filter(None, each)) / len(each) for each in (mine, theirs))
    figures = f"{name} {number(own)} against {number(alone)}"
    if own < alone:
        return f"the samples lie closer to the reference than the codes' own decoding ({figures})"
    return f"the samples lie no closer to the reference than the codes' own decoding ({figures}); {_advice(reference)}"


def _advice(reference: Reference) -> str:
    train = training_images(reference)
    longer = "train the continuous tokenizer and the MixAR for more steps"
    if train is None or len(train) >= FEW:
        return longer
    return (
        f"{len(train):,} training images may be too few: add images, start from a trained model (init:), or {longer} "
        "while the validation loss falls"
    )


def training_images(reference: Reference) -> ImageSet | None:
    """The training split of the data that the reference is of, where it is at hand."""
    return next((some for some in (reference.images, reference.others) if some and some.split == "train"), None)


@frozen(eq=False)
class Nearest:
    """What the training images nearest to the samples tell.

    Args:
        plain: median distances, as JSON has them. section: of the report.
        picture: some samples, and under each the training images nearest to it.
    """

    plain: dict[str, Any]
    section: Section
    picture: Image.Image
    notes: Sequence[str] = ()


def nearest_training(
    images: ImageSet, reference: Reference, context: EvalContext, *, cache: Path | None = None
) -> Nearest:
    """Which training images lie nearest to samples, between feature vectors; and whether samples lie nearer to training
    images than to as many validation images, which a model that has learned by heart would have them do.

    Args:
        cache: where features are kept, see `features_of`.

    Raises:
        UserError: the training images are not at hand.
    """
    train, real_VF = training_images(reference), reference.features_AF
    if train is None:
        raise UserError("--nearest: needs --reference data:validation or data:train, to know the training images")
    if train is reference.images:
        real = real_at(len(images), reference, context, cache=cache)
        real_VF = None if real is None else real[1].features_AF
    if train is reference.images and reference.features_AF is not None:
        train_TF = reference.features_AF
    else:
        train, found = features_of_readable(train, context, "training images", cache=cache)
        train_TF = found.features_AF
    sample_AF = features_of(images, context, "samples", cache=cache).in_order().features_AF
    distances, nearest_AK = _nearest(sample_AF, train_TF)
    plain: dict[str, Any] = {"training_images": len(train), "median": float(distances.median()), "of_validation": None}
    rows: list[dict[str, object]] = [{"what": "samples", f"{len(train):,} training images": number(plain["median"])}]
    notes = list(train.notes)
    if real_VF is not None:
        plain |= _beside_validation(sample_AF, train_TF, real_VF)
        count = plain["equal"]["count"]
        rows[0] |= {
            f"{count:,} training images": number(plain["equal"]["training"]),
            f"{count:,} validation images": number(plain["equal"]["validation"]),
        }
        none = dict.fromkeys([*rows[0]][2:])
        rows.append({"what": "validation images", [*rows[0]][1]: number(plain["of_validation"]), **none})
        if plain["median"] < BY_HEART * plain["of_validation"]:
            figures = f"{number(plain['median'])} against {number(plain['of_validation'])}"
            notes.append(
                f"the samples lie much nearer to training images than validation images do ({figures}): they were "
                "learned by heart; more images or fewer steps help"
            )
    section = Section(
        "Nearest training images",
        rows,
        lines=["Median distance to the nearest of"],
        below=["nearest.png has samples and, under each, the training images whose features lie nearest to its own."],
    )
    return Nearest(plain, section, _picture(images, train, nearest_AK), notes)


def _beside_validation(sample_AF: Tensor, train_TF: Tensor, real_VF: Tensor) -> dict[str, Any]:
    """The median distance of validation images to training ones, and of samples to as many of either."""
    count = min(len(real_VF), len(train_TF))
    draw = torch.Generator().manual_seed(SEED)
    some = [side[torch.randperm(len(side), generator=draw)[:count]] for side in (train_TF, real_VF)]
    to_train, to_real = (float(_nearest(sample_AF, side)[0].median()) for side in some)
    return {
        "of_validation": float(_nearest(real_VF, train_TF)[0].median()),
        "equal": {"count": count, "training": to_train, "validation": to_real},
    }


def _nearest(one_AF: Tensor, other_BF: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (A,) to the nearest, and the NEAREST nearest (A, K), in order."""
    parts = [
        torch.cdist(some, other_BF).topk(min(NEAREST, len(other_BF)), largest=False) for some in one_AF.split(1000)
    ]
    return torch.cat([part.values[:, 0] for part in parts]), torch.cat([part.indices for part in parts])


def _picture(images: ImageSet, train: ImageSet, nearest_AK: Tensor) -> Image.Image:
    """Samples spread over the set, each above its nearest."""
    chosen = torch.arange(len(images))[:: max(1, len(images) // SHOWN)][:SHOWN]
    rows = {"samples": torch.cat([*images.batches(chosen)])}
    for place in range(nearest_AK.shape[1]):
        name = "nearest training image" if place == 0 else f"the {('2nd', '3rd')[place - 1]}"
        rows[name] = torch.cat([*train.batches(nearest_AK[chosen, place])])
    return rows_picture(rows, "samples, and the training images nearest to each", scale=max(1, 96 // images.height))
