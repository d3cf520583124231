"""Reports of generation: scores that do not depend on order or interruptions, classes, floors, and the protocol."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import attrs
import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import mixar
from mixar.folder import save_model
from mixar.plugins import Registry
from mixar.recipe import load_recipe, to_yaml
from mixar.sampling import Plan, all_classes
from mixar.sampling import Report as Progress
from mixar_core.distributed import StopSignals
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor, Outputs
from mixar_eval.context import EvalContext, Stopped
from mixar_eval.distances import Gaussian
from mixar_eval.features import Features, features_of
from mixar_eval.guidance import check_models, cost_of
from mixar_eval.images import ImageSet, open_images
from mixar_eval.points import Point, images_per_point
from mixar_eval.protocol import ClassCounts, count_classes, reasons_against
from mixar_eval.references import Reference, open_reference
from mixar_eval.report import Report, csv_text, number, table
from mixar_eval.scores import Scores, floor_of, scores_of
from mixar_eval.sweep import best_of, grid, plot_sweep, sweep_section

DRAWN = {"seconds_per_image_and_process": 0.1}


class Pooled(FeatureExtractor):
    """Means of quarters as vectors, means of channels as logits; counts how many images it saw."""

    feature_dim = 12
    logit_dim = 3

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.seen = 0

    def forward(self, images_B3HW: Tensor) -> Tensor:
        self.seen += len(images_B3HW)
        return torch.nn.functional.adaptive_avg_pool2d(images_B3HW * self.scale, 2).flatten(1)

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        return [images_B3HW]

    def outputs(self, images_B3HW: Tensor) -> Outputs:
        return Outputs(self(images_B3HW), 4 * images_B3HW.mean((2, 3)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 PNGs of noise about a mean of their own, in one folder."""
    folder, draw = tmp_path / "pictures", numpy.random.default_rng(3)
    folder.mkdir()
    for index in range(40):
        pixels = draw.integers(0, 1 + int(draw.integers(20, 255)), (8, 8, 3)).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def images_of(folder: Path, registry: Registry) -> ImageSet:
    return open_images(str(folder), registry)


def found_in(
    images: ImageSet, cache: Path, extractor: FeatureExtractor, registry: Registry, **changes: Any
) -> Features:
    context = EvalContext(registry=registry, extractor=extractor, batch_size=16, **changes)
    return features_of(images, context, "features", cache=cache)


def reference_of(folder: Path, registry: Registry) -> Reference:
    return open_reference(str(folder), EvalContext(registry=registry, extractor=Pooled()))


def test_the_protocol_is_told_by_every_part_of_it() -> None:
    labels = [label for label in range(1000) for _ in range(50)]
    names = tuple(map(str, range(1000)))
    exact = ImageSet(labels, "", 256, 256, labels=labels, class_names=names)  # type: ignore[arg-type]
    uneven = [*labels[:-9], *9 * [0]]
    reference, extractor = Reference("", Gaussian(torch.zeros(1), torch.eye(1)), adm_imagenet=True), Pooled()
    extractor.is_inception = extractor.has_published_weights = True

    def comparable(reference: Reference = reference, **changes: object) -> str:
        reasons = reasons_against(attrs.evolve(exact, **changes), reference, extractor)
        return Report(title="", protocol="", reasons=reasons, figures={}, plain={}, sections=[], made={}).comparable

    assert comparable() == "yes"
    statistics = attrs.evolve(reference, adm_imagenet=False)
    assert comparable(statistics) == "no, because the reference is not ADM's ImageNet statistics"
    for changes, reason in (
        ({"rows": torch.arange(49_999)}, "49,999 images and not 50,000"),
        ({"height": 512}, "256x512 pixels and not 256x256"),
        ({"labels": None}, "the samples' classes are not known"),
        ({"class_names": names[:100]}, "100 classes and not 1,000"),
        ({"labels": uneven}, "41 to 59 images of a class and not 50 of each"),
        ({"drawn": {"model": {"parts": {"data": {}}}}}, "the codes that guide them are real images'"),
    ):
        assert comparable(**changes) == f"no, because {reason}"
    extractor.has_published_weights = False
    assert comparable() == "no, because Inception's weights are not those of the known checksum"
    extractor.is_inception = False
    assert comparable() == "no, because the extractor is not Inception"
    assert comparable(rows=torch.arange(10)).count(";") == 1


