"""How good what a family trained is: ceilings of the tokenizers, codes alone, MixAR of true codes and of the prior's.

Distances are to the training split, in networks that no loss has seen (EfficientNet-Lite1 and -Lite2, `judge` is the
mean of both); Lite0, whose features the tokenizers train on, is printed beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mixar
from benchmarks.train_zoo.family import Family
from mixar.generation import batch_noise, decoded
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


class Bench:
    """The real images with their features, and the rows measured so far, kept in `out`."""

    def __init__(
        self, family: Family, models: Path, out: Path, device: torch.device, *, count: int, quick: bool
    ) -> None:
        self.family, self.models, self.out, self.device, self.count = family, models, out, device, count
        self.names = (SEEN,) if quick else (SEEN, *JUDGES)
        self.judges = self.names[-2:] if len(self.names) > 1 else self.names
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
        self.probe = fit_probe(self.features["train"][self.judges[0]], self.labels["train"].tolist(), family.categories)
        self.own = {
            (split, name): _mean_kernel(features, features, device=device)
            for split, of_split in self.features.items()
            for name, features in of_split.items()
        }
        self.loaded: dict[str, Model] = {}
        self.rows: dict[str, Row] = {}
        if (out / "table.json").is_file():
            self.rows = {row["what"]: row for row in json.loads((out / "table.json").read_text())}

    def _real(self) -> dict[str, dict[str, Tensor]]:
        file = self.out / "features.safetensors"
        if not file.is_file():
            found = {f"{s}|{n}": f for s, images in self.images.items() for n, f in self._features(images).items()}
            write_weights(file, found)
        stored = read_weights(file)
        return {split: {n: stored[f"{split}|{n}"] for n in self.names} for split in self.images}

    def _features(self, images_N3HW: Tensor) -> dict[str, Tensor]:
        return {name: self.features_of(images_N3HW, name) for name in self.names}

    def features_of(self, images_N3HW: Tensor, name: str) -> Tensor:
        """Feature vectors of images (uint8) in one of the networks."""
        net = self.extractors[name]
        return torch.cat([extract(part.to(self.device), net)["features"] for part in images_N3HW.split(_BATCH)])

    # ---------------------------------------------------------------- rows

    def row(self, what: str, draw: Callable[[], tuple[Tensor, Tensor]]) -> Row:
        """Measure images (uint8) and their categories that `draw` gives, unless this was measured before."""
        if what in self.rows:
            return self.rows[what]
        images_N3HW, labels_N = draw()
        features = self._features(images_N3HW)
        row: Row = {"what": what, "images": len(images_N3HW)}
        for name, found in features.items():
            row[name] = self.distance(found, "train", name)
        row["judge"] = sum(row[name] for name in self.judges) / len(self.judges)
        for name, found in features.items():
            row[f"{name} to validation"] = self.distance(found, "validation", name)
        own = features[self.judges[0]]
        row["probe"] = self.probe.named(own, labels_N.tolist()).share
        row["nearest"] = float(torch.cdist(own, self.features["train"][self.judges[0]]).min(dim=1).values.median())
        self.rows[what] = row
        write_text(self.out / "table.json", json.dumps([*self.rows.values()], indent=1) + "\n")
        print(f"  {what}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float)), flush=True)
        return row

    def distance(self, features_AF: Tensor, split: str, name: str) -> float:
        """The kernel distance to a whole split: what `mixar_eval` takes the mean over random subsets of."""
        own = _mean_kernel(features_AF, features_AF, device=self.device)
        across = _mean_kernel(features_AF, self.features[split][name], device=self.device)
        return own + self.own[split, name] - 2 * across

    def write(self) -> None:
        """The rows as Markdown and CSV."""
        rows = [
            {"what": row["what"], "images": row["images"]}
            | {name: f"{row[name]:.4f}" for name in ("judge", *self.names)}
            | {name: f"{row[name]:.3f}" for name in ("probe", "nearest")}
            | {"judge, to validation": f"{sum(row[f'{n} to validation'] for n in self.judges) / len(self.judges):.4f}"}
            for row in sorted(self.rows.values(), key=lambda row: (row["what"].split()[-1], row["judge"]))
        ]
        write_text(self.out / "table.md", table(rows) + "\n")
        write_text(self.out / "table.csv", csv_text([*self.rows.values()]))

    def real(self) -> None:
        """The floor: validation images; and, since samples are balanced, as many training images of each category."""
        labels = self.labels["train"]
        each = [
            (labels == n).nonzero()[:, 0][: self.count // self.family.categories] for n in range(self.family.categories)
        ]
        rows = torch.cat(each)
        self.row("validation real", lambda: (self.images["validation"], self.labels["validation"]))
        self.row("training, balanced real", lambda: (self.images["train"][rows], labels[rows]))

    @torch.no_grad()
    def tokenizer(self, name: str) -> Row:
        """What a tokenizer gives back of the validation images; its distance is what no model over it goes below."""
        real_B3HW, labels_B = self.images["validation"], self.labels["validation"]

        def draw() -> tuple[Tensor, Tensor]:
            system = self.load(name).system
            tokenizer = system.continuous_tokenizer or system.discrete_tokenizer
            assert tokenizer is not None
            parts = (
                real_B3HW[i : i + _BATCH].to(self.device).float() / 127.5 - 1.0
                for i in range(0, len(real_B3HW), _BATCH)
            )
            return torch.cat([decoded(tokenizer, tokenizer.encode(part)) for part in parts]), labels_B

        return self.row(f"{name} reconstructions", draw)

    def codes(self, prior: str) -> Row:
        """The prior's codes decoded alone."""
        return self.row(
            f"{prior} codes alone", lambda: (self.load(prior).decode_codes(self.drawn_codes(prior)), self.asked)
        )

    def mixar(self, name: str, prior: str) -> Row:
        """A MixAR's images from the prior's codes."""
        what = f"{name} + {prior} samples"
        return self.row(what, lambda: (self.drawn(name, self.asked, self.drawn_codes(prior)), self.asked))

    @torch.no_grad()
    def true_codes(self, name: str) -> Row:
        """A MixAR's images from the validation images' own codes."""
        real_B3HW, labels_B = self.images["validation"], self.labels["validation"]

        def draw() -> tuple[Tensor, Tensor]:
            tokenizer = self.load(name).system.discrete_tokenizer
            assert tokenizer is not None
            codes = [tokenizer.encode(p.to(self.device).float() / 127.5 - 1.0) for p in real_B3HW.split(_BATCH)]
            return self.drawn(name, labels_B, torch.cat(codes)), labels_B

        return self.row(f"{name} of true codes", draw)

    # ---------------------------------------------------------------- drawing

    @property
    def asked(self) -> Tensor:
        """Every category equally often."""
        return torch.arange(self.family.categories).repeat_interleave(self.count // self.family.categories)

    def load(self, name: str) -> Model:
        """A model that was trained; read once."""
        if name not in self.loaded:
            self.loaded[name] = mixar.load(self.models / name, device=self.device)
        return self.loaded[name]

    def drawn_codes(self, prior: str) -> Tensor:
        """Codes of a prior, of every category equally often."""
        model, parts = self.load(prior), self.asked.to(self.device).split(_BATCH)
        settings = model.recipe.sampling
        return torch.cat([model.draw_codes(part, settings, batch_noise(0, k)) for k, part in enumerate(parts)])

    def drawn(self, name: str, labels_B: Tensor, codes_BN: Tensor) -> Tensor:
        """Images of a MixAR from codes."""
        model, settings = self.load(name), self.load(name).recipe.sampling
        parts = zip(labels_B.to(self.device).split(_BATCH), codes_BN.split(_BATCH), strict=True)
        drawn = [
            model.draw(labels, settings, batch_noise(1000, k), codes)[0] for k, (labels, codes) in enumerate(parts)
        ]
        return torch.cat(drawn)


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
