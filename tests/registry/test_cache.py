"""Caches of a recipe: made by one process or two, killed and gone on with, and refused where they do not belong."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixar.cache import make_cache, open_cache
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe
from mixar.run import train
from mixar_core.data import cache_writer
from mixar_core.data.cache import INDEX, PROGRESS, TokenCache
from mixar_core.errors import UserError
from tests.cli.process import good, refused, torchrun
from tests.registry.cut_short import apart, kill_after, stop_in_shard

SHARDS = {"rows_per_shard": 2, "batch": 2}


@pytest.fixture(scope="module")
def made(family: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the family's mixar, by one process: nine images in five files."""
    folder = tmp_path_factory.mktemp("caching") / "cache"
    done = make_cache(recipe(family, registry), folder, registry, device="cpu", **SHARDS)
    assert (done.shards, done.total, done.encoded) == (5, 5, 9)
    return folder


def recipe(family: Path, registry: Registry, *overrides: str, name: str = "mixar") -> Recipe:
    return load_recipe(family / f"recipes/{name}.yaml", registry=registry, overrides=overrides)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_training_from_the_cache_equals_training_from_images(
    made: Path, family: Path, registry: Registry, tmp_path: Path
) -> None:
    """To the bit where both encode batches of the same shape, here one image at a time: see docs/training.md."""
    alone = tmp_path / "alone"
    make_cache(recipe(family, registry), alone, registry, device="cpu", rows_per_shard=2, batch=1)
    settings = ("training.flip=true", "training.steps=3")
    for name, cache, micro_batch in (
        ("images", "none", 1),
        ("cache", alone, 1),
        ("images in fours", "none", 4),
        ("cache in twos", made, 4),
    ):
        changes = (*settings, f"training.cache={cache}", f"training.micro_batch={micro_batch}")
        train(recipe(family, registry, *changes), tmp_path / name, device="cpu", registry=registry)
    one, other = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("images", "cache"))
    assert one == other

    # Sums of float32 are taken in another order for other shapes, and are some units in the last place (6e-8) apart.
    fours, twos = (curve(tmp_path / f"{name}/log.jsonl") for name in ("images in fours", "cache in twos"))
    assert len(fours) >= 3 and fours == pytest.approx(twos, rel=1e-5)
    for shard in made.glob("*.safetensors"):
        other_tokens = load_file(alone / shard.name)
        for key, tensor in load_file(shard).items():
            assert torch.allclose(tensor, other_tokens[key], rtol=1e-5, atol=1e-5), key


def curve(log: Path) -> list[float]:
    """All losses of a run, step by step."""
    return [value for line in log.read_text().splitlines() for value in json.loads(line)["losses"].values()]


@pytest.mark.slow
def test_two_processes_write_the_same_files(made: Path, family: Path, tmp_path: Path) -> None:
    command = ("cache", family / "recipes/mixar.yaml", "--out", "two", "--device", "cpu")
    output = torchrun(*command, "--shard-size", 2, "--batch", 2, cwd=tmp_path)
    assert output.count("9 images, ") == 1 and output.count("mixar train ") == 1  # one of them speaks
    assert content(tmp_path / "two") == content(made)


#: A function of the writer, and after how many calls of it the process is ended. Written are the settings, then of each
#: of five shards its file and a note, then the index; every attempt comes further than the one before.
KILLS = [
    ("write_text", 1),  # before the first file
    ("write_weights", 1),  # a file without a note
    ("write_text", 2),
    ("write_weights", 3),
    ("file_sha256", 3),
    ("write_text", 3),  # all shards, no index
    ("write_text", 2),  # the index, and still what was noted
]


