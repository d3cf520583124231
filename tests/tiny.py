"""A whole family in miniature, in a temporary folder: data, recipes, and model folders with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from PIL import Image

from mixar import strict_yaml
from mixar.assembly import build
from mixar.folder import save_model
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import load_recipe, to_yaml

CLASSES = ("cat", "dog", "owl")
TRAINING = {
    "steps": 2,
    "batch_size": 4,
    "learning_rate_per": None,
    "log_every": 1,
    "checkpoint_every": 1,
    "evaluate_every": 0,
}


def plain_base(folder: Path) -> dict[str, object]:
    """What the recipes of the family share."""
    return {
        "image_size": 16,
        "num_classes": len(CLASSES),
        "data": {"type": "image-folder", "path": str(folder / "data")},
        "training": dict(TRAINING),
        "callbacks": [],
    }


def plain_recipes(folder: Path) -> dict[str, dict[str, object]]:
    """Plain values by name: continuous, discrete, prior, mixar. 4 x 4 tokens, 2-bit codes."""
    levels = {"channels": 4, "channel_multipliers": [1, 1, 1], "blocks": 1, "norm": "none"}
    kl = {"type": "kl", "latent_channels": 2, **levels, "encoder_attention": [], "mid_attention": False}
    maskbit = {"type": "maskbit", "bits": 2, "stride": 4, "splits": 1, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    return {
        "continuous": {"trains": "continuous_tokenizer", "continuous_tokenizer": kl},
        "discrete": {"trains": "discrete_tokenizer", "discrete_tokenizer": {"type": "lfq", "bits": 2, **levels}},
        "prior": {
            "trains": "prior",
            "discrete_tokenizer": {"weights": str(folder / "models/discrete")},
            "prior": {**maskbit, "steps": 3},
        },
        "mixar": {
            "trains": "mixar",
            "continuous_tokenizer": {"weights": str(folder / "models/continuous")},
            "discrete_tokenizer": {"weights": str(folder / "models/discrete")},
            "prior": {"weights": str(folder / "models/prior")},
            "injector": {"type": "dc-mix"},
            "head": {"type": "diffusion", "depth": 1, "width": 8, "sampling_steps": 3},
            "backbone": {"width": 8, "depth": 1, "heads": 2, "buffer": 1},
            "sampling": {"steps": 3, "cfg": 1.5},
        },
    }


def write_family(folder: Path, registry: Registry | None = None) -> None:
    """Fill `folder` with data/, recipes/NAME.yaml and models/NAME/."""
    registry = registry or plugin_manager()
    draw = numpy.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in CLASSES:
            place = folder / "data" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype="uint8")).save(place / f"{index}.png")
    (folder / "recipes").mkdir()
    (folder / "recipes/base.yaml").write_text(strict_yaml.dump(plain_base(folder)))
    for name, plain in plain_recipes(folder).items():
        path = folder / f"recipes/{name}.yaml"
        path.write_text(strict_yaml.dump({"extends": "base.yaml", **plain}))
        recipe = load_recipe(path, registry=registry)
        torch.manual_seed(0)
        system = build(recipe, registry)
        with torch.no_grad():  # away from zeros, which would make a fresh head deaf to what it is told
            for parameter in system.trained.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        facts = {"class_names": list(CLASSES)}
        save_model(
            folder / "models" / name, recipe_yaml=to_yaml(recipe), tensors=system.trained.state_dict(), facts=facts
        )
