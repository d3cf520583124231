"""Who judges images, and by which figures: real images of two kinds, and a network that tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from attrs import evolve, frozen
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.study import variance
from mixar.plugins import plugin_manager
from mixar_core.data.loader import load_readable
from mixar_core.storage import write_whole
from mixar_eval.distances import frechet_distance, kernel_distance
from mixar_eval.extractors import open_extractor
from mixar_eval.features import extract
from mixar_zoo.classifier import DigitClassifier, fit_classifier
from mixar_zoo.data_sets import Digits, Emoji64, Emoji64Config, NoSettings

#: digits of each class that give codes; as many others are the reference
EACH = 50
#: an image is unlike real ones if it lies further from the nearest than this share of real ones
_USUAL = 0.99
#: of emoji: a network that neither a loss (Lite0) nor a choice of settings (Lite1) has seen
EXTRACTOR = "efficientnet-lite2"
FIGURES = ("recognised", "kernel", "frechet", "variety", "sharpness", "seams", "unlike")


@frozen(eq=False)
class Real:
    """Images uint8 (N, 3, H, W) and their classes (N,)."""

    images_B3HW: Tensor
    labels_B: Tensor


#: features (N, F) of images, and the classes that they are taken for (N,)
Look = Callable[[Tensor], tuple[Tensor, Tensor]]


@frozen(eq=False)
class Judge:
    """Measures sets that were drawn for the classes of `given`, image by image.

    Args:
        given: real images nobody trained on, whose codes are the true ones, and whose classes are asked for.
        reference: other real images, which distances are taken to.
        floor: as many real images as are drawn, from neither: what they measure no model is expected to pass.
    """

    look: Look
    given: Real
    reference: Real
    floor: Real
    reference_NF: Tensor

    def figures(self, images_B3HW: Tensor, *, token: int) -> dict[str, float]:
        """By the names FIGURES.

        recognised: share taken for what was asked for. kernel, frechet: distances to the reference. variety: variance
        of the features within a class, as a share of real ones'. sharpness: mean difference of neighbouring pixels, and
        seams: that across the borders of tokens over that elsewhere, both as shares of real ones'. unlike: share of
        images that lie further from the nearest real one than all but 1 % of real ones do.

        Args:
            token: pixels a token spans.
        """
        found_B, features_BF = self.look(images_B3HW)
        _, real_BF = self.look(self.given.images_B3HW)
        sharp, seams = _edges(images_B3HW, token)
        real_sharp, real_seams = _edges(self.given.images_B3HW, token)
        usual = torch.cdist(real_BF, self.reference_NF).amin(dim=1).quantile(_USUAL)
        return {
            "recognised": float((found_B == self.given.labels_B).float().mean()),
            "kernel": kernel_distance(features_BF, self.reference_NF),
            "frechet": frechet_distance(features_BF, self.reference_NF),
            "variety": variance(features_BF, self.given.labels_B) / variance(real_BF, self.given.labels_B),
            "sharpness": sharp / real_sharp,
            "seams": seams / real_seams,
            "unlike": float((torch.cdist(features_BF, self.reference_NF).amin(dim=1) > usual).float().mean()),
        }

    def figures_of_floor(self) -> dict[str, float]:
        """The figures of as many real images as are drawn, and their `count`."""
        floor = evolve(self, given=self.floor)
        return {**floor.figures(self.floor.images_B3HW, token=8), "count": len(self.floor.labels_B)}

    def few(self, images_B3HW: Tensor) -> Tensor:
        """Two images of each class."""
        labels_B = self.given.labels_B
        rows = [(labels_B == label).nonzero()[:2, 0] for label in labels_B.unique()]
        return images_B3HW[torch.cat(rows)].contiguous()


@cache
def judge_of(data: str, folder: Path, *, quick: bool, device: str) -> Judge:
    """The judge of digits or emoji; what takes it seconds to learn is kept in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return (_of_digits if data == "digits" else _of_emoji)(folder, 2 if quick else EACH, device)