def test_a_cache_that_is_killed_goes_on(made: Path, family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for after, times in KILLS:
        assert apart(kill_after, family, folder, after, times) == -signal.SIGKILL
        assert (folder / PROGRESS).is_dir()
    assert (folder / INDEX).is_file()
    assert apart(kill_after, family, folder, None, 0) == 0
    assert content(folder) == content(made)


def test_a_cache_that_is_told_to_stop_goes_on(made: Path, family: Path, tmp_path: Path) -> None:
    """SIGTERM in the second shard, and then SIGINT in the fourth."""
    command = ("cache", family / "recipes/mixar.yaml", "--out", "cache", "--shard-size", "2", "--batch", "2")
    for number, shards in ((signal.SIGTERM, 2), (signal.SIGINT, 4)):
        assert apart(stop_in_shard, tmp_path, int(number), *map(str, command)) == 0
        expected = f"stopped with {shards} of 5 files finished; the same command goes on\n"
        assert (tmp_path / "stdout").read_text() == expected and (tmp_path / "stderr").read_text() == ""
        (tmp_path / "stdout").unlink()
    assert "9 images, " in good(*command, cwd=tmp_path)
    assert content(tmp_path / "cache") == content(made)


def test_samples_and_halves_and_one_split(family: Path, registry: Registry, tmp_path: Path) -> None:
    one = recipe(family, registry)
    make_cache(one, tmp_path / "small", registry, split="validation", stores="samples", dtype="bfloat16", flip=False)
    cache = TokenCache.open(tmp_path / "small")
    about = cache.index.settings
    assert (len(cache), about.split, cache.stores, about.dtype, cache.flip) == (
        6,
        "validation",
        "samples",
        "bfloat16",
        False,
    )
    assert about.row_bytes == 2 * 4 * 4 * 2 + 16 * 2 + 8 and about.code_dtype == "int16"
    assert about.class_names == ("cat", "dog", "owl") and about.tokenizers["continuous"]["type"] == "kl"
    with pytest.raises(UserError, match="is of the validation split, and training reads the train split"):
        open_cache(tmp_path / "small", one, registry)


def test_a_prior_needs_codes_and_a_mar_latents(made: Path, family: Path, registry: Registry, tmp_path: Path) -> None:
    prior, mar = recipe(family, registry, name="prior"), recipe(family, registry, "injector.type=none")
    make_cache(prior, tmp_path / "codes", registry)
    codes = TokenCache.open(tmp_path / "codes")
    assert codes.has_codes and codes.latent_shape is None and codes.index.settings.row_bytes == 2 * 32 + 8
    open_cache(tmp_path / "codes", prior, registry)
    open_cache(made, prior, registry)
    open_cache(made, mar, registry)
    with pytest.raises(UserError, match="has no latents, and the recipe trains on them; make one that fits"):
        open_cache(tmp_path / "codes", mar, registry)
    latents = recipe(family, registry, "injector.type=none", "discrete_tokenizer=null", "prior=null")
    make_cache(latents, tmp_path / "latents", registry, flip=False)
    with pytest.raises(UserError, match="has no codes, and the recipe's injector needs them"):
        open_cache(tmp_path / "latents", recipe(family, registry), registry)
    with pytest.raises(UserError, match="has no codes, and the recipe's prior learns them"):
        open_cache(tmp_path / "latents", prior, registry)
    with pytest.raises(UserError, match=r"no mirrored images, and training.flip is set"):
        open_cache(tmp_path / "latents", recipe(family, registry, "injector.type=none", "training.flip=true"), registry)
    with pytest.raises(UserError, match="trains a continuous_tokenizer, which reads images and not tokens"):
        make_cache(recipe(family, registry, name="continuous"), tmp_path / "images", registry)
    assert not (tmp_path / "images").exists()


def test_a_cache_of_another_tokenizer_size_or_classes_is_refused(
    made: Path, family: Path, registry: Registry, tmp_path: Path
) -> None:
    retrained = Path(shutil.copytree(family / "models/continuous", tmp_path / "retrained"))
    tensors = load_file(retrained / "weights.safetensors")
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, retrained / "weights.safetensors")
    moved = Path(shutil.copytree(family / "models/continuous", tmp_path / "moved"))

    def opened(*overrides: str) -> TokenCache:
        return open_cache(made, recipe(family, registry, *overrides), registry)

    assert len(opened(f"continuous_tokenizer.weights={moved}")) == 9  # the same under another name
    assert len(opened("num_classes=0", "prior=null", "ti_mix.schedule=constant")) == 9
    cases = {
        r"another continuous tokenizer: weights_sha256 was \w{12}..., is \w{12}...; make one that fits: mixar cache": [
            f"continuous_tokenizer.weights={retrained}"
        ],
        r"another continuous tokenizer: config.latent_mean was 0.0, is 0.5; make": [
            "continuous_tokenizer.latent_mean=0.5"
        ],
        "is of images of 16 pixels, the recipe of 32": ["image_size=32", "prior=null", "ti_mix.schedule=constant"],
        "has 3 classes, the recipe 4": ["num_classes=4", "prior=null", "ti_mix.schedule=constant"],
    }
    for message, overrides in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            opened(*overrides)
        assert "\n" not in str(caught.value)


def test_published_latents_serve_a_recipe_without_codes(
    family: Path, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, channels: int, label: int = 2) -> Path:
        (tmp_path / name).mkdir()
        latents = torch.randn(5, channels, 4, 4)
        tensors = {"latents": latents, "latents_flip": latents.flip(-1), "labels": torch.tensor([0, 1, 2, 1, label])}
        save_file(tensors, tmp_path / name / "latents_rank00_shard000.safetensors")
        return tmp_path / name

    mar = recipe(family, registry, "injector.type=none", "training.flip=true")
    folder = write("published", 2)
    assert len(open_cache(folder, mar, registry)) == 5
    assert (
        capsys.readouterr().err == f"warning: {folder} does not say which tokenizer made it, so that is not checked\n"
    )
    settings = ("injector.type=none", "training.flip=true", f"training.cache={folder}")
    assert train(recipe(family, registry, *settings), tmp_path / "run", device="cpu", registry=registry).step == 2
    cases = {
        "has no codes, and the recipe's injector needs them": (folder, recipe(family, registry)),
        "has no codes, and the recipe's prior learns them": (
            folder,
            recipe(family, registry, "injector.type=none", "also_trained=[prior]"),
        ),
        "latents are 3x4x4, the recipe's continuous tokenizer makes 2x4x4": (write("wide", 3), mar),
        "has 8 classes, the recipe 3": (write("many", 2, label=7), mar),
    }
    for message, (where, which) in cases.items():
        with pytest.raises(UserError, match=message):
            open_cache(where, which, registry)


