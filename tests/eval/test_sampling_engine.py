"""Many images: the same however they are shared, interrupted or asked for; and nothing of another call is continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import attrs
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mixar
from mixar.cli.main import app
from mixar.plugins import Registry
from mixar.sampling import Plan, all_classes, claim, describe, draw_chunks, plan_of, timing_of
from mixar.stores import PNGStore, RawStore, picture_names, picture_number, plain_name, write_npz
from mixar_core.distributed import Processes, StopSignals
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS
from mixar_eval.images import open_images
from mixar_eval.protocol import draws_real_codes
from tests.cli.process import good, refused, started, torchrun

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def model(family: Path) -> mixar.Model:
    return mixar.load(family / "models/mixar", device="cpu")


def plan(model: mixar.Model, count: int = 10, **changes: object) -> Plan:
    whole = Plan(count=count, batch=4, seed=3, settings=model.settings(), classes=all_classes(model))
    return attrs.evolve(whole, **changes)


def drawn(store: RawStore, of: Plan) -> torch.Tensor:
    return torch.cat([store.read(chunk) for chunk in range(of.chunks)])


def wait_for_files(folder: Path, pattern: str, count: int, child: object) -> None:
    for _ in range(6000):
        if len(list(folder.glob(pattern))) >= count or not child.is_alive():  # type: ignore[attr-defined]
            return
        time.sleep(0.01)


def test_labels_are_as_even_as_the_count_allows(model: mixar.Model) -> None:
    exact, uneven = plan(model, 12), plan(model, 11)
    assert exact.labels_N().bincount().tolist() == [4, 4, 4] and exact.balanced
    assert uneven.labels_N().bincount().tolist() == [4, 4, 3] and not uneven.balanced
    drawn_at_random = plan(model, 300, labels="random")
    counts = drawn_at_random.labels_N().bincount()
    assert len(set(counts.tolist())) > 1 and counts.min() > 50 and not drawn_at_random.balanced
    assert torch.equal(drawn_at_random.labels_N(), plan(model, 300, labels="random").labels_N())
    assert plan(model, 4, classes=(2, NO_CLASS)).labels_N().tolist() == [2, -1, 2, -1]


def test_the_engine_draws_what_generate_draws(model: mixar.Model, tmp_path: Path) -> None:
    of, store = plan(model), RawStore(tmp_path)
    seen: list[tuple[int, int, int]] = []
    assert draw_chunks(model, of, store, ALONE, signals=StopSignals(), report=lambda *told: seen.append(told))
    assert seen == [(0, 10, 0), (4, 10, 4), (8, 10, 8), (10, 10, 10)]
    whole = model.generate(of.labels_N(), seed=of.seed, batch_size=of.batch)
    assert torch.equal(drawn(store, of), whole.images)
    timing = timing_of(tmp_path)
    assert timing.images == 10 and 0 < timing.seconds == pytest.approx(10 * timing.seconds_per_image)
    # a batch is what it is wherever it stands: the second one alone, too
    codes = model.sample_codes(of.labels_N(), seed=of.seed, batch_size=of.batch)
    assert whole.codes is not None and torch.equal(codes, whole.codes)


def test_it_goes_on_where_it_was(model: mixar.Model, tmp_path: Path) -> None:
    of, whole, parts = plan(model), RawStore(tmp_path / "whole"), RawStore(tmp_path / "parts")
    for store in (whole, parts):
        claim(store.folder, describe(model, of))
    draw_chunks(model, of, whole, ALONE, signals=StopSignals())
    signals = StopSignals()
    signals.requested = True
    assert not draw_chunks(model, of, parts, ALONE, signals=signals) and parts.done() == {0}
    (parts.folder / ".chunk-000001.safetensors.77.unfinished").write_bytes(b"half")
    claim(parts.folder, describe(model, of))
    assert not list(parts.folder.glob(".*"))
    seen: list[tuple[int, int, int]] = []
    assert draw_chunks(model, of, parts, ALONE, signals=StopSignals(), report=lambda *told: seen.append(told))
    assert seen == [(4, 10, 0), (8, 10, 4), (10, 10, 6)]
    assert torch.equal(drawn(parts, of), drawn(whole, of))
    assert plan_of(parts.folder)[1] == of and timing_of(parts.folder).images == 10


def test_who_goes_on_keeps_the_names_and_is_noted(model: mixar.Model, tmp_path: Path) -> None:
    of, first = plan(model), describe(model, plan(model))
    claim(tmp_path, first)
    later = describe(model, of) | {"class_names": [], "device": "another"}  # the data are not there, on another machine
    for _ in range(2):
        said = claim(tmp_path, later)
        assert said["class_names"] == ["cat", "dog", "owl"] and said["device"] == first["device"]
        assert said["continued"] == [{"versions": first["versions"], "device": "another"}]
        assert claim(tmp_path, first) == said == plan_of(tmp_path)[0]
    with pytest.raises(UserError, match=r"plan\.seed was 3, is 4"):
        claim(tmp_path, describe(model, plan(model, seed=4)))


def test_processes_with_other_weights_do_not_share(
    model: mixar.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(_: Processes, value: dict[str, str]) -> list[dict[str, str]]:
        return [value, value | {"mixar": "checkpoints/step-00000002"}]

    monkeypatch.setattr(Processes, "all_gather", two)
    with pytest.raises(UserError, match=r"mixar: some processes found .*, others checkpoints/step-00000002"):
        draw_chunks(model, plan(model), RawStore(tmp_path), ALONE, signals=StopSignals())
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_no_image(model: mixar.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.system.model is not None
    tokenizer, decode = model.system.model.continuous_tokenizer, model.system.model.continuous_tokenizer.decode

    def broken(latents_BChw: torch.Tensor) -> torch.Tensor:
        images_B3HW = decode(latents_BChw)
        images_B3HW[1, 0, 0, 0] = torch.nan
        return images_B3HW

    monkeypatch.setattr(tokenizer, "decode", broken)
    with pytest.raises(UserError, match="1 of 4 images drawn are not finite"):
        draw_chunks(model, plan(model), RawStore(tmp_path), ALONE, signals=StopSignals())
    assert not list(tmp_path.iterdir())


def test_other_samples_are_not_continued(model: mixar.Model, family: Path, tmp_path: Path) -> None:
    of = plan(model)
    claim(tmp_path / "here", describe(model, of))
    for other, message in (
        (plan(model, 11), "plan.count was 10, is 11"),
        (plan(model, batch=5), "plan.batch was 4, is 5"),
        (plan(model, seed=4), "plan.seed was 3, is 4"),
        (plan(model, labels="random"), "plan.labels was balanced, is random"),
        (plan(model, settings=model.settings(cfg=2.0)), "plan.settings.cfg was 1.5, is 2.0"),
    ):
        with pytest.raises(UserError, match=message):
            claim(tmp_path / "here", describe(model, other))
    with pytest.raises(UserError, match=r"model\.precision was float32, is bf16"):
        claim(tmp_path / "here", describe(mixar.load(family / "models/mixar", device="cpu", precision="bf16"), of))
    shutil.copytree(family / "models/mixar", tmp_path / "other")
    recipe = tmp_path / "other/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("sampling_steps: 3", "sampling_steps: 4"))
    with pytest.raises(UserError, match=r"parts\.head\.sampling_steps was 3, is 4"):  # the weights would not tell
        claim(tmp_path / "here", describe(mixar.load(tmp_path / "other", device="cpu"), of))
    shutil.copy(family / "models/prior/recipe.yaml", recipe)
    shutil.copy(family / "models/prior/weights.safetensors", tmp_path / "other")
    with pytest.raises(UserError, match=r"model\.sha256\.mixar was"):
        claim(tmp_path / "here", describe(mixar.load(tmp_path / "other", device="cpu"), of))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("")
    with pytest.raises(UserError, match="something else"):
        claim(tmp_path / "home", describe(model, of))


def test_npz_is_what_numpy_reads(tmp_path: Path) -> None:
    images = torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).view(5, 3, 2, 4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    write_npz(tmp_path / "a.npz", images.split(2), labels)
    with numpy.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["arr_0"].dtype == numpy.uint8 and found["arr_1"].tolist() == labels.tolist()
        assert numpy.array_equal(found["arr_0"], images.permute(0, 2, 3, 1).numpy())
    write_npz(tmp_path / "b.npz", images.split(2), torch.full((5,), NO_CLASS))
    with numpy.load(tmp_path / "b.npz", allow_pickle=False) as found:
        assert found.files == ["arr_0"]


def test_many_as_pictures(family: Path, tmp_path: Path) -> None:
    said = good("sample", family / "models/mixar", "--count", 7, "--batch", 4, "--out", "out", cwd=tmp_path)
    assert "2 or 3 of each of 3 classes (7 does not divide by 3)" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert (
        names[:2] == ["000_cat.png", "001_dog.png"]
        and names[-3:] == ["grid.png", "sample.json", "timing.json"]
        and len(names) == 10
    )
    whole = mixar.load(family / "models/mixar", device="cpu").generate([0, 1, 2, 0, 1, 2, 0], batch_size=4).images
    with Image.open(tmp_path / "out/004_dog.png") as picture:
        assert numpy.array_equal(numpy.array(picture), whole[4].permute(1, 2, 0).numpy())
    # a call that is repeated has nothing to do, and another one is not mixed in
    assert said == good("sample", family / "models/mixar", "--count", 7, "--batch", 4, "--out", "out", cwd=tmp_path)
    line = refused("sample", family / "models/mixar", "--count", 7, "--seed", 1, "--out", "out", cwd=tmp_path)
    assert "plan.batch was 4, is 64, plan.seed was 0, is 1" in line
    some = ("--count", 4, "--labels", "2,0", "--out", "out", "--force")
    assert "exactly 2 of each of 2 classes" in good("sample", family / "models/mixar", *some, cwd=tmp_path)
    assert len(list((tmp_path / "out").glob("0*.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count: 0 is too small"),
        (["--count", "4", "-n", "2"], "--count and --per-class: give one of them"),
        (["--count", "4", "--codes-too"], "--count and --codes-too: give one of them"),
        (["--npz", "a.npz"], "--npz: needs --count"),
        (["--random-labels"], "--random-labels: needs --count"),
        (["--count", "4", "--npz", "a.zip"], "ends in .npz"),
        (["--count", "4", "--npz", "a.npz", "--out", "o"], "--npz and --out: give one of them"),
        (["--count", "4", "--npz", "there.npz"], "is there already"),
        (["--count", "4", "--labels", "0,2,0"], "evenly over the classes, and 0 is given more than once"),
        (["--count", "4", "--out", "home"], "something else"),
        (["--count", "4", "--out", "home", "--force"], "something else"),
    ],
)
def test_bad_calls_are_one_line(family: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("")
    (tmp_path / "there.npz").write_text("")
    assert message in refused("sample", family / "models/mixar", *arguments, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "there.npz", "thesis.tex"]


def test_a_few_images_are_one_processs_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="share the images of --count only"):
        app(["sample", "emoji64"], standalone_mode=False)


def test_a_full_disk_is_one_line_and_the_call_can_be_repeated(family: Path, tmp_path: Path) -> None:
    call = ("sample", family / "models/mixar", "--count", 8, "--batch", 4, "--npz", "a.npz")
    assert "cannot be written" in refused(*call, cwd=tmp_path, largest_file=3000)
    assert not (tmp_path / "a.npz").exists() and not list(tmp_path.rglob("*.unfinished"))
    good(*call, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.npz.json"]


def test_an_npz_knows_how_it_was_drawn(family: Path, tmp_path: Path, registry: Registry) -> None:
    call = ("sample", family / "models/mixar", "--count", 6, "--batch", 2, "--npz", "a.npz")
    good(*call, cwd=tmp_path)
    samples = open_images(str(tmp_path / "a.npz"), registry)
    assert samples.drawn is not None and samples.drawn["plan"]["count"] == 6 and samples.class_names[0] == "cat"
    assert samples.drawn["seconds_per_image_and_process"] > 0 and not draws_real_codes(samples)
    write_npz(tmp_path / "a.npz", [torch.zeros(6, 3, 16, 16).byte()], torch.arange(6) % 3)
    assert open_images(str(tmp_path / "a.npz"), registry).drawn is None


def test_a_replacement_that_was_interrupted_goes_on_without_force(family: Path, tmp_path: Path) -> None:
    call = ("sample", family / "models/mixar", "--count", 120, "--batch", 4, "--npz", "a.npz")
    (tmp_path / "a.npz").write_text("old")
    with started(*call, "--force", folder=tmp_path) as child:
        wait_for_files(tmp_path / "a.npz.parts", "chunk-*", 3, child)
        child.kill()
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a.npz.parts").glob("chunk-*")}
    assert there and (tmp_path / "a.npz").read_text() == "old"
    with started(*call, folder=tmp_path) as child:
        wait_for_files(tmp_path / "a.npz.parts", "chunk-*", len(there) + 3, child)
        child.kill()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a.npz.parts").glob("chunk-*")}
    assert len(kept) > len(there) and kept.items() >= there.items()


def test_killed_at_any_moment_it_ends_with_the_same_bytes(family: Path, tmp_path: Path) -> None:
    call = ("sample", family / "models/mixar", "--count", 120, "--batch", 4, "--npz")
    good(*call, "whole.npz", cwd=tmp_path)
    for kill in range(1, 4):
        with started(*call, "killed.npz", folder=tmp_path) as child:
            wait_for_files(tmp_path / "killed.npz.parts", "chunk-*", kill * 7, child)
            child.kill()  # SIGKILL
    assert not (tmp_path / "killed.npz").exists()
    assert 21 <= len(list((tmp_path / "killed.npz.parts").glob("chunk-*"))) < 30
    good(*call, "killed.npz", cwd=tmp_path)
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_says_how_to_go_on(family: Path, tmp_path: Path, number: int) -> None:
    call = ("sample", family / "models/mixar", "--count", 2000, "--batch", 4, "--out", "out")
    with started(*call, folder=tmp_path) as child:
        wait_for_files(tmp_path / "out", "*.png", 8, child)
        os.kill(child.pid or 0, number)
        child.join(timeout=60)
        assert child.exitcode == 0, (tmp_path / "stderr").read_text()
    there = len(list((tmp_path / "out").glob("*.png")))
    assert 8 <= there < 2000 and there % 4 == 0
    assert f"stopped with {there:,} of 2,000 images in out; the same command" in (tmp_path / "stdout").read_text()


@pytest.mark.slow
def test_two_processes_draw_what_one_does(family: Path, tmp_path: Path) -> None:
    call = ("sample", family / "models/mixar", "--count", 18, "--batch", 4, "--seed", 5, "--npz")
    good(*call, "one.npz", cwd=tmp_path)
    said = torchrun(*call, "two.npz", cwd=tmp_path)
    assert said.count("18 images in two.npz, exactly 6 of each of 3 classes; seed 5") == 1
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_a_few_and_many_give_the_same_account(family: Path, tmp_path: Path, registry: Registry) -> None:
    """One file, one reader: what any `mixar sample` drew can be measured, with its labels."""
    sample = ("sample", family / "models/mixar", "--out")
    good(*sample, "few", "--labels", "2,0", "-n", 2, "--codes-too", cwd=tmp_path)
    good(*sample, "many", "--labels", "2,0", "--count", 4, cwd=tmp_path)
    for name, labels in (("few", [2, 2, 0, 0]), ("many", [2, 0, 2, 0])):
        manifest, of = plan_of(tmp_path / name)
        assert of.labels_N().tolist() == labels and of.balanced and manifest["class_names"] == ["cat", "dog", "owl"]
        images = open_images(str(tmp_path / name), registry)
        assert len(images) == 4 and images.labels == labels  # grid.png, codes_grid.png and codes/ are no samples
        assert images.drawn is not None
    shutil.copytree(tmp_path / "few", tmp_path / "again")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "few").glob("0*.png")}
    line = refused(*sample, "few", "--count", 6, cwd=tmp_path)
    assert "few: holds other samples (4 of mixar): plan.count was 4, is 6" in line
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "few").glob("0*.png")}
    # four of the same four: nothing to do, as they are the same images
    assert "4 images in few" in good(*sample, "few", "--labels", "2,0", "--count", 4, "--force", cwd=tmp_path)


def test_accounts_of_before_are_read(model: mixar.Model, tmp_path: Path, registry: Registry) -> None:
    drawn_before = model.generate([2, 0, 0])
    settings = {"model": "runs/m", "seed": 4, "batch": 64, "raw": False, "precision": "float32"}
    settings |= {"steps": 3, "cfg": 1.5, "cfg_schedule": "linear", "temperature": 1.0, "head_steps": None}
    settings |= {"prior_steps": None, "prior_cfg": 2.0, "prior_temperature": None, "labels": [2, 0, 0]}
    for name, image in zip(("000_owl", "001_cat", "002_cat"), drawn_before.pil(), strict=True):
        image.save(tmp_path / f"{name}.png")
    drawn_before.grid().save(tmp_path / "grid.png")
    (tmp_path / "sample.json").write_text(json.dumps(settings))
    manifest, of = plan_of(tmp_path)
    assert manifest["name"] == "runs/m" and of.labels_N().tolist() == [2, 0, 0] and of.seed == 4 and of.batch == 64
    assert of.settings == attrs.evolve(model.recipe.sampling, cfg=1.5, steps=3, prior_cfg=2.0)
    assert open_images(str(tmp_path), registry).labels == [2, 0, 0]
    samples = open_images(str(tmp_path), registry)
    assert samples.drawn is not None and not draws_real_codes(samples)
    with pytest.raises(UserError, match=r"holds other samples \(3 of runs/m\): .*plan\.count was 3, is 10"):
        claim(tmp_path, describe(model, plan(model)))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"plan": 3}', '{"labels": ["a"]}', '{"plan": {"settings": {}}}', "\x00"]
)
def test_what_is_no_account_is_said_without_names_of_exceptions(tmp_path: Path, text: str) -> None:
    (tmp_path / "sample.json").write_text(text)
    with pytest.raises(UserError, match=r"sample\.json: does not say what was drawn") as refused:
        plan_of(tmp_path)
    assert "Error" not in str(refused.value)
    with pytest.raises(UserError, match=r"sample\.json: cannot be read: No such file"):
        plan_of(tmp_path / "nowhere")


def test_pictures_are_known_by_their_numbers(model: mixar.Model, tmp_path: Path) -> None:
    """A folder begun where names were written in another way goes on; no image is drawn twice."""
    of = plan(model, 6)
    claim(tmp_path, describe(model, of))
    draw_chunks(model, of, PNGStore(tmp_path, of, ()), ALONE, signals=StopSignals())
    (tmp_path / "003_0.png").rename(tmp_path / "003_another_name.png")
    named = PNGStore(tmp_path, of, model.class_names)
    assert named.done() == {0, 1}
    whole = model.generate(of.labels_N(), seed=of.seed, batch_size=of.batch).images
    assert torch.equal(named.read(6), whole)
    (tmp_path / "005_2.png").unlink()
    assert named.done() == {0}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Food & Drink", "Food_Drink"),
        ("日本語", "日本語"),
        ("Cafe\u0301", "Café"),
        ("हिन्दी", "हिन्दी"),
        ("../../etc", "etc"),
        ("a\nb/c\\d", "a_b_c_d"),
        ("🙂", "image"),
        ("", "image"),
        ("x" * 300, "x" * 80),
        ("日" * 100, "日" * 26),
    ],
)
def test_file_names_keep_letters_of_any_script(name: str, part: str) -> None:
    assert plain_name(name) == part


@given(st.lists(st.text(), max_size=5))
def test_any_class_makes_a_file_of_its_own(names: list[str]) -> None:
    files = picture_names(names)
    assert [picture_number(file) for file in files] == list(range(len(names)))
    assert all("/" not in file and "\0" not in file and len(file.encode()) < 200 for file in files)


def test_the_manifest_says_what_a_report_needs(model: mixar.Model) -> None:
    said = json.loads(json.dumps(describe(model, plan(model))))
    assert said["model"]["weights"] == "ema" and said["model"]["precision"] == "float32"
    assert set(said["model"]["sha256"]) == {"mixar", "continuous_tokenizer", "discrete_tokenizer", "prior"}
    assert said["plan"]["settings"]["cfg"] == 1.5 and said["class_names"] == ["cat", "dog", "owl"]
    assert {"torch", "mixar"} <= said["versions"].keys() and said["device"].startswith("cpu")
