"""Big images, long lists of classes, and no classes at all: trained, drawn and asked for as any other."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mixar.assembly import build, open_data
from mixar.model import Model, load
from mixar.plugins import Registry
from mixar.recipe import load_recipe, make_recipe
from mixar.run import make_objective, train
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.types import NO_CLASS, Condition, ImageBatch
from mixar_plugins.priors.ground_truth import GroundTruthConfig, GroundTruthPrior
from tests.cli.process import good, refused

MANY = 10_000


def png(seed: int) -> bytes:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def trained_pair(family: Path, registry: Registry, folder: Path, *overrides: str) -> Path:
    """A prior, and a MixAR with it and TI-Mix from the first step, trained for two steps; the MixAR's folder."""
    train(load_recipe(family / "recipes/prior.yaml", registry=registry, overrides=overrides), folder / "prior")
    mixed = [f"prior.weights={folder / 'prior'}", "ti_mix.start=0.5", "training.evaluate_every=1"]
    train(
        load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=[*overrides, *mixed]), folder / "mixar"
    )
    return folder / "mixar"


def shake(module: nn.Module) -> None:
    """Move all weights away from where they begin: a fresh head is deaf to what it is told."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


# ---------------------------------------------------------------- big images


def test_512_pixels_are_32_x_32_tokens(registry: Registry) -> None:
    levels = {"channels": 2, "channel_multipliers": [1, 1, 1, 1, 1], "blocks": 1, "norm": "none"}
    plain = {
        "name": "big",
        "trains": "mixar",
        "image_size": 512,
        "num_classes": 3,
        "continuous_tokenizer": {"type": "kl", "latent_channels": 2, "encoder_attention": [], **levels},
        "discrete_tokenizer": {"type": "lfq", "bits": 4, **levels},
        "prior": {"type": "maskbit", "bits": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "steps": 3},
        "injector": {"type": "dc-mix"},
        "head": {"type": "diffusion", "depth": 1, "width": 8, "sampling_steps": 3},
        "backbone": {"width": 8, "depth": 1, "heads": 2, "buffer": 2},
        "ti_mix": {"schedule": "constant", "start": 0.5},
        "sampling": {"steps": 4, "cfg": 2.0},
    }
    system = build(make_recipe(plain, registry, where="big"), registry)
    objective = make_objective(system, registry).train()
    assert system.model is not None and system.model.backbone.layout.tokens == 1024
    images = ImageBatch(torch.rand(2, 3, 512, 512) * 2 - 1, torch.tensor([0, 2]))
    tokens = objective.tokenize(images, noise=Noise.seeded(0))
    assert tokens.latents_BChw.shape == (2, 2, 32, 32) and tokens.codes_BN is not None
    assert tokens.codes_BN.shape == (2, 1024)
    total = objective(tokens, step=0, steps=1, noise=Noise.seeded(1)).total
    total.backward()
    assert total.isfinite()
    drawn = Model(system, (), torch.device("cpu")).generate([0, NO_CLASS])
    assert drawn.images.shape == (2, 3, 512, 512) and drawn.codes is not None and drawn.codes.shape == (2, 1024)


# ---------------------------------------------------------------- many classes


@pytest.fixture(scope="module")
def many(family: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MixAR of 10,000 classes."""
    folder = tmp_path_factory.mktemp("many")
    labels = [0, MANY - 1, 5000, *range(7)]
    table = pa.table({"image": [png(i) for i in range(10)], "label": labels, "split": ["train"] * 8 + ["val"] * 2})
    names = {"label": {"_type": "ClassLabel", "names": [f"class {label}" for label in range(MANY)]}}
    noted = {"huggingface": json.dumps({"info": {"features": names}})}
    pq.write_table(table.replace_schema_metadata(noted), folder / "data.parquet")
    data = f"data={{type: parquet, path: {folder / 'data.parquet'}}}"
    return trained_pair(family, registry, folder, data, f"num_classes={MANY}")