def test_what_cannot_be_cached_is_said_before_anything_is_written(
    made: Path, family: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fresh = "{type: kl, latent_channels: 2, channels: 32, channel_multipliers: [1, 1, 1], encoder_attention: []}"
    cases: dict[str, list[str]] = {
        r"continuous_tokenizer.weights: required, because a cache keeps": [f"continuous_tokenizer={fresh}"],
        "no folder train/": [f"data.path={tmp_path}"],
    }
    for message, overrides in cases.items():
        with pytest.raises(UserError, match=message):
            make_cache(recipe(family, registry, *overrides), out, registry)
        assert not out.exists()
    with pytest.raises(
        UserError, match=r"holds a cache made otherwise: stores was moments, is samples; rows_per_shard was 2"
    ):
        make_cache(recipe(family, registry), made, registry, stores="samples")
    monkeypatch.setattr(cache_writer, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"9 images need 0.0 GB, and 0.0 GB are free"):
        make_cache(recipe(family, registry), out, registry)


def test_a_stream_is_cached_and_not_trained_on(family: Path, registry: Registry, made: Path, tmp_path: Path) -> None:
    overrides = [
        "data.type=datasets",
        "data.path=imagefolder",
        f"data.data_dir={family / 'data'}",
        "data.streaming=true",
    ]
    streamed = recipe(family, registry, *overrides)
    done = make_cache(streamed, tmp_path / "cache", registry, workers=2, **SHARDS)
    assert (done.shards, done.total, done.encoded) == (5, 5, 9)
    found, expected = content(tmp_path / "cache"), content(made)
    assert {name for name in found if found[name] != expected[name]} == {INDEX}  # which names the source
    with pytest.raises(UserError, match="a stream has no random access: run `mixar cache RECIPE --out DIR`"):
        train(streamed, tmp_path / "run", device="cpu", registry=registry)
    overrides.append(f"training.cache={tmp_path / 'cache'}")
    result = train(recipe(family, registry, *overrides), tmp_path / "run", device="cpu", registry=registry)
    assert result.step == 2


def test_the_command(family: Path, tmp_path: Path) -> None:
    tmp_path /= "a folder"  # what is printed can be pasted
    shutil.copytree(family / "data", tmp_path / "data")
    (tmp_path / "data/train/dog/1.png").write_bytes(b"not a picture")
    base = ("cache", family / "recipes/mixar.yaml", "--set", f"data.path={tmp_path / 'data'}", "--device", "cpu")
    assert "dog/1.png" in refused(*base, "--out", tmp_path / "cache", "--max-unreadable", 0)
    output = good(*base, "--out", tmp_path / "cache")
    assert "left out image 4: " in output and "8 images, " in output
    hint = shlex.split(output.splitlines()[-1])
    assert hint == [
        "mixar",
        "train",
        str(family / "recipes/mixar.yaml"),
        "--set",
        f"data.path={tmp_path / 'data'}",
        "--set",
        f"training.cache={tmp_path / 'cache'}",
    ]
    assert "all of it was there already" in good(*base, "--out", tmp_path / "cache")
    good(*hint[1:], "--out", tmp_path / "run", "--device", "cpu")
    assert "1 files are as they were written" in good("cache", "--verify", tmp_path / "cache")
    file = tmp_path / "cache/tokens_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert "is damaged" in refused("cache", "--verify", tmp_path / "cache")
    for arguments, message in (
        (["cache"], "takes RECIPE and --out DIR, or --verify DIR"),
        (["cache", "mar_b"], "takes RECIPE and --out DIR"),
        (["cache", "mar_b", "--verify", tmp_path], "takes neither RECIPE nor --out"),
        (["cache", "mar_b", "--out", tmp_path / "out", "--batch", "0"], "--batch: 0 is too small"),
        (["cache", "--verify", tmp_path / "data"], "is no token cache"),
    ):
        assert message in refused(*arguments)
    assert not (tmp_path / "out").exists()


def test_what_the_data_leave_out_is_told(
    family: Path, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(family / "data", tmp_path / "data")
    (tmp_path / "data/train/dog/notes.txt").write_text("")
    make_cache(recipe(family, registry, f"data.path={tmp_path / 'data'}"), tmp_path / "cache", registry, device="cpu")
    assert "note: " in (said := capsys.readouterr().err) and "left out: 1 .txt (dog/notes.txt)" in said


def test_a_full_disk_is_one_line(family: Path, tmp_path: Path) -> None:
    command = ("cache", family / "recipes/mixar.yaml", "--out", tmp_path / "cache", "--device", "cpu")
    line = refused(*command, largest_file=3000)
    assert "tokens_00000.safetensors cannot be written" in line
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [PROGRESS]
    assert "9 images, " in good(*command)
