from __future__ import annotations

import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixar_core.data import cache as cache_module
from mixar_core.data.cache import INDEX, TokenCache, read_index
from mixar_core.data.cache_pieces import dataset_pieces
from mixar_core.data.cache_writer import finish, is_finished, noted_shards, write_shards
from mixar_core.data.loader import BatchShard, ShuffledOrder
from mixar_core.data.source import Source, read_cache, read_images
from mixar_core.data.streams import Stream, step_noise
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.training.sources import make_source, preview_images
from tests.core.cache_toys import (
    COUNT,
    CPU,
    ROWS,
    Torn,
    WideTokenizer,
    begun,
    content,
    encoded,
    plan,
    tokenizers,
    write,
)
from tests.core.training_toys import ToyImages, ToyObjective, toy_config
from tests.toys import SignTokenizer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    return write(tmp_path_factory.mktemp("cache") / "moments")


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(st.integers(0, COUNT - 1), st.booleans()), min_size=1, max_size=30))
def test_rows_are_those_of_the_images_in_any_order(written: TokenCache, rows):
    indices = torch.tensor([index for index, _ in rows], dtype=torch.int64)
    flip = torch.tensor([flipped for _, flipped in rows], dtype=torch.bool)
    found, fresh = written.rows(indices, flip), encoded(indices, flip)
    assert torch.equal(found.posterior.mean_BChw, fresh.posterior.mean_BChw)
    assert torch.equal(found.posterior.logvar_BChw, fresh.posterior.logvar_BChw)
    assert torch.equal(found.codes_BN, fresh.codes_BN) and found.codes_BN.dtype == torch.int64
    assert torch.equal(found.labels_B, fresh.labels_B)


def test_what_a_cache_says_of_itself(written: TokenCache):
    assert len(written) == COUNT and written.num_classes == 5 and written.class_names == tuple("abcde")
    assert written.has_codes and written.flip and written.stores == "moments" and written.latent_shape == (3, 4, 4)
    assert written.labels().tolist() == ToyImages(COUNT).labels()
    index = written.index
    assert index is not None and [shard.rows for shard in index.shards] == [6, 6, 6, 2]
    assert sum(shard.bytes for shard in index.shards) == pytest.approx(COUNT * index.settings.row_bytes, abs=4 * 1000)
    assert {path.name for path in written.folder.iterdir()} == {INDEX, *(shard.file for shard in index.shards)}
    written.verify()
    with pytest.raises(IndexError):
        written.rows(torch.tensor([COUNT]), torch.tensor([False]))


def test_statistics_are_those_of_all_samples(written: TokenCache, tmp_path: Path):
    whole, every = [], torch.arange(COUNT)
    for flip in (False, True):
        posterior = written.rows(every, torch.full((COUNT,), flip)).posterior
        draws = [
            WideTokenizer.sample_posterior(posterior, step_noise(Stream.TOKENS, seed=0, step=s)) for s in range(200)
        ]
        whole += draws
    values = torch.stack(whole).transpose(0, 2).flatten(1)
    assert values.mean(1).tolist() == pytest.approx(written.index.statistics.mean, abs=0.01)
    assert values.std(1).tolist() == pytest.approx(written.index.statistics.std, abs=0.01)
    samples = write(tmp_path / "samples", stores="samples")
    stored = torch.cat([samples.rows(every, torch.full((COUNT,), flip)).posterior.mean_BChw for flip in (False, True)])
    stored = stored.transpose(0, 1).flatten(1).double()
    assert stored.mean(1).tolist() == pytest.approx(samples.index.statistics.mean)
    assert stored.std(1, correction=0).tolist() == pytest.approx(samples.index.statistics.std)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_same_from_the_cache_as_from_images(written: TokenCache, workers):
    frozen, share = tokenizers(), BatchShard.of(8, rank=1, world=2)
    images = Source(read_images(ToyImages(COUNT)), ShuffledOrder(COUNT, 8, seed=1), share, device=CPU, flip=True)
    order = ShuffledOrder(len(written), 8, seed=1)
    cached = Source(read_cache(written, workers=workers), order, share, device=CPU, flip=True)
    steps = zip(images.batches(2, 9), cached.batches(2, 9), strict=True)
    for step, (batch, tokens) in enumerate(steps, start=2):
        noise = [step_noise(Stream.TOKENS, seed=1, step=step, first=4, total=8) for _ in range(2)]
        fresh, again = frozen.draw(frozen.encode(batch), noise=noise[0]), frozen.draw(tokens, noise=noise[1])
        assert torch.equal(fresh.latents_BChw, again.latents_BChw)
        assert torch.equal(fresh.codes_BN, again.codes_BN) and torch.equal(fresh.labels_B, again.labels_B)
    assert cached.unreadable == {}