def test_class_counts() -> None:
    counts = count_classes([0, 2, 2, -1], 4)
    assert counts == ClassCounts(4, 0, 2, (1, 3)) and not counts.exact
    balanced = count_classes([1, 0, 1, 0], 2)
    assert balanced is not None and balanced.exact and balanced.missing == ()
    assert count_classes(None, 3) is None and count_classes([0], 0) is None


def test_order_does_not_change_a_score_nor_does_an_interruption(
    pictures: Path, tmp_path: Path, registry: Registry
) -> None:
    reference = Reference("", Gaussian.of(noise := torch.randn(60, 12)), noise)
    one = found_in(images_of(pictures, registry), tmp_path / "one", Pooled(), registry)
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for name, place in zip(sorted(pictures.iterdir()), torch.randperm(40).tolist(), strict=True):
        (shuffled / f"{place:03d}.png").write_bytes(name.read_bytes())
    other = found_in(images_of(shuffled, registry), tmp_path / "two", Pooled(), registry)
    assert torch.equal(one.features_AF, other.features_AF)
    assert scores_of(one, reference) == scores_of(other, reference)
    assert scores_of(one, reference).inception is not None

    signals, extractor = StopSignals(), Pooled()
    signals.requested = True
    with pytest.raises(Stopped):
        found_in(images_of(pictures, registry), tmp_path / "three", extractor, registry, signals=signals)
    told: list[tuple[int, int, int]] = []

    def show(what: str) -> Progress:
        return lambda *figures: told.append(figures)

    again = found_in(images_of(pictures, registry), tmp_path / "three", extractor, registry, show=show)
    assert torch.equal(one.features_AF, again.features_AF) and extractor.seen == 40
    assert told == [(16, 40, 0), (32, 40, 16), (40, 40, 24)]


