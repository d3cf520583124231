"""The demo: emoji from the shipped model, then digits from a MixAR trained on the spot, measured against real ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from attrs import asdict, field, frozen
from attrs.validators import and_, ge, le
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mixar
from mixar_core.data.loader import load_rows
from mixar_core.pictures import labelled_grid, rows_picture
from mixar_core.storage import write_text, write_whole, writing
from mixar_eval.distances import frechet_distance, kernel_distance
from mixar_zoo.classifier import DigitClassifier, fit_classifier
from mixar_zoo.data_sets import Digits, NoSettings

_BATCH = 250


@frozen
class ZooDemoConfig:
    """What is shown.

    Args:
        emoji: shipped model of emoji. emoji_per_class: drawings of each category.
        digits: shipped model of digits, which had longer to train than the one made here.
        recipe: of the digits model trained here, from scratch; its tokenizers and prior are shipped and frozen.
        samples: digits drawn and measured, the same number of each; there are 1,000 real ones to measure against.
    """

    emoji: str = "emoji64"
    emoji_per_class: int = field(default=12, validator=ge(1))
    digits: str = "digits"
    recipe: str = "digits_quick"
    samples: int = field(default=1000, validator=and_(ge(20), le(1000)))


@frozen
class Score:
    """How a set of digits did: share recognised as what was asked for, distances to the real validation digits."""

    recognised: float
    frechet: float
    kernel: float


class ZooDemo:
    """Samples emoji, trains a MixAR on digits for about two minutes, and measures what it draws."""

    def __init__(self, config: ZooDemoConfig) -> None:
        self.config = config
        self.console = Console(highlight=False, soft_wrap=True)

    def run(self, *, out: Path, seed: int) -> None:
        """Pictures, the trained model and `demo.json` with the figures go under `out`.

        Raises:
            UserError: a shipped model is missing, or `out` cannot be written.
        """
        out, started = Path(out), time.monotonic()
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        self.emoji(out, seed)
        self.digits(out, seed)
        self._say(f"\nAll of it took {_duration(time.monotonic() - started)}.")

    def emoji(self, out: Path, seed: int) -> None:
        """Sample the shipped emoji model, and show what its codes alone decode to."""
        with self._step(f"Emoji: the shipped model {self.config.emoji}"):
            model = mixar.load(self.config.emoji)
            names, each = model.class_names, self.config.emoji_per_class
            labels = torch.arange(len(names)).repeat(each)  # class after class: a column each in the grid
            codes = model.sample_codes(labels, seed=seed)
            drawn = model.generate(labels, codes=codes, seed=seed)
            alone = model.decode_codes(codes)
        count = len(names) * min(each, 6)
        grid = labelled_grid(drawn.images[:count], drawn.names[:count], len(names), f"MixAR, seed {seed}", scale=2)
        self._save(grid, out / "emoji.png")
        rows: dict[str, Tensor] = {}
        for label, name in enumerate(names):
            rows[name] = drawn.images[labels == label]
            rows[f"{name}: codes alone"] = alone[labels == label]
        title = "what MixAR draws, and under it what the same codes decode to without it"
        self._save(rows_picture(rows, title), out / "emoji_and_codes.png")

    def digits(self, out: Path, seed: int) -> dict[str, Score]:
        """Train a MixAR on digits, draw with it and with the shipped one from the same codes, and measure both."""
        with self._step("Digits: fitting the judge, a small classifier, on the real training digits"):
            real, others = _balanced("validation", self.config.samples), _balanced("train", self.config.samples)
            classifier = fit_classifier(*_digits("train"))
        with self._step(f"Digits: training recipe {self.config.recipe} from scratch"):
            began = time.monotonic()
            folder = _unused(out / Path(self.config.recipe).stem)
            mixar.train(mixar.load_recipe(self.config.recipe), folder)
            trained_for = time.monotonic() - began
        fresh, shipped = mixar.load(folder), mixar.load(self.config.digits)
        labels = torch.arange(10).repeat_interleave(self.config.samples // 10)
        with self._step(f"Digits: {len(labels)} codes from the prior, decoded alone"):
            codes = fresh.sample_codes(labels, seed=seed)
            sets = {"the codes' own decoding": torch.cat([fresh.decode_codes(part) for part in codes.split(_BATCH)])}
        for name, model in (("MixAR trained just now", fresh), ("shipped MixAR", shipped)):
            with self._step(f"Digits: {name} draws {len(labels)} images from the same codes"):
                sets[name] = _draw(model, labels, codes, seed)

        reference = classifier.judge(real[0])[1]
        scores = {"real digits": Score(_recognised(classifier, *real), *_distances(classifier, others[0], reference))}
        for name, images in sets.items():
            scores[name] = Score(_recognised(classifier, images, labels), *_distances(classifier, images, reference))
        self._table(scores, len(labels))
        for line in verdict(scores, trained_for):
            self._say(line)
        few = torch.cat([(labels == digit).nonzero()[:2, 0] for digit in range(10)])
        rows = {name: images[few] for name, images in {"real digits": real[0], **sets}.items()}
        self._save(rows_picture(rows, "two of each digit, drawn from the same codes", scale=2), out / "digits.png")
        figures = {"seconds_trained": round(trained_for, 1), "samples": len(labels), "seed": seed}
        report = {**figures, "sets": {name: asdict(score) for name, score in scores.items()}}
        write_text(out / "demo.json", json.dumps(report, indent=2) + "\n")
        self._say(f"The trained model: {folder} (mixar sample {folder}); the figures: {out / 'demo.json'}")
        return scores

    def _table(self, scores: Mapping[str, Score], count: int) -> None:
        table = Table(title=f"{count} digits each, measured by a classifier fitted on real training digits")
        table.add_column("digits")
        for heading in ("recognised", "Frechet distance", "kernel distance"):
            table.add_column(heading, justify="right")
        for name, score in scores.items():
            table.add_row(name, f"{score.recognised:.1%}", f"{score.frechet:.4f}", f"{score.kernel:.4f}")
        self.console.print(table)
        self._say("Distances are to the real validation digits. For the real ones they are those of as many training")
        self._say("digits: the floor, which no model is expected to pass.")

    @contextmanager
    def _step(self, text: str) -> Iterator[None]:
        self._say(f"\n{text} ...", style="bold")
        started = time.monotonic()
        yield
        self._say(f"  took {_duration(time.monotonic() - started)}")

    def _save(self, picture: Image.Image, path: Path) -> None:
        write_whole(path, lambda unfinished: picture.save(unfinished, format="PNG"))
        self._say(f"  picture: {path}")

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, markup=False, style=style)


def verdict(scores: Mapping[str, Score], seconds: float) -> list[str]:
    """What the figures say, plainly, also where they disappoint."""
    codes, fresh, shipped = (
        scores[name] for name in ("the codes' own decoding", "MixAR trained just now", "shipped MixAR")
    )
    trained = f"After {_duration(seconds)} of training MixAR's digits"
    if fresh.frechet < codes.frechet:
        lines = [f"{trained} lie closer to real ones than the codes' own decoding ({_pair(fresh, codes)})."]
    else:
        lines = [
            f"{_duration(seconds)} of training were not enough to lie closer to real digits than the codes' own "
            f"decoding ({_pair(fresh, codes)}): MixAR has to learn strokes that the codes' decoder already knows."
        ]
    if shipped.frechet < codes.frechet:
        lines.append(f"The shipped model, trained longer, lies closer ({_pair(shipped, codes)}).")
    else:
        lines.append(f"The shipped model, trained longer, does not lie closer either ({_pair(shipped, codes)}).")
    return lines


def _pair(one: Score, other: Score) -> str:
    distances = f"Frechet distance {one.frechet:.4f} against {other.frechet:.4f}"
    return f"{distances}; recognised {one.recognised:.1%} against {other.recognised:.1%}"


def _digits(split: str) -> tuple[Tensor, Tensor]:
    dataset = Digits(NoSettings(), split=split, image_size=32)
    return load_rows(dataset, list(range(len(dataset))))


def _balanced(split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of a split with every digit equally often, sorted by digit, and their labels."""
    images, labels = _digits(split)
    rows = torch.cat([(labels == digit).nonzero()[: count // 10, 0] for digit in range(10)])
    return images[rows], labels[rows]


def _draw(model: mixar.Model, labels: Tensor, codes: Tensor, seed: int) -> Tensor:
    parts = zip(labels.split(_BATCH), codes.split(_BATCH), strict=True)
    return torch.cat(
        [model.generate(some, codes=theirs, seed=seed + index).images for index, (some, theirs) in enumerate(parts)]
    )


def _recognised(classifier: DigitClassifier, images: Tensor, labels: Tensor) -> float:
    return float((classifier.judge(images)[0] == labels).float().mean())


def _distances(classifier: DigitClassifier, images: Tensor, reference: Tensor) -> tuple[float, float]:
    features = classifier.judge(images)[1]
    return frechet_distance(features, reference), kernel_distance(features, reference)


def _unused(folder: Path) -> Path:
    """The folder, or where an earlier demo left its run there, the first free one with a number."""
    candidates = (folder if number == 1 else folder.with_name(f"{folder.name}_{number}") for number in range(1, 10**6))
    return next(candidate for candidate in candidates if not candidate.exists())


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