class Noting(dict):
    """A shard's tensors that note who is asked for."""

    asked: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.asked.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize(
    ("continuous", "discrete", "expected"),
    [
        (True, True, {"latents", "latents_flip", "codes", "codes_flip", "labels"}),
        (True, False, {"latents", "latents_flip", "labels"}),
        (False, True, {"codes", "codes_flip", "labels"}),
    ],
)
def test_only_what_an_objective_takes_is_read(written: TokenCache, monkeypatch, continuous, discrete, expected):
    objective, mapped = ToyObjective(), cache_module._mapped
    objective.tokenizers = FrozenTokenizers(
        WideTokenizer() if continuous else None, SignTokenizer() if discrete else None
    )
    monkeypatch.setattr(cache_module, "_mapped", lambda path: Noting(mapped(path)))
    monkeypatch.setattr(Noting, "asked", set())
    cache, config, alone = TokenCache.open(written.folder), toy_config(flip=True), Processes(0, 1, CPU)
    source = make_source(objective, cache, config, alone)
    whole = Source(read_cache(written), source.order, source.share, device=CPU, flip=True)
    for tokens, every in zip(source.batches(0, 5), whole.batches(0, 5), strict=True):
        assert (tokens.posterior is not None) == continuous and (tokens.codes_BN is not None) == discrete
        drawn, again = (objective.tokenizers.draw(each, noise=Noise.seeded(0)) for each in (tokens, every))
        assert torch.equal(drawn.latents_BChw, again.latents_BChw) and torch.equal(drawn.labels_B, again.labels_B)
        assert not discrete or torch.equal(drawn.codes_BN, again.codes_BN)
    assert Noting.asked == expected
    Noting.asked.clear()
    preview_images(objective, cache, config, CPU)
    assert Noting.asked == {key for key in expected if "flip" not in key}
    (tokens, *_) = make_source(objective, cache, toy_config(workers=1), alone).batches(0, 2)
    assert (tokens.posterior is not None) == continuous and (tokens.codes_BN is not None) == discrete


def test_drawing_from_samples_gives_them_and_takes_as_many_numbers(tmp_path: Path):
    frozen, cache = tokenizers(), write(tmp_path / "samples", stores="samples")
    tokens = cache.rows(torch.arange(8), torch.zeros(8, dtype=torch.bool))
    noise, other = (step_noise(Stream.TOKENS, seed=1, step=0) for _ in range(2))
    batch = frozen.draw(tokens, noise=noise)
    stored = load_file(cache.folder / "tokens_00000.safetensors")["latents"]
    assert torch.equal(frozen.continuous.normalise(stored), batch.latents_BChw[:ROWS])
    other.normal((8, 3, 4, 4), CPU)
    assert torch.equal(noise.normal((3,), CPU), other.normal((3,), CPU))
    assert not torch.equal(stored, written_mean(stored.shape[0]))


def written_mean(rows: int) -> Tensor:
    return encoded(torch.arange(rows), torch.zeros(rows, dtype=torch.bool)).posterior.mean_BChw


def test_a_source_can_be_left_in_the_middle(written: TokenCache):
    source = Source(read_cache(written), ShuffledOrder(COUNT, 8, seed=1), BatchShard(0, 8, 8), device=CPU)
    before = threading.active_count()
    batches = source.batches(0, 10_000)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_a_cache_travels_to_other_processes_and_threads(written: TokenCache):
    written.labels()
    assert len(pickle.dumps(written)) < 5000
    copy = pickle.loads(pickle.dumps(written))
    assert torch.equal(copy.labels(), written.labels())
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(copy.labels())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, written.labels()) for each in found) and len(found) == 4


