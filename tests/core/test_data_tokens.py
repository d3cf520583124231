from __future__ import annotations

import weakref

import pytest
import torch

from mixar_core.data import loader
from mixar_core.data.loader import BatchShard, ImageSource, ShuffledOrder
from mixar_core.data.streams import Stream, step_noise
from mixar_core.data.tokens import FrozenTokenizers, TokenSource
from mixar_core.errors import UserError
from tests.core.training_toys import ToyImages
from tests.toys import PoolTokenizer, SignTokenizer

CPU = torch.device("cpu")


def noise(step: int):
    return step_noise(Stream.TOKENS, seed=0, step=step)


def kept_source(frozen: FrozenTokenizers, **settings) -> TokenSource:
    return TokenSource(
        ToyImages(), ShuffledOrder(20, 8, seed=1), BatchShard(0, 8, 8), frozen, seed=1, device=CPU, **settings
    )


def test_kept_tokens_are_those_of_the_images():
    data, order, share = ToyImages(), ShuffledOrder(20, 8, seed=1), BatchShard.of(8, rank=1, world=2)
    continuous = PoolTokenizer()
    continuous.latent_mean_C.fill_(0.25)
    tokenizers = FrozenTokenizers(continuous, SignTokenizer())
    images = ImageSource(data, order, share, seed=1, device=CPU, flip=True)
    kept = TokenSource(data, order, share, tokenizers, seed=1, device=CPU, flip=True, encode_batch=7)
    for step, (batch, cached) in enumerate(zip(images.batches(0, 6), kept.batches(0, 6), strict=True)):
        fresh = tokenizers.draw(tokenizers.encode(batch), noise=noise(step))
        again = tokenizers.draw(cached, noise=noise(step))
        torch.testing.assert_close(fresh.latents_BChw, again.latents_BChw)
        assert torch.equal(fresh.codes_BN, again.codes_BN)
        assert torch.equal(fresh.labels_B, again.labels_B)


def test_either_tokenizer_may_be_missing():
    (images,) = ImageSource(ToyImages(4), ShuffledOrder(4, 4, seed=0), BatchShard(0, 4, 4), seed=0, device=CPU).batches(
        0, 1
    )
    codes_only = FrozenTokenizers(None, SignTokenizer())
    batch = codes_only.draw(codes_only.encode(images), noise=noise(0))
    assert batch.latents_BChw.shape == (4, 0, 4, 4) and batch.codes_BN.shape == (4, 16)
    latents_only = FrozenTokenizers(PoolTokenizer(), None)
    batch = latents_only.draw(latents_only.encode(images), noise=noise(0))
    assert batch.latents_BChw.shape == (4, 3, 4, 4) and batch.codes_BN is None
    with pytest.raises(ValueError):
        FrozenTokenizers(None, None)


def test_a_split_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(loader.os, "sysconf", lambda name: 10)
    with pytest.raises(UserError, match="cache"):
        kept_source(FrozenTokenizers(PoolTokenizer(), None))


def test_encoded_batches_are_not_kept_beside_the_whole(monkeypatch):
    encode, batches = FrozenTokenizers.encode, []

    def watched(frozen, images):
        assert sum(batch() is not None for batch in batches) <= 1  # the last one
        found = encode(frozen, images)
        batches.append(weakref.ref(found))
        return found

    monkeypatch.setattr(FrozenTokenizers, "encode", watched)
    kept = kept_source(FrozenTokenizers(PoolTokenizer(), SignTokenizer()), flip=True, encode_batch=3).kept
    assert len(batches) == 14 and len(kept) == 40
    assert kept.labels_B.tolist() == 2 * ToyImages().labels() and kept.codes_BN.dtype == torch.int64


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    frozen = FrozenTokenizers(PoolTokenizer(), SignTokenizer())
    need = sum(tensor.nbytes for tensor in kept_source(frozen).kept.tensors())
    monkeypatch.setattr(loader.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * need}[name])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    kept_source(frozen)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="for 20 encoded images in each of 3 processes, and cpu has"):
        kept_source(frozen)