def _of_digits(folder: Path, each: int, device: str) -> Judge:
    """A classifier fitted on the real training digits. Given and reference are halves of the validation digits."""
    train, validation = (_all(Digits(NoSettings(), split=split, image_size=32)) for split in ("train", "validation"))
    file = folder / "digits.safetensors"
    if not file.is_file():
        fitted = fit_classifier(train.images_B3HW, train.labels_B, epochs=12 if each == EACH else 1)
        write_whole(file, lambda path: save_file(dict(fitted.state_dict()), path))
    judge = DigitClassifier()
    judge.load_state_dict(load_file(file))
    judge.eval().requires_grad_(False)
    return _judge(judge.judge, _some(validation, 0, each), _some(validation, each, each), _some(train, 0, each))


def _of_emoji(folder: Path, each: int, device: str) -> Judge:
    """A network trained on photographs, and a ridge regression on its features of the training emoji.

    Codes come from the validation emoji, and the reference are the training emoji. There are no third ones, so the
    floor is the validation emoji themselves.
    """
    train, validation = (
        _all(Emoji64(Emoji64Config(), split=split, image_size=64)) for split in ("train", "validation")
    )
    if each != EACH:
        train, validation = _some(train, 0, each), _some(validation, 0, each)
    extractor = open_extractor(EXTRACTOR, plugin_manager(), device=device)

    def features(images_B3HW: Tensor) -> Tensor:
        parts = [extract(part.to(device), extractor)["features"] for part in images_B3HW.split(64)]
        return torch.cat(parts)

    file = folder / f"emoji-{EXTRACTOR}-{len(train.labels_B)}.safetensors"
    if not file.is_file():
        found = features(train.images_B3HW)
        write_whole(file, lambda path: save_file({"train": found}, path))
    train_NF = load_file(file)["train"]
    scale = train_NF.square().mean().sqrt()
    targets_NK = torch.nn.functional.one_hot(train.labels_B).double()
    x_NF = torch.nn.functional.pad((train_NF / scale).double(), (0, 1), value=1.0)
    ridge_FF = 0.1 * len(x_NF) * torch.eye(x_NF.shape[1], dtype=torch.float64)
    probe_FK = torch.linalg.solve(x_NF.T @ x_NF + ridge_FF, x_NF.T @ targets_NK)

    def look(images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        found_BF = features(images_B3HW)
        x_BF = torch.nn.functional.pad((found_BF / scale).double(), (0, 1), value=1.0)
        return (x_BF @ probe_FK).argmax(dim=1), found_BF

    return Judge(look, validation, train, validation, train_NF)


def _judge(look: Look, given: Real, reference: Real, floor: Real) -> Judge:
    return Judge(look, given, reference, floor, look(reference.images_B3HW)[1])


def _all(dataset: Digits | Emoji64) -> Real:
    loaded = load_readable(dataset, list(range(len(dataset))))
    return Real(loaded.pixels_B3HW, loaded.labels_B)


def _some(real: Real, first: int, each: int) -> Real:
    """`each` of every class behind the `first` ones of it, class by class."""
    rows = [(real.labels_B == label).nonzero()[first : first + each, 0] for label in real.labels_B.unique()]
    return Real(real.images_B3HW[torch.cat(rows)], real.labels_B[torch.cat(rows)])


def _edges(images_B3HW: Tensor, token: int) -> tuple[float, float]:
    """Mean difference of neighbouring pixels, and that across the borders of tokens over that of all other ones."""
    grey_BHW = images_B3HW.float().mean(dim=1)
    across, within = [], []
    for difference in (grey_BHW.diff(dim=1).abs(), grey_BHW.diff(dim=2).abs().transpose(1, 2)):
        border = torch.arange(1, difference.shape[1] + 1) % token == 0
        across.append(difference[:, border].flatten())
        within.append(difference[:, ~border].flatten())
    both = torch.cat([*across, *within])
    if not across[0].numel():  # one token is the whole image
        return float(both.mean()), 1.0
    return float(both.mean()), float(torch.cat(across).mean() / torch.cat(within).mean())