def test_the_last_of_many_classes_is_drawn_by_number_and_by_name(many: Path) -> None:
    model = load(many, device="cpu")
    assert model.system.model is not None and len(model.class_names) == MANY
    shake(model.system.trained)
    drawn = model.generate([MANY - 1, "class 9999", 0, NO_CLASS], batch_size=1)
    assert drawn.labels == (MANY - 1, MANY - 1, 0, NO_CLASS) and drawn.names[1] == "class 9999"
    alone = [model.generate(label, seed=3).images for label in (MANY - 1, "class 9999", 0, NO_CLASS)]
    assert torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], alone[2]) and not torch.equal(alone[0], alone[3])


def test_an_unknown_class_among_many_is_named_in_one_short_line(many: Path, tmp_path: Path) -> None:
    assert "1 images" in good("sample", many, "--labels", "9999", "--out", tmp_path / "out")
    assert "0 to 9999" in refused("sample", many, "--labels", "10000", "--out", tmp_path / "no")
    line = refused("sample", many, "--classes", "class 99999", "--out", tmp_path / "no")
    assert "did you mean class 9999" in line and len(line) < 700


def test_only_the_classes_of_a_batch_are_taught(many: Path, registry: Registry) -> None:
    system = build(load_recipe(many / "recipe.yaml", registry=registry), registry)
    shake(system.trained)
    objective = make_objective(system, registry).train()
    images = ImageBatch(torch.rand(2, 3, 16, 16), torch.tensor([MANY - 1, 5000]))
    for number in range(4):  # a label may be dropped in one of them
        batch = objective.tokenize(images, noise=Noise.seeded(number))
        objective(batch, step=0, steps=1, noise=Noise.seeded(number)).total.backward()
    assert system.model is not None
    gradient: Tensor = system.model.backbone.class_emb.weight.grad
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [5000, MANY - 1]


# ---------------------------------------------------------------- no classes


@pytest.fixture(scope="module", params=["labelled images", "images without labels"])
def unconditional(
    request: pytest.FixtureRequest, family: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A MixAR of no classes."""
    folder = tmp_path_factory.mktemp("none")
    overrides = ["num_classes=0"]
    if request.param == "images without labels":
        for split in ("train", "val"):
            (folder / "data" / split).mkdir(parents=True)
            for index in range(5):
                (folder / "data" / split / f"{index}.png").write_bytes(png(index))
        overrides.append(f"data.path={folder / 'data'}")
    return trained_pair(family, registry, folder, *overrides)


def test_without_classes_there_is_no_guidance_and_no_label(unconditional: Path) -> None:
    model = load(unconditional, device="cpu")
    assert model.system.model is not None and model.system.model.backbone.class_emb is None
    assert model.class_names == ()
    drawn = model.generate([NO_CLASS] * 2, cfg=1.0)
    assert drawn.names == ("no class", "no class")
    assert torch.equal(drawn.images, model.generate([NO_CLASS] * 2, cfg=5.0).images)
    for label in (0, "cat"):
        with pytest.raises(UserError, match=r"unknown (label 0; allowed: -1 for no class|class \"cat\")"):
            model.generate(label)


def test_an_unconditional_model_is_sampled_from_by_default(unconditional: Path, tmp_path: Path) -> None:
    good("sample", unconditional, "-n", 3, "--out", tmp_path / "few")
    good("sample", unconditional, "--count", 3, "--out", tmp_path / "many")
    assert (tmp_path / "few/grid.png").is_file()
    assert "-1 for no class" in refused("sample", unconditional, "--labels", "0", "--out", tmp_path / "no")


def test_real_codes_serve_an_unconditional_model_whatever_its_images_are_labelled(
    family: Path, registry: Registry
) -> None:
    recipe = load_recipe(family / "recipes/prior.yaml", registry=registry)
    tokenizer = build(recipe, registry).discrete_tokenizer
    data = open_data(recipe, registry, "train")
    prior = GroundTruthPrior(GroundTruthConfig(), tokenizer=tokenizer, num_classes=0, data=data)
    drawn = [
        prior.sample(Condition(torch.tensor([2, label])), noise=Noise.seeded(0)).codes_BN for label in (0, NO_CLASS)
    ]
    assert torch.equal(*drawn)
