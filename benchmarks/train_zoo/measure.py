"""How good what a family trained is: ceilings of the tokenizers, codes alone, MixAR of true codes and of the prior's.

Distances are to the training split, in networks that no loss has seen (EfficientNet-Lite1 and -Lite2, `judge` is the
mean of both); Lite0, whose features the tokenizers train on, is printed beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mixar
from benchmarks.train_zoo.family import Family
from mixar.generation import batches, decoded
from mixar.model import Model
from mixar.plugins import plugin_manager
from mixar_core.data.loader import load_readable
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import read_weights, write_text, write_weights
from mixar_eval.features import extract
from mixar_eval.probe import fit_probe
from mixar_eval.report import csv_text, table

SEEN = "efficientnet-lite0"
JUDGES = ("efficientnet-lite1", "efficientnet-lite2")
_BATCH = 256
Row = dict[str, Any]


def read_table(out: Path) -> dict[str, Row]:
    """The rows that were measured, by what they are of."""
    file = out / "table.json"
    return {row["what"]: row for row in json.loads(file.read_text())} if file.is_file() else {}


class Bench:
    """The real images with their features, and the rows measured so far, kept in `out`."""

    def __init__(
        self, family: Family, models: Path, out: Path, device: torch.device, *, count: int, quick: bool
    ) -> None:
        self.family, self.out, self.device, self.count = family, out, device, count
        self.judges = JUDGES[:1] if quick else JUDGES
        self.names = (SEEN, *self.judges)
        registry = plugin_manager()
        parts = [registry.part("extractor", name) for name in self.names]
        self.extractors: dict[str, FeatureExtractor] = {
            part.name: part.component(part.config()).to(device) for part in parts
        }
        data = registry.part("dataset", family.data)
        self.images, self.labels = {}, {}
        for split in ("train", "validation"):
            dataset = data.component(data.config(), split=split, image_size=family.image_size)
            step = max(1, len(dataset) // 64) if quick else 1
            loaded = load_readable(dataset, list(range(0, len(dataset), step)))
            self.images[split], self.labels[split] = loaded.pixels_B3HW, loaded.labels_B
        self.features = self._real()
        self.own = {key: _mean_kernel(features, features, device=device) for key, features in self.features.items()}
        self.train = self.features[f"train|{self.judges[0]}"]
        self.probe = fit_probe(self.train, self.labels["train"].tolist(), family.categories)
        self.rows = read_table(out)

        @cache
        def load(name: str) -> Model:
            return mixar.load(models / name, device=device)

        #: a model that was trained; read once
        self.load = load

    def _real(self) -> dict[str, Tensor]:
        file = self.out / "features.safetensors"
        if not file.is_file():
            found = {f"{s}|{n}": self.features_of(images, n) for s, images in self.images.items() for n in self.names}
            write_weights(file, found)
        return dict(read_weights(file))

    def features_of(self, images_N3HW: Tensor, name: str) -> Tensor:
        """Feature vectors of images (uint8) in one of the networks."""
        net = self.extractors[name]
        return torch.cat([extract(part.to(self.device), net)["features"] for part in images_N3HW.split(_BATCH)])

    # ---------------------------------------------------------------- rows

    def row(self, what: str, draw: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Measure images (uint8) and their categories that `draw` gives, unless this was measured before."""
        if what in self.rows:
            return
        images_N3HW, labels_N = draw()
        features = {name: self.features_of(images_N3HW, name) for name in self.names}
        row: Row = {"what": what, "images": len(images_N3HW)}
        for split, said in {"train": "", "validation": " to validation"}.items():
            row |= {name + said: self.distance(found, f"{split}|{name}") for name, found in features.items()}
        row["judge"] = sum(row[name] for name in self.judges) / len(self.judges)
        own = features[self.judges[0]]
        row["probe"] = self.probe.named(own, labels_N.tolist()).share
        row["nearest"] = float(torch.cdist(own, self.train).min(dim=1).values.median())
        self.rows[what] = row
        rows = sorted(self.rows.values(), key=lambda row: (row["what"].split()[-1], row["judge"]))
        write_text(self.out / "table.json", json.dumps(rows, indent=1) + "\n")
        write_text(self.out / "table.csv", csv_text(rows))
        write_text(self.out / "table.md", table(rows))
        print(f"  {what}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float)), flush=True)

    def distance(self, features_AF: Tensor, real: str) -> float:
        """The kernel distance to a whole split: what `mixar_eval` takes the mean over random subsets of."""
        own = _mean_kernel(features_AF, features_AF, device=self.device)
        return own + self.own[real] - 2 * _mean_kernel(features_AF, self.features[real], device=self.device)

    def real(self) -> None:
        """The floor: validation images; and, since samples are balanced, as many training images of each category."""
        labels_N, each = self.labels["train"], self.count // self.family.categories
        rows = torch.cat([(labels_N == n).nonzero()[:each, 0] for n in range(self.family.categories)])
        self.row("validation real", lambda: (self.images["validation"], self.labels["validation"]))
        self.row("training, balanced real", lambda: (self.images["train"][rows], labels_N[rows]))

    @torch.no_grad()
    def model(self, name: str, prior: str | None) -> None:
        """What a tokenizer gives back of the validation images, which no model over it goes below; what a prior's codes
        decode to alone; what a MixAR makes of a prior's codes."""
        trains = self.load(name).recipe.trains
        if trains == "prior":
            self.row(f"{name} codes alone", lambda: (self.load(name).decode_codes(self._codes(name)), self._asked))
        elif trains != "mixar":
            self.row(f"{name} reconstructions", lambda: (self._reconstructed(name), self.labels["validation"]))
        elif prior is not None:
            what = f"{name} + {prior} samples"
            self.row(what, lambda: (self._drawn(name, self._asked, self._codes(prior)), self._asked))

    @torch.no_grad()
    def true_codes(self, name: str) -> None:
        """A MixAR's images from the validation images' own codes."""
        tokenizer = self.load(name).system.discrete_tokenizer
        if self.load(name).recipe.trains == "mixar" and tokenizer is not None:
            labels_B = self.labels["validation"]

            def draw() -> tuple[Tensor, Tensor]:
                codes = [tokenizer.encode(part) for part in self._validation()]
                return self._drawn(name, labels_B, torch.cat(codes)), labels_B

            self.row(f"{name} of true codes", draw)

    # ---------------------------------------------------------------- drawing

    @property
    def _asked(self) -> Tensor:
        """Every category equally often."""
        return torch.arange(self.family.categories).repeat_interleave(self.count // self.family.categories)

    def _validation(self) -> list[Tensor]:
        """Its images, as tokenizers take them."""
        return [part.to(self.device).float() / 127.5 - 1.0 for part in self.images["validation"].split(_BATCH)]

    def _reconstructed(self, name: str) -> Tensor:
        system = self.load(name).system
        tokenizer = system.continuous_tokenizer or system.discrete_tokenizer
        assert tokenizer is not None
        return torch.cat([decoded(tokenizer, tokenizer.encode(part)) for part in self._validation()])

    def _codes(self, prior: str) -> Tensor:
        model, labels_B = self.load(prior), self._asked.to(self.device)
        parts, settings = batches(len(labels_B), 0, _BATCH), model.recipe.sampling
        return torch.cat([model.draw_codes(labels_B[rows], settings, noise) for rows, noise in parts])

    def _drawn(self, name: str, labels_B: Tensor, codes_BN: Tensor) -> Tensor:
        model, labels_B = self.load(name), labels_B.to(self.device)
        parts, settings = batches(len(labels_B), 1000, _BATCH), model.recipe.sampling
        return torch.cat([model.draw(labels_B[rows], settings, noise, codes_BN[rows])[0] for rows, noise in parts])


def best(rows: Mapping[str, Row]) -> str:
    """The key of the row whose images the judges find nearest to the training images."""
    return min(rows, key=lambda key: rows[key]["judge"])


def _mean_kernel(one_AF: Tensor, other_BF: Tensor, *, device: torch.device) -> float:
    """The mean of (x . y / F + 1)^3 over pairs of two sets, or of different ones of the same set, in float64."""
    one, other = one_AF.to(device).double(), other_BF.to(device).double()
    kernel_AB = (one @ other.T / one.shape[1] + 1) ** 3
    if one_AF is not other_BF:
        return float(kernel_AB.mean())
    return float((kernel_AB.sum() - kernel_AB.diagonal().sum()) / (len(one) * (len(one) - 1)))
