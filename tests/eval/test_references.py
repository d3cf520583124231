"""References and their statistics; and our figures against those of torch-fidelity's own command on two folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import pytest
import torch
import torch_fidelity
from torch import Tensor

from mixar.folder import sha256
from mixar.plugins import Registry
from mixar.sampling import Report as Progress
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_eval import inception, references
from mixar_eval.context import EvalContext
from mixar_eval.distances import Gaussian, frechet_of, kernel_distance
from mixar_eval.extractors import open_extractor
from mixar_eval.features import features_of
from mixar_eval.images import open_images
from mixar_eval.references import Reference, open_reference
from mixar_eval.scores import inception_score, precision_recall
from tests.eval.test_images import pixels, write_pngs
from tests.networks import write_inception


class Grey(FeatureExtractor):
    """Brightness of the four quarters."""

    feature_dim = 4

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images_B3HW.mean(dim=1), 2).flatten(1)

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        return [images_B3HW]


class GreyInception(Grey):
    is_inception = True


def opened(path: Path | str, registry: Registry, extractor: FeatureExtractor | None = None, **known: int) -> Reference:
    return open_reference(str(path), EvalContext(registry=registry, extractor=extractor or Grey()), **known)


def test_a_folder_and_its_saved_statistics_are_the_same_reference(tmp_path: Path, registry: Registry) -> None:
    reference = opened(write_pngs(tmp_path / "real", pixels(30)), registry)
    assert reference.count == 30 and reference.features_AF.shape == (30, 4) and not reference.notes
    assert abs(frechet_of(reference.gaussian, reference.gaussian)) < 1e-3
    reference.save(tmp_path / "all.npz")
    again = opened(tmp_path / "all.npz", registry)
    assert again.count == 30 and torch.equal(again.features_AF, reference.features_AF) and not again.adm_imagenet
    assert "sha256" in again.description and not again.notes
    assert abs(frechet_of(reference.gaussian, again.gaussian)) < 1e-12
    reference.gaussian.save(tmp_path / "stats.npz")
    assert opened(tmp_path / "stats.npz", registry).features_AF is None
    few = opened(write_pngs(tmp_path / "few", pixels(4)), registry)
    assert "4 images and a feature vector 4 numbers" in few.notes[0]


def test_many_images_leave_their_statistics_alone(tmp_path: Path, registry: Registry, monkeypatch) -> None:
    folder = write_pngs(tmp_path / "real", pixels(30))
    kept = opened(folder, registry)
    monkeypatch.setattr(references, "KEPT", 20)
    seen: list[tuple[int, int]] = []

    def show(what: str) -> Progress:
        return lambda done, of, fresh: seen.append((done, of))

    summed = open_reference(str(folder), EvalContext(registry=registry, extractor=Grey(), batch_size=16, show=show))
    assert summed.features_AF is None and summed.count == 30 and "statistics alone" in summed.notes[0]
    assert abs(frechet_of(kept.gaussian, summed.gaussian)) < 1e-9 and seen == [(16, 30), (30, 30)]


def test_adms_file_gives_inceptions_statistics_and_its_images_vectors(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "VIRTUAL_imagenet256_labeled.npz"
    # ADM's file holds the statistics of all training images, and 10,000 images besides
    numpy.savez(path, pixels(9), mu=numpy.ones(4, "float32"), sigma=numpy.eye(4), mu_s=numpy.ones(7))
    monkeypatch.setitem(references.PUBLISHED, sha256(path), path.name)  # as if these were its true contents
    reference = opened(path, registry, GreyInception())
    assert reference.adm_imagenet and reference.count is None and reference.features_AF.shape == (9, 4)
    assert reference.gaussian.mean_F.tolist() == [1.0] * 4 and "do not say whose features" in reference.notes[0]
    Gaussian(torch.zeros(4), torch.eye(4), 9, GreyInception().identity).save(tmp_path / "adm_in256_stats.npz")
    assert not opened(tmp_path / "adm_in256_stats.npz", registry, GreyInception()).adm_imagenet  # ours, called so
    other = opened(path, registry, Grey())
    assert not other.adm_imagenet and other.count == 9 and other.gaussian.mean_F.tolist() != [1.0] * 4
    assert any("statistics are Inception's" in note for note in other.notes)
    with pytest.raises(UserError, match="images of 16x16 pixels; needed: 32x32"):
        opened(path, registry, GreyInception(), image_size=32)


def test_the_reference_of_papers_is_known_by_its_content_and_not_by_its_name(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = {"mu": numpy.ones(4), "sigma": numpy.eye(4)}
    for name in ("VIRTUAL_imagenet256_labeled.npz", "adm_in256_stats.npz", "mine.npz"):
        numpy.savez(tmp_path / name, **statistics)
    named = opened(tmp_path / "adm_in256_stats.npz", registry, GreyInception())
    assert not named.adm_imagenet and any("its content is not that of the published file" in n for n in named.notes)
    assert not opened(tmp_path / "VIRTUAL_imagenet256_labeled.npz", registry, GreyInception()).adm_imagenet
    mine = opened(tmp_path / "mine.npz", registry, GreyInception())
    assert not mine.adm_imagenet and not any("content" in note for note in mine.notes)
    content = (tmp_path / "mine.npz").read_bytes()
    git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as `git hash-object` says
    for digest in (sha256(tmp_path / "mine.npz"), git_id):
        with monkeypatch.context() as patch:
            patch.setitem(references.PUBLISHED, digest, "adm_in256_stats.npz")
            assert opened(tmp_path / "mine.npz", registry, GreyInception()).adm_imagenet  # whatever it is called


def test_statistics_that_do_not_fit_are_one_line(tmp_path: Path, registry: Registry) -> None:
    eye = numpy.eye(4)
    numpy.savez(tmp_path / "wide.npz", mu=numpy.zeros(5), sigma=numpy.eye(5))
    numpy.savez(tmp_path / "uneven.npz", mu=numpy.zeros(4), sigma=numpy.eye(5))
    numpy.savez(tmp_path / "half.npz", sigma=eye)
    numpy.savez(tmp_path / "whole.npz", mu=numpy.zeros(4, "int64"), sigma=eye)
    numpy.savez(tmp_path / "nan.npz", mu=numpy.full(4, numpy.nan), sigma=eye)
    numpy.savez(tmp_path / "neither.npz", labels=numpy.zeros(4))
    Gaussian(torch.zeros(4), torch.eye(4), 9, "another network").save(tmp_path / "theirs.npz")
    ours = Gaussian(torch.zeros(4), torch.eye(4), 9, GreyInception().identity)
    ours.save(tmp_path / "short.npz", features_AF=torch.zeros(8, 4))
    ours.save(tmp_path / "double.npz", features_AF=torch.zeros(9, 4).double())
    for name, message in (
        ("wide", "statistics of 5 numbers; GreyInception gives vectors of 4"),
        ("uneven", r"sigma \(5, 5\); needed: \(F,\) and \(F, F\)"),
        ("half", "no array mu; allowed: sigma"),
        ("whole", "mu is int64"),
        ("nan", "NaN or infinity"),
        ("neither", "neither statistics .* nor images"),
        ("theirs", "statistics of another network's features"),
        ("short", r"features are float32 \(8, 4\); needed: float32 \(9, 4\)"),
        ("double", r"features are float64 \(9, 4\); needed: float32"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            opened(tmp_path / f"{name}.npz", registry, GreyInception())
        assert "\n" not in str(caught.value) and f"{name}.npz" in str(caught.value)
    with pytest.raises(UserError, match="statistics of Inception's features, and Grey gives others"):
        opened(tmp_path / "wide.npz", registry)


def test_our_figures_are_those_of_torch_fidelity_on_two_folders(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_inception(tmp_path / "random.pth")
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", sha256(weights))
    drawn, real = pixels(6, seed=1), (0.6 * pixels(6, seed=2) + 60).astype("uint8")
    folders = [write_pngs(tmp_path / name, part) for name, part in (("drawn", drawn), ("real", real))]
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",  # for precision and recall it would take VGG16
        feature_extractor_weights_path=str(weights),
        isc_splits=2,
        kid_subsets=1,
        kid_subset_size=6,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    extractor = open_extractor(f"inception:weights_file={weights}", registry)
    assert extractor.gives_fid and extractor.identity.endswith(sha256(weights)[:16])
    context = EvalContext(registry=registry, extractor=extractor, batch_size=5)
    one, other = (features_of(open_images(str(folder), registry), context, "features") for folder in folders)
    # torch-fidelity takes the features' means, and kernels, in float32
    ours = frechet_of(Gaussian.of(one.features_AF), Gaussian.of(other.features_AF))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5) and ours > 0
    assert kernel_distance(one.features_AF, other.features_AF) == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-4
    )
    score = inception_score(one.logits_AL, splits=2)
    assert score.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert score.deviation == pytest.approx(theirs["inception_score_std"], abs=1e-6)
    shares = precision_recall(one.features_AF, other.features_AF)
    assert (shares.precision, shares.recall) == (theirs["precision"], theirs["recall"])
