"""Who judges images, and by which figures: real images of two kinds, and a network that tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from attrs import evolve, frozen
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.runner import Desk
from benchmarks.study import digits, figures_of, rows_of_each
from mixar.plugins import plugin_manager
from mixar_core.data.loader import load_readable
from mixar_core.storage import write_whole
from mixar_eval.extractors import open_extractor
from mixar_eval.features import extract
from mixar_eval.probe import fit_probe
from mixar_zoo.classifier import DigitClassifier, fit_classifier
from mixar_zoo.data_sets import Emoji64, Emoji64Config

#: digits of each class that give codes; as many others are the reference
EACH = 50
#: an image is unlike real ones if it lies further from the nearest than this share of real ones
_USUAL = 0.99
#: of emoji: a network that neither a loss (Lite0) nor a choice of settings (Lite1) has seen
EXTRACTOR = "efficientnet-lite2"
FIGURES = ("recognised", "kernel", "frechet", "variety", "sharpness", "seams", "unlike")

#: images uint8 (N, 3, H, W) and their classes (N,)
Real = tuple[Tensor, Tensor]
#: features (N, F) of images, and the classes that they are taken for (N,)
Look = Callable[[Tensor], tuple[Tensor, Tensor]]


@frozen(eq=False)
class Judge:
    """Measures sets that were drawn for the classes of `given`, image by image.

    Args:
        given: real images nobody trained on, whose codes are the true ones, and whose classes are asked for.
        reference_NF: features of other real images, which distances are taken to.
        floor: as many real images as are drawn, from neither: what they measure no model is expected to pass.
    """

    look: Look
    given: Real
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
        given_B3HW, labels_B = self.given
        looked, real_BF = self.look(images_B3HW), self.look(given_B3HW)[1]
        sharp, seams = _edges(images_B3HW, token)
        real_sharp, real_seams = _edges(given_B3HW, token)
        usual = torch.cdist(real_BF, self.reference_NF).amin(dim=1).quantile(_USUAL)
        return {
            **figures_of(looked, labels_B, self.reference_NF, (real_BF, labels_B)),
            "sharpness": sharp / real_sharp,
            "seams": seams / real_seams,
            "unlike": float((torch.cdist(looked[1], self.reference_NF).amin(dim=1) > usual).float().mean()),
        }

    def figures_of_floor(self) -> dict[str, float]:
        """The figures of as many real images as are drawn, and their `count`."""
        floor = evolve(self, given=self.floor)
        return {**floor.figures(self.floor[0], token=8), "count": len(self.floor[1])}


def judge_of(data: str, desk: Desk) -> Judge:
    """The judge of digits or emoji; what takes it seconds to learn is kept in the folder `judges`."""
    return _judge(data, desk.out / "judges", 2 if desk.quick else EACH, desk.device)


@cache
def _judge(data: str, folder: Path, each: int, device: str) -> Judge:
    folder.mkdir(parents=True, exist_ok=True)
    with torch.enable_grad():  # whoever asks may draw without
        return (_of_digits if data == "digits" else _of_emoji)(folder, each, device)


def _of_digits(folder: Path, each: int, device: str) -> Judge:
    """A classifier fitted on the real training digits. Given and reference are halves of the validation digits."""
    train, validation = digits("train"), digits("validation")
    file = folder / "digits.safetensors"
    if not file.is_file():
        fitted = fit_classifier(*train, epochs=12 if each == EACH else 1)
        write_whole(file, lambda path: save_file(dict(fitted.state_dict()), path))
    judge = DigitClassifier()
    judge.load_state_dict(load_file(file))
    judge.eval().requires_grad_(False)
    reference_NF = judge.judge(_some(validation, each, behind=each)[0])[1]
    return Judge(judge.judge, _some(validation, each), _some(train, each), reference_NF)


def _of_emoji(folder: Path, each: int, device: str) -> Judge:
    """A network trained on photographs, and a linear probe on its features of the training emoji.

    Codes come from the validation emoji, and the reference are the training emoji. There are no third ones, so the
    floor is the validation emoji themselves.
    """

    def real(split: str) -> Real:
        dataset = Emoji64(Emoji64Config(), split=split, image_size=64)
        loaded = load_readable(dataset, list(range(len(dataset))))
        every = loaded.pixels_B3HW, loaded.labels_B
        return every if each == EACH else _some(every, each)

    train, validation = real("train"), real("validation")
    extractor = open_extractor(EXTRACTOR, plugin_manager(), device=device)

    def features(images_B3HW: Tensor) -> Tensor:
        return torch.cat([extract(part.to(device), extractor)["features"] for part in images_B3HW.split(64)])

    file = folder / f"emoji-{EXTRACTOR}-{len(train[1])}.safetensors"
    if not file.is_file():
        found = features(train[0])
        write_whole(file, lambda path: save_file({"train": found}, path))
    train_NF = load_file(file)["train"]
    probe = fit_probe(train_NF, train[1].tolist(), len(train[1].unique()))

    def look(images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        found_BF = features(images_B3HW)
        return ((found_BF.double() - probe.mean_F) @ probe.weights_FL + probe.bias_L).argmax(dim=1), found_BF

    return Judge(look, validation, validation, train_NF)


def _some(real: Real, each: int, behind: int = 0) -> Real:
    """`each` of every class behind the first ones of it, class by class."""
    rows = rows_of_each(real[1], each, behind)
    return real[0][rows], real[1][rows]


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