@pytest.mark.parametrize("stores", ["moments", "samples"])
def test_files_do_not_depend_on_who_writes_them(tmp_path: Path, stores):
    write(tmp_path / "one", stores=stores)
    write(tmp_path / "three", stores=stores, world=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    write(tmp_path / "seeded", stores=stores, seed=1)
    one, seeded = (load_file(tmp_path / name / "tokens_00001.safetensors") for name in ("one", "seeded"))
    assert torch.equal(one["latents"], seeded["latents"]) == (stores == "moments")


def test_what_is_finished_is_kept_and_what_is_not_is_made_anew(tmp_path: Path):
    whole = write(tmp_path / "whole")
    folder, about, data = tmp_path / "cut", plan(), ToyImages(COUNT)
    begun(folder, about)
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen > 5  # in the third shard of four

    pieces = dataset_pieces(data, about, range(4), workers=0)
    assert not write_shards(folder, about, tokenizers(), pieces, device=CPU, stop=stop)[0]
    assert noted_shards(folder) == [0, 1]
    with pytest.raises(UserError, match="not finished"):
        TokenCache.open(folder)
    with pytest.raises(UserError, match=r"holds a cache made otherwise: flip was True, is False; give the same"):
        begun(folder, plan(flip=False))
    damaged = folder / "tokens_00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (folder / ".tokens_00002.safetensors.1.unfinished").write_bytes(b"half")
    begun(folder, about)
    assert [number for number in range(4) if is_finished(folder, number)] == [0]
    first = (folder / "tokens_00000.safetensors").stat().st_mtime_ns
    assert write_shards(folder, about, tokenizers(), dataset_pieces(data, about, [1, 2, 3], workers=0), device=CPU) == (
        True,
        14,
    )
    finish(folder, about, 4)
    assert content(folder) == content(whole.folder)
    assert (folder / "tokens_00000.safetensors").stat().st_mtime_ns == first
    assert begun(folder, about) == whole.index
    with pytest.raises(UserError, match="seed was 0, is 1"):
        begun(folder, plan(seed=1))


def test_settings_may_change_while_nothing_is_finished(tmp_path: Path):
    begun(tmp_path / "new", plan(batch=64))
    assert begun(tmp_path / "new", plan(batch=2)) is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("home", "file"):
        with pytest.raises(UserError, match="is not an empty folder, and no token cache"):
            begun(tmp_path / name, plan())
    with pytest.raises(UserError, match=r"missing or damaged; remove .*progress and begin anew"):
        finish(tmp_path / "new", plan(), 1)


def test_unreadable_images_are_left_out_and_named(tmp_path: Path):
    cache = write(tmp_path / "torn", data=Torn(COUNT), limit=3, world=2)
    assert [(each.index, each.reason) for each in cache.index.skipped] == [
        *((0, "image 0 is torn"), (7, "image 7 is torn"), (8, "image 8 is torn")),
    ]
    left = [index for index in range(COUNT) if index not in (0, 7, 8)]
    assert cache.labels().tolist() == [index % 5 for index in left] and len(cache) == 17
    found, fresh = (
        cache.rows(torch.arange(17), torch.ones(17, dtype=torch.bool)),
        encoded(torch.tensor(left), torch.ones(17, dtype=torch.bool)),
    )
    assert torch.equal(found.posterior.mean_BChw, fresh.posterior.mean_BChw)
    with pytest.raises(UserError, match="image 8 is torn; 3 images cannot be read, 2 may be"):
        write(tmp_path / "few", data=Torn(COUNT), limit=2)
    with pytest.raises(UserError, match=r"image 0 is torn$"):
        write(tmp_path / "none", data=Torn(COUNT))
    with pytest.raises(UserError, match="3 images cannot be read, 2 may be"):  # each process alone found fewer
        write(tmp_path / "two", data=Torn(COUNT), limit=2, world=2)


def test_samples_belong_to_images_and_not_to_rows(tmp_path: Path):
    whole, torn = (
        write(tmp_path / "whole", stores="samples"),
        write(tmp_path / "torn", data=Torn(COUNT), limit=3, stores="samples"),
    )
    for flip in (False, True):
        one = whole.rows(torch.tensor([1, 9, 19]), torch.full((3,), flip)).posterior.mean_BChw
        other = torn.rows(torch.tensor([0, 6, 16]), torch.full((3,), flip)).posterior.mean_BChw
        assert torch.equal(one, other)


@pytest.mark.parametrize(("continuous", "discrete"), [(True, False), (False, True)])
def test_either_tokenizer_may_be_missing(tmp_path: Path, continuous, discrete):
    frozen = FrozenTokenizers(WideTokenizer() if continuous else None, SignTokenizer() if discrete else None)
    changes = {} if continuous else {"stores": None, "latent_shape": None}
    changes |= {} if discrete else {"tokens": None, "code_dtype": None}
    cache = write(tmp_path / "half", frozen=frozen, **changes)
    tokens = cache.rows(torch.tensor([3, 19]), torch.tensor([True, False]))
    assert (tokens.posterior is not None) == continuous and (tokens.codes_BN is not None) == discrete
    assert cache.has_codes == discrete and cache.flip and (cache.latent_shape is None) == discrete
    assert (cache.index.statistics is None) == discrete
    assert cache.index.settings.row_bytes == (768 + 8 if continuous else 64 + 8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_half_the_place(tmp_path: Path, dtype):
    cache = write(tmp_path / "half", dtype=dtype, flip=False)
    exact = encoded(torch.arange(COUNT), torch.zeros(COUNT, dtype=torch.bool)).posterior
    found = cache.rows(torch.arange(COUNT), torch.zeros(COUNT, dtype=torch.bool)).posterior
    assert found.mean_BChw.dtype == torch.float32
    torch.testing.assert_close(found.mean_BChw, exact.mean_BChw, rtol=1e-2, atol=1e-3)
    assert torch.equal(found.mean_BChw, exact.mean_BChw.to(getattr(torch, dtype)).float())
    assert cache.index.settings.row_bytes == 3 * 16 * 2 * 2 + 16 * 2 + 8
    with pytest.raises(UserError, match="no mirrored images"):
        cache.rows(torch.tensor([0]), torch.tensor([True]))


def test_a_damaged_cache_is_refused_in_one_line(written: TokenCache, tmp_path: Path):
    def broken(name: str) -> Path:
        return Path(shutil.copytree(written.folder, tmp_path / name))

    short, gone, changed, torn, future, extra = (broken(name) for name in "abcdef")
    path = short / "tokens_00002.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    (gone / "tokens_00001.safetensors").unlink()
    path = changed / "tokens_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (torn / INDEX).write_text((torn / INDEX).read_text()[:500])
    plain = json.loads((future / INDEX).read_text())
    (future / INDEX).write_text(json.dumps({**plain, "version": 2}))
    (extra / INDEX).write_text(json.dumps({**plain, "settings": {}}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    save_file({"weight": torch.ones(1)}, tmp_path / "other/weights.safetensors")
    cases = {
        r"tokens_00002.safetensors has \d+ bytes, not \d+: it is truncated": lambda: TokenCache.open(short),
        r"tokens_00001.safetensors: No such file": lambda: TokenCache.open(gone),
        r"tokens_00000.safetensors is damaged: its sha256": lambda: TokenCache.open(changed).verify(),
        r"is not the index of a token cache": lambda: TokenCache.open(torn),
        r"of version 2, read here": lambda: TokenCache.open(future),
        r"is not the index of a token cache: required field missing": lambda: TokenCache.open(extra),
        r"no token cache: there is no index.json and no": lambda: TokenCache.open(tmp_path / "empty"),
        r"nowhere is no token cache": lambda: TokenCache.open(tmp_path / "nowhere"),
        r"weights.safetensors holds no latents and labels": lambda: TokenCache.open(tmp_path / "other"),
    }
    for message, action in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)
    TokenCache.open(changed)  # checksums are read when asked for


def test_a_cache_of_before_a_setting_is_the_same_while_that_is_off(tmp_path: Path):
    def source(**config: object) -> dict[str, object]:
        return {"type": "toys", "config": config}

    write(tmp_path / "old", source=source(path="a"))
    assert begun(tmp_path / "old", plan(source=source(path="a", orient=False))) is not None
    for changed in (source(path="a", orient=True), source(path="b", orient=False), source(orient=False)):
        with pytest.raises(UserError, match="source was"):
            begun(tmp_path / "old", plan(source=changed))


def test_an_index_is_read_strictly(written: TokenCache, tmp_path: Path):
    whole = json.loads((written.folder / INDEX).read_text())
    changes = {
        r"'20' at count is not int": {"count": "20"},
        r"True at count is not int": {"count": True},
        r"'float8' at settings.dtype is not": {"settings": {**whole["settings"], "dtype": "float8"}},
        r"\[3, 4\] at settings.latent_shape is not": {"settings": {**whole["settings"], "latent_shape": [3, 4]}},
        r"'abcde' at settings.class_names is not": {"settings": {**whole["settings"], "class_names": "abcde"}},
        r"unknown field: rowz shards\[0\]": {"shards": [{**whole["shards"][0], "rowz": 1}]},
        r"required field missing: count$": {"count": None},
    }
    for message, change in changes.items():
        plain = {key: value for key, value in {**whole, **change}.items() if key != "count" or value is not None}
        (tmp_path / INDEX).write_text(json.dumps(plain))
        with pytest.raises(UserError, match=f"is not the index of a token cache: {message}"):
            read_index(tmp_path / INDEX)
    (tmp_path / INDEX).write_text(written.index.to_json())
    assert read_index(tmp_path / INDEX) == written.index