def test_features_are_another_pictures_or_extractors_never(pictures: Path, tmp_path: Path, registry: Registry) -> None:
    extractor, cache = Pooled(), tmp_path / "cache"
    found_in(images_of(pictures, registry), cache, extractor, registry)
    Image.new("RGB", (8, 8), "red").save(pictures / "020.png")  # of the second chunk
    found_in(images_of(pictures, registry), cache, extractor, registry)
    assert extractor.seen == 40 + 16
    other = Pooled(scale=2.0)
    assert found_in(images_of(pictures, registry), cache, other, registry).features_AF.abs().max() > 1
    assert other.seen == 40
    (pictures / "030.png").write_bytes((pictures / "030.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"030\.png"):
        found_in(images_of(pictures, registry), cache, extractor, registry)


def test_a_set_is_at_no_distance_from_itself(pictures: Path, tmp_path: Path, registry: Registry) -> None:
    scores = scores_of(
        found_in(images_of(pictures, registry), tmp_path / "cache", Pooled(), registry),
        reference_of(pictures, registry),
    )
    assert 0 <= abs(scores.frechet) < 1e-3 and scores.precision == scores.recall == 1.0
    assert scores.kernel is not None and abs(scores.kernel) < 0.1 and scores.count == 40


def test_what_cannot_be_measured_is_left_out_or_refused() -> None:
    statistics = Reference("", Gaussian(torch.zeros(3), torch.eye(3)), None)
    scores = scores_of(Features(torch.randn(5, 3), torch.randn(5, 4)), statistics)
    assert scores.kernel is scores.precision is scores.inception is None and scores.frechet > 0
    few = scores_of(Features(torch.randn(3, 3)), Reference("", statistics.gaussian, torch.randn(9, 3)))
    assert few.precision is None and few.kernel is not None
    with pytest.raises(UserError, match="at least two images"):
        scores_of(Features(torch.randn(1, 3)), statistics)
    with pytest.raises(UserError, match="do not compare"):
        scores_of(Features(torch.randn(5, 2)), statistics)


def test_floors_are_of_real_images_at_the_same_count() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(100, 3)
    whole = Reference("", Gaussian.of(vectors), vectors)
    floor = floor_of(whole, 30)
    assert floor is not None and floor.scores.count == 30
    assert floor.what == "30 of the reference's images against its other 70" and 0 < floor.scores.frechet < 1
    assert floor_of(whole, 30) == floor
    half = floor_of(whole, 500)
    assert half is not None and half.what == (
        "50 of the reference's images against its other 50: fewer than the 500 samples, so its Frechet distance reads "
        "too high"
    )
    of_others = Reference("", Gaussian(torch.zeros(3), torch.eye(3), 1_000_000), vectors)  # as ADM's file has it
    against = floor_of(of_others, 80)
    assert against is not None and against.what == "80 of the reference's images against its statistics"
    real = floor_of(whole, 40, Features(torch.randn(40, 3)))
    assert real is not None and real.what == "40 real images of the other split" and real.scores.kernel is not None
    assert floor_of(Reference("", whole.gaussian, None), 30) is None


def test_a_missing_class_is_seen_by_the_reference(family: Path, tmp_path: Path, registry: Registry) -> None:
    folder = tmp_path / "drawn"
    for name in ("cat", "owl"):
        (folder / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (16, 16)).save(folder / name / f"{index}.png")
    real = open_images(family / "data/val", registry).class_names
    samples = open_images(str(folder), registry).named_as(real)
    assert samples.labels == [0, 0, 2, 2] and samples.class_names == ("cat", "dog", "owl")
    assert count_classes(samples.labels, len(samples.class_names)) == ClassCounts(3, 0, 2, (1,))
    numpy.savez(tmp_path / "drawn.npz", numpy.zeros((4, 16, 16, 3), "uint8"), numpy.array([0, 0, 1, 1]))
    npz = open_images(str(tmp_path / "drawn.npz"), registry)
    assert npz.named_as(real).class_names == ("cat", "dog", "owl") and npz.labels == [0, 0, 1, 1]
    alone = open_images(str(folder), registry).named_as(npz.class_names)  # other names: not its classes
    assert alone.class_names == ("cat", "owl") and alone.labels == [0, 0, 1, 1]


def test_a_budget_is_shared_evenly_or_refused() -> None:
    assert images_per_point(1000, 6, 9) == 162  # 166, as a multiple of the classes
    assert images_per_point(300, 2, 1000) == 150 and images_per_point(300, 2, 0) == 150
    with pytest.raises(UserError, match="49 images for each of 4 points; at least 50 are needed, 200 in all"):
        images_per_point(199, 4, 9)


def plan_of(model: mixar.Model) -> Plan:
    return Plan(count=60, batch=8, seed=0, settings=model.settings(), classes=all_classes(model))


def test_a_grid_is_every_combination_once(family: Path) -> None:
    model = mixar.load(family / "models/mixar", device="cpu")
    plans = grid(model, plan_of(model), [1.0, 2.0, 1.0], [], [2, 4])
    assert list(plans) == [f"cfg-{cfg}_temperature-1_steps-{steps}" for steps in (2, 4) for cfg in (1, 2)]
    assert [(plan.settings.cfg, plan.settings.steps) for plan in plans.values()] == [(1, 2), (2, 2), (1, 4), (2, 4)]
    of_prior = mixar.load(family / "models/prior", device="cpu")
    prior = grid(of_prior, plan_of(of_prior), [], [0.5, 2.0], [])
    assert list(prior) == [f"cfg-default_temperature-{t}_steps-default" for t in ("0.5", "2")]
    assert [plan.settings.prior_temperature for plan in prior.values()] == [0.5, 2.0]
    with pytest.raises(UserError, match="steps"):
        grid(model, plan_of(model), [], [], [0])


def test_rows_of_a_csv_may_differ_in_their_columns() -> None:
    assert csv_text([{"a": 1}, {"b": None, "a": 2.5}, {"c": "x, y"}]) == 'a,b,c\n1,,\n2.5,,\n,,"x, y"\n'


def test_a_sweep_marks_the_best_point() -> None:
    settings = [
        {"cfg": cfg, "temperature": temperature, "steps": 3} for temperature in (0.5, 1.0) for cfg in (1.0, 2.0, 3.0)
    ]
    points = [
        Point("tiny", setting, DRAWN, Scores(60, abs(setting["cfg"] - 2) + 1, kernel))
        for setting, kernel in zip(settings, (0.3, 0.2, 0.1, 0.3, 0.2, 0.4), strict=True)
    ]
    assert best_of(points, "frechet").setting == settings[1]
    assert best_of(points, "kernel").setting == settings[2]
    rows = list(csv.DictReader(csv_text([point.row() for point in points]).splitlines()))
    assert len(rows) == 6 and rows[0]["cfg"] == "1.0" and rows[0]["frechet_distance"] == "2.0"
    assert rows[0]["inception_score"] == "" and rows[0]["images"] == "60"
    picture = plot_sweep(points, by="frechet", gives_fid=False, floor=0.5)
    assert len(numpy.unique(numpy.array(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    section = sweep_section(points, by="frechet", gives_fid=True, floor=0.5, floor_is="60 real images")
    text = section.to_markdown()
    assert "**Best FID: 1 at cfg 2, temperature 0.5, steps 3.** Floor: 0.5 (60 real images)." in text
    assert text.count("| best |") == 1
    bare = [attrs.evolve(point, scores=Scores(60, 1.0)) for point in points]
    with pytest.raises(UserError, match="--by kernel"):
        best_of(bare, "kernel")


def test_guidance_costs_what_the_sequences_say(family: Path, tmp_path: Path, registry: Registry) -> None:
    costs, models = {}, {}
    for name in ("none", "dc-mix", "dc-sa", "dc-ca"):
        recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=[f"injector.type={name}"])
        tensors = mixar.build(recipe).trained.state_dict()
        save_model(tmp_path / name, recipe_yaml=to_yaml(recipe), tensors=tensors)
        models[name] = mixar.load(tmp_path / name, device="cpu")
        costs[name] = cost_of(models[name], models[name].settings(steps=1, cfg=1.0), registry)
    # one step: a buffer of 1 through the encoder, 16 tokens more through the decoder; dc-sa puts 16 codes before both
    assert [costs[name]["tokens"] for name in costs] == [18, 18, 50, 18]
    assert [costs[name]["memory"] for name in costs] == [0, 0, 0, 16]
    guided = cost_of(models["none"], models["none"].settings(steps=1, cfg=2.0), registry)
    assert guided["tokens"] == 2 * costs["none"]["tokens"] and guided["injector"] == "none"
    more = cost_of(models["none"], models["none"].settings(steps=2, cfg=1.0), registry)
    assert more["tokens"] > 2 * 18 and more["encoder_first"] == 1 < more["encoder_last"] < 17 == more["decoder"]
    parameters = {name: cost["parameters"] for name, cost in costs.items()}
    assert parameters["none"] == parameters["dc-mix"] < parameters["dc-sa"]
    check_models(models)
    with pytest.raises(UserError, match="trains prior"):
        check_models({**models, "prior": mixar.load(family / "models/prior", device="cpu")})


def test_guidance_is_counted_along_the_samplers_plan(family: Path, tmp_path: Path, registry: Registry) -> None:
    models = {}
    for name, backbone in (
        ("four", {}),
        ("causal", {"backbone": {"type": "causal", "width": 16, "depth": 1, "heads": 2}}),
    ):
        chosen = {**backbone, "masking": None, "sampler": {"type": "cosine", "tokens_per_step": 4}}
        recipe = load_recipe(family / "recipes/mixar.yaml", chosen, registry=registry)
        save_model(tmp_path / name, recipe_yaml=to_yaml(recipe), tensors=mixar.build(recipe).trained.state_dict())
        models[name] = mixar.load(tmp_path / name, device="cpu")
    cost = cost_of(models["four"], models["four"].settings(steps=1, cfg=1.0), registry)
    assert cost["tokens"] == sum(1 + known + 17 for known in (0, 4, 8, 12))
    with pytest.raises(UserError, match="causal: its backbone has no encoder and decoder"):
        check_models(models)


def test_tables_and_numbers() -> None:
    assert table([{"a": 1, "b|c": None}]) == "| a | b/c |\n| --- | --- |\n| 1 | - |\n"
    assert table([{"a": "x", "b": 2, "c": 0.5}]) == "| a | b | c |\n| --- | ---: | ---: |\n| x | 2 | 0.5 |\n"
    assert [number(value) for value in (None, 0.123456, 12345678.0, 3.0)] == [None, "0.1235", "12,345,678", "3"]
