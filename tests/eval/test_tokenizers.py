"""Tokenizers side by side: which images, which floor, what the report says, and the same from two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mixar.assembly import build
from mixar.folder import save_model
from mixar.plugins import Registry
from mixar.recipe import load_recipe, to_yaml
from mixar.sampling import Report as Progress
from mixar_core.errors import UserError
from mixar_eval.context import EvalContext
from mixar_eval.distances import frechet_distance, frechet_of, kernel_distance
from mixar_eval.extractors import open_extractor
from mixar_eval.features import as_saved
from mixar_eval.images import other_split
from mixar_eval.references import open_reference
from mixar_eval.tokenizer_meter import TokenizerMeter
from mixar_eval.tokenizers import choose, compare_tokenizers, open_tokenizers, reconstruct_few
from tests.cli.process import good, refused, torchrun
from tests.eval.test_images import pixels, write_pngs
from tests.eval.test_references import Grey
from tests.networks import TIMM_MODEL, write_timm


def test_the_other_split_of_a_set() -> None:
    assert other_split("data:validation") == "data:train" and other_split("data") == "data:validation"
    assert other_split("parquet:train,path=a:b,memory_mb=3") == "parquet:validation,path=a:b,memory_mb=3"
    assert other_split("folder/of/images") is None


def test_which_images_and_which_others(family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)

    def chosen(count: int | None, data: str = "data:train", seed: int = 0) -> Any:
        return choose(data, count, seed=seed, least=4, recipe=recipe, registry=registry)

    same = chosen(4)
    assert same.others.data is same.images.data and len(same.others) == 4 and "same set" in same.between
    rows = same.images.rows.tolist()
    assert not set(rows) & set(same.others.rows.tolist())
    assert chosen(4).images.rows.tolist() == rows != chosen(4, seed=1).images.rows.tolist()
    assert same.images.labels == [same.images.data.labels()[row] for row in rows] and same.images.split is None
    across = chosen(5)  # of nine, so another five are not left
    assert across.others.data is not across.images.data and len(across.others) == 5
    assert "validation split" in across.between
    whole = chosen(None)
    assert len(whole.images) == 9 and whole.others is None and whole.images.split == "train"
    with pytest.raises(UserError, match="--images 10: data:train has 9; allowed: 4 to 9"):
        chosen(10)
    with pytest.raises(UserError, match="--images 3"):
        chosen(3)


def test_tokenizers_of_models_by_name(family: Path, registry: Registry) -> None:
    models = family / "models"
    names = [str(models / name) for name in ("continuous", "discrete", "mixar", "prior", "discrete")]
    entries = open_tokenizers(names, registry, torch.device("cpu"))
    assert [entry.name.removeprefix(f"{models}/") for entry in entries] == [
        "continuous",
        "discrete",
        "mixar: continuous",
        "mixar: discrete",
        "prior: discrete",
    ]
    assert entries[0].weights_sha256 == entries[2].weights_sha256 != entries[1].weights_sha256
    with pytest.raises(UserError, match="continuous is of 16 pixels and emoji64_lfq of 64"):
        open_tokenizers([names[0], "emoji64_lfq"], registry, torch.device("cpu"))


def test_distances_are_to_the_originals_or_to_a_reference(family: Path, tmp_path: Path, registry: Registry) -> None:
    entries = open_tokenizers([str(family / "models/discrete")], registry, torch.device("cpu"))
    folder = str(write_pngs(tmp_path / "images", pixels(12)))
    recipe, extractor = entries[0].recipe, Grey()
    chosen = choose(folder, None, seed=0, least=4, recipe=recipe, registry=registry)
    seen: list[tuple[int, int]] = []

    def show(what: str) -> Progress:
        return lambda done, of, fresh: seen.append((done, of))

    context = EvalContext(registry=registry, extractor=extractor, batch_size=8, show=show)

    def compare(**more: Any) -> Any:
        return compare_tokenizers(entries, chosen, context, **more)

    found = compare()
    floor = found.to_json()["floor"]
    assert seen == 2 * [(8, 12), (12, 12)] and floor["images"] == 6 and "half" in floor["between"]
    originals = torch.cat(list(chosen.images.batches()))
    real = extractor(originals.float() / 127.5 - 1)
    meter = TokenizerMeter(entries[0].tokenizer, extractor, seed=0)
    decoded = extractor(as_saved(meter.add(as_saved(originals), torch.arange(12))["codes"]))
    codes = found.to_json()["tokenizers"][0]["reconstructions"]["codes"]
    assert codes["frechet"] == pytest.approx(frechet_distance(decoded, real), rel=1e-6)
    assert codes["kernel"] is None  # an image and its reconstruction are no independent draws
    other = open_reference(str(write_pngs(tmp_path / "others", pixels(9, seed=5))), context)
    against = compare(reference=other)
    assert against.to_json()["tokenizers"][0]["reconstructions"]["codes"]["kernel"] == pytest.approx(
        kernel_distance(decoded, other.features_AF)
    )
    unpaired = "the reference is not the originals"
    assert unpaired not in found.reasons and unpaired in against.reasons
    told = against.to_json()
    assert told["reference"]["description"] == other.description and "to the reference" in told["floor"]["between"]
    apart = told["floor"]["distances"]["frechet"]
    assert apart == pytest.approx(frechet_distance(real, other.features_AF), rel=1e-6)
    rows = reconstruct_few(entries, chosen.images, context, seed=0, count=3)
    assert list(rows) == ["original", entries[0].name] and torch.equal(rows["original"], originals[[0, 5, 11]])


def figures(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    return {key: value for key, value in report.items() if key != "made"}


def assert_near(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_near(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_near(a, b)
    elif isinstance(one, float):
        # batches of another size round differently in their last bits
        assert math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4), (one, other)
    else:
        assert one == other


def test_codes_of_other_layouts_are_counted(family: Path, tmp_path: Path, registry: Registry) -> None:
    levels = {"channels": 4, "channel_multipliers": [1, 1, 1], "blocks": 1, "codebook_size": 4, "code_width": 2}
    chosen_parts = {"depth": {"type": "rvq", "depth": 3}, "pyramid": {"type": "pyramid", "scales": [1, 2, 4]}}
    folder = str(write_pngs(tmp_path / "images", pixels(8)))
    for name, part in chosen_parts.items():
        changes = {"discrete_tokenizer": {**part, **levels}}
        recipe = load_recipe(family / "recipes/discrete.yaml", changes, registry=registry)
        tokenizer = build(recipe, registry).discrete_tokenizer
        save_model(tmp_path / name, recipe_yaml=to_yaml(recipe), tensors=tokenizer.state_dict(), facts={})
    entries = open_tokenizers([str(tmp_path / name) for name in chosen_parts], registry, torch.device("cpu"))
    chosen = choose(folder, None, seed=0, least=4, recipe=recipe, registry=registry)
    found = compare_tokenizers(entries, chosen, EvalContext(registry=registry, extractor=Grey(), batch_size=8))
    told = [
        (one["layout"], one["codes"]["bits_per_image"], one["codes"]["codes"]) for one in found.to_json()["tokenizers"]
    ]
    assert told == [("grid 4x4 of depth 3", 96, 8 * 48), ("pyramid 1x1, 2x2, 4x4", 42, 8 * 21)]
    assert "| grid 4x4 of depth 3 |" in found.to_markdown()


def call_in(family: Path, folder: Path) -> list[object]:
    models = [family / "models/continuous", family / "models/discrete"]
    extractor = f"timm:model={TIMM_MODEL},weights_file={write_timm(folder / 'vit.safetensors')},size=32"
    return ["eval", "tokenizer", *models, "--data", "data:train", "--images", 7, "--extractor", extractor]


def test_the_command(family: Path, tmp_path: Path) -> None:
    call = call_in(family, tmp_path)
    said = good(*call, "--out", tmp_path / "one")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["reconstructions.png", "report.json", "report.md"]
    report = json.loads((tmp_path / "one/report.json").read_text())
    assert report["comparable with published reconstruction FID of ImageNet 256"] == (
        "no, because the extractor is not Inception; 7 images and not 50,000; 16x16 pixels and not 256x256; "
        "the images are not known to be a whole validation split; 3 classes and not 1,000"
    )
    assert report["floor"]["images"] == 3 and report["made"]["command"].startswith("mixar eval tokenizer")
    continuous, discrete = report["tokenizers"]
    assert set(continuous["reconstructions"]) == {"mean", "sample"} and continuous["codes"] is None
    assert len(continuous["latents"]["normalised_std"]) == 2 and continuous["latents"]["values_per_image"] == 32
    assert discrete["codes"]["bits_per_image"] == 32 and discrete["codes"]["codes"] == 7 * 16
    assert 0 < discrete["reconstructions"]["codes"]["psnr"] < 40 and discrete["latents"] is None
    assert continuous["layout"] == discrete["layout"] == "grid 4x4"
    text = (tmp_path / "one/report.md").read_text()
    assert text in said and "continuous, sample |" in text and "floor: one half" in text
    assert Image.open(tmp_path / "one/reconstructions.png").height > 4 * 96


@pytest.mark.slow
def test_two_processes_measure_what_one_does(family: Path, tmp_path: Path) -> None:
    call = call_in(family, tmp_path)
    good(*call, "--out", tmp_path / "one")
    torchrun(*call, "--out", tmp_path / "two", "--batch", 2, cwd=tmp_path)
    assert_near(figures(tmp_path / "two"), figures(tmp_path / "one"))


def test_statistics_are_measured_once_and_taken_again(family: Path, tmp_path: Path, registry: Registry) -> None:
    out, text = (
        tmp_path / "deep/stats.npz",
        f"timm:model={TIMM_MODEL},weights_file={tmp_path / 'vit.safetensors'},size=32",
    )
    write_timm(tmp_path / "vit.safetensors")
    call = ["eval", "statistics", "data:train", "--recipe", family / "recipes/mixar.yaml", "--extractor", text]
    assert "train split of image-folder: 9 images" in good(*call, "--out", out)
    extractor = open_extractor(text, registry)
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    context = EvalContext(registry=registry, extractor=extractor)
    stored, anew = open_reference(str(out), context), open_reference("data:train", context, recipe=recipe)
    assert stored.count == 9 and abs(frechet_of(stored.gaussian, anew.gaussian)) < 1e-5
    assert "is there already" in refused(*call, "--out", out)
    assert "name ends in .npz" in refused(*call, "--out", tmp_path / "stats.pt")
    assert "give --recipe" in refused("eval", "statistics", tmp_path, "--set", "a.b=1", "--out", tmp_path / "b.npz")


def test_what_the_command_refuses(family: Path, tmp_path: Path) -> None:
    model = family / "models/discrete"
    write_pngs(tmp_path / "jpeg", pixels(), "{}.jpg")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/thesis.tex").write_text("")
    for arguments, message in (
        ([model, "emoji64_lfq"], "of 16 pixels and emoji64_lfq of 64"),
        ([model, "--images", 70], "--images 70: data:validation has 6; allowed: 4 to 6"),
        ([model, "--data", tmp_path / "jpeg"], "JPEG changes pixels"),
        ([model, "--extractor", "inception:weights_file=none.pth"], "none.pth: No such file or directory; needed"),
        ([model, "--reference", tmp_path / "none.npz"], "no such folder or .npz file"),
        ([model, "--out", tmp_path / "theirs"], "holds something else"),
    ):
        line = refused("eval", "tokenizer", *arguments, *(() if "--out" in arguments else ("--out", tmp_path / "out")))
        assert message in line, line
    assert not (tmp_path / "out").exists()
