"""The demo: emoji from the shipped model, then digits from a MixAR trained on the spot, measured against real ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from attrs import asdict, frozen
from PIL import Image
from rich.console import Console
from torch import Tensor

import mixar
from mixar.cli.common import command_line, print_table
from mixar.text import duration
from mixar_core.data.loader import load_readable
from mixar_core.pictures import labelled_grid, rows_picture, write_png
from mixar_core.storage import user_path, write_text, writing
from mixar_eval.distances import frechet_distance, kernel_distance
from mixar_zoo.classifier import DigitClassifier, fit_classifier
from mixar_zoo.data_sets import Digits, NoSettings

#: shipped models; and the recipe of the digits model trained here, whose tokenizers and prior are shipped and frozen
EMOJI, DIGITS, RECIPE = "emoji64", "digits", "digits_quick"
_BATCH = 250


@frozen
class Score:
    """How a set of digits did: share recognised as what was asked for, distances to the real validation digits."""

    recognised: float
    frechet: float
    kernel: float


def run_demo(out: str | Path, seed: int = 0, *, samples: int = 1000, emoji_per_class: int = 12) -> None:
    """Sample emoji, train a MixAR on digits for about two minutes, and measure what it draws.

    Pictures, the trained model and `demo.json` with the figures go under `out`.

    Args:
        samples: digits drawn and measured, the same number of each; there are 1,000 real ones to measure against.
        emoji_per_class: drawings of each category.

    Raises:
        UserError: a shipped model is missing, `out` cannot be written, or so many digits cannot be measured.
    """
    if not 20 <= samples <= 1000:
        raise mixar.UserError(f"samples: {samples}; allowed: 20 to 1000")
    out, started = user_path(out), time.monotonic()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    show_emoji(out, seed, each=emoji_per_class)
    show_digits(out, seed, samples=samples)
    _say(f"\nAll of it took {duration(time.monotonic() - started)}.")


def show_emoji(out: Path, seed: int, *, each: int) -> None:
    """Sample the shipped emoji model, and show what its codes alone decode to."""
    with _step(f"Emoji: the shipped model {EMOJI}"):
        model = mixar.load(EMOJI)
        names = model.class_names
        labels = torch.arange(len(names)).repeat(each)  # class after class: a column each in the grid
        codes = model.sample_codes(labels, seed=seed)
        drawn = model.generate(labels, codes=codes, seed=seed)
        alone = model.decode_codes(codes)
    count = len(names) * min(each, 6)
    grid = labelled_grid(drawn.images[:count], drawn.names[:count], len(names), f"MixAR, seed {seed}", scale=2)
    _save(grid, out / "emoji.png")
    rows: dict[str, Tensor] = {}
    for label, name in enumerate(names):
        rows[name] = drawn.images[labels == label]
        rows[f"{name}: codes alone"] = alone[labels == label]
    title = "what MixAR draws, and under it what the same codes decode to without it"
    _save(rows_picture(rows, title), out / "emoji_and_codes.png")


def show_digits(out: Path, seed: int, *, samples: int) -> dict[str, Score]:
    """Train a MixAR on digits, draw with it and with the shipped one from the same codes, and measure both."""
    with _step("Digits: fitting the judge, a small classifier, on the real training digits"):
        real, others = _balanced("validation", samples), _balanced("train", samples)
        classifier = fit_classifier(*_digits("train"))
    with _step(f"Digits: training recipe {RECIPE} from scratch"):
        began = time.monotonic()
        folder = _unused(out / RECIPE)
        if mixar.train(mixar.load_recipe(RECIPE), folder).stopped:  # by a signal, which is for all of the demo
            raise KeyboardInterrupt
        trained_for = time.monotonic() - began
    fresh, shipped = mixar.load(folder), mixar.load(DIGITS)
    labels = torch.arange(10).repeat_interleave(samples // 10)
    with _step(f"Digits: {len(labels)} codes from the prior, decoded alone"):
        codes = fresh.sample_codes(labels, seed=seed)
        sets = {"the codes' own decoding": torch.cat([fresh.decode_codes(part) for part in codes.split(_BATCH)])}
    for name, model in (("MixAR trained just now", fresh), ("shipped MixAR", shipped)):
        with _step(f"Digits: {name} draws {len(labels)} images from the same codes"):
            sets[name] = model.generate(labels, codes=codes, seed=seed, batch_size=_BATCH).images

    reference = classifier.judge(real[0])[1]
    scores = {"real digits": _score(classifier, real[0], real[1], others[0], reference)}
    scores |= {name: _score(classifier, images, labels, images, reference) for name, images in sets.items()}
    _table(scores, len(labels))
    for line in verdict(scores, trained_for):
        _say(line)
    few = torch.cat([(labels == digit).nonzero()[:2, 0] for digit in range(10)])
    rows = {name: images[few] for name, images in {"real digits": real[0], **sets}.items()}
    _save(rows_picture(rows, "two of each digit, drawn from the same codes", scale=2), out / "digits.png")
    figures = {"seconds_trained": round(trained_for, 1), "samples": len(labels), "seed": seed}
    report = {**figures, "sets": {name: asdict(score) for name, score in scores.items()}}
    write_text(out / "demo.json", json.dumps(report, indent=2) + "\n")
    again = command_line("mixar", "sample", folder)
    _say(f"The figures: {out / 'demo.json'}; to draw with the trained model: {again}")
    return scores


def verdict(scores: Mapping[str, Score], seconds: float) -> list[str]:
    """What the figures say, plainly, also where they disappoint."""
    names = ("the codes' own decoding", "MixAR trained just now", "shipped MixAR")
    codes, fresh, shipped = (scores[name] for name in names)
    if fresh.frechet < codes.frechet:
        line = (
            f"After {duration(seconds)} of training MixAR's digits lie closer to real ones than the codes' own "
            f"decoding ({_pair(fresh, codes)})."
        )
    else:
        line = (
            f"{duration(seconds)} of training were not enough to lie closer to real digits than the codes' own "
            f"decoding ({_pair(fresh, codes)}): MixAR has to learn strokes that the codes' decoder already knows."
        )
    closer = "lies closer" if shipped.frechet < codes.frechet else "does not lie closer either"
    return [line, f"The shipped model, trained longer, {closer} ({_pair(shipped, codes)})."]


def _pair(one: Score, other: Score) -> str:
    distances = f"Frechet distance {one.frechet:.4f} against {other.frechet:.4f}"
    return f"{distances}; recognised {one.recognised:.1%} against {other.recognised:.1%}"


def _digits(split: str) -> tuple[Tensor, Tensor]:
    dataset = Digits(NoSettings(), split=split, image_size=32)
    loaded = load_readable(dataset, list(range(len(dataset))))
    return loaded.pixels_B3HW, loaded.labels_B


def _balanced(split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of a split with every digit equally often, sorted by digit, and their labels."""
    images, labels = _digits(split)
    rows = torch.cat([(labels == digit).nonzero()[: count // 10, 0] for digit in range(10)])
    return images[rows], labels[rows]


def _score(classifier: DigitClassifier, images: Tensor, labels: Tensor, measured: Tensor, reference: Tensor) -> Score:
    """Of `images` the share recognised, of the images `measured` the distances to the features of the reference."""
    recognised = float((classifier.judge(images)[0] == labels).float().mean())
    features = classifier.judge(measured)[1]
    return Score(recognised, frechet_distance(features, reference), kernel_distance(features, reference))


def _unused(folder: Path) -> Path:
    """The folder, or where an earlier demo left its run there, the first free one with a number."""
    candidates = (folder if number == 1 else folder.with_name(f"{folder.name}_{number}") for number in range(1, 10**6))
    return next(candidate for candidate in candidates if not candidate.exists())


def _table(scores: Mapping[str, Score], count: int) -> None:
    rows = [(name, f"{s.recognised:.1%}", f"{s.frechet:.4f}", f"{s.kernel:.4f}") for name, s in scores.items()]
    title = f"{count} digits each, measured by a classifier fitted on real training digits"
    print_table(title, ("digits", "recognised", "Frechet distance", "kernel distance"), rows, right=(1, 2, 3))
    _say("Distances are to the real validation digits. For the real ones they are those of as many training")
    _say("digits: the floor, which no model is expected to pass.")


@contextmanager
def _step(text: str) -> Iterator[None]:
    _say(f"\n{text} ...", style="bold")
    started = time.monotonic()
    yield
    _say(f"  took {duration(time.monotonic() - started)}")


def _save(picture: Image.Image, path: Path) -> None:
    write_png(path, picture)
    _say(f"  picture: {path}")


def _say(text: str, style: str | None = None) -> None:
    Console(highlight=False, soft_wrap=True).print(text, markup=False, style=style)
