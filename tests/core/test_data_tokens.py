from __future__ import annotations

import os
import weakref

import pytest
import torch

from mixar_core.data.loader import BatchShard, ShuffledOrder, each_once, load_readable
from mixar_core.data.source import Read, Source, read_images, tokens_in_memory
from mixar_core.data.streams import Stream, step_noise
from mixar_core.data.tokens import CachedTokens, FrozenTokenizers
from mixar_core.errors import UserError
from tests.core.training_toys import ToyImages
from tests.toys import PoolTokenizer, SignTokenizer

CPU = torch.device("cpu")


def noise(step: int):
    return step_noise(Stream.TOKENS, seed=0, step=step)


def kept(frozen: FrozenTokenizers, *, flip: bool = False, encode_batch: int = 64) -> Read:
    images = each_once(ToyImages(), torch.arange(20), batch_size=encode_batch)
    return tokens_in_memory(images, 20, frozen, device=CPU, flip=flip)


def every(read: Read, *, flip: bool = False) -> CachedTokens:
    (tokens,) = read([(torch.arange(20), torch.full((20,), flip))])
    return tokens


def test_kept_tokens_are_those_of_the_images():
    data, order, share = ToyImages(), ShuffledOrder(20, 8, seed=1), BatchShard.of(8, rank=1, world=2)
    continuous = PoolTokenizer()
    continuous.latent_mean_C.fill_(0.25)
    tokenizers = FrozenTokenizers(continuous, SignTokenizer())
    images = Source(read_images(data), order, share, device=CPU, flip=True)
    tokens = Source(kept(tokenizers, flip=True, encode_batch=7), order, share, device=CPU, flip=True)
    for step, (batch, cached) in enumerate(zip(images.batches(0, 6), tokens.batches(0, 6), strict=True)):
        fresh = tokenizers.draw(tokenizers.encode(batch), noise=noise(step))
        again = tokenizers.draw(cached, noise=noise(step))
        torch.testing.assert_close(fresh.latents_BChw, again.latents_BChw)
        assert torch.equal(fresh.codes_BN, again.codes_BN)
        assert torch.equal(fresh.labels_B, again.labels_B)


def test_either_tokenizer_may_be_missing():
    images = load_readable(ToyImages(4), list(range(4))).to(CPU)
    codes_only = FrozenTokenizers(None, SignTokenizer())
    batch = codes_only.draw(codes_only.encode(images), noise=noise(0))
    assert batch.latents_BChw.shape == (4, 0, 4, 4) and batch.codes_BN.shape == (4, 16)
    latents_only = FrozenTokenizers(PoolTokenizer(), None)
    batch = latents_only.draw(latents_only.encode(images), noise=noise(0))
    assert batch.latents_BChw.shape == (4, 3, 4, 4) and batch.codes_BN is None
    with pytest.raises(ValueError):
        FrozenTokenizers(None, None)


def test_a_split_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(UserError, match="cache"):
        kept(FrozenTokenizers(PoolTokenizer(), None))


def test_encoded_batches_are_not_kept_beside_the_whole(monkeypatch):
    encode, batches = FrozenTokenizers.encode, []

    def watched(frozen, images):
        assert sum(batch() is not None for batch in batches) <= 1  # the last one
        found = encode(frozen, images)
        batches.append(weakref.ref(found))
        return found

    monkeypatch.setattr(FrozenTokenizers, "encode", watched)
    read = kept(FrozenTokenizers(PoolTokenizer(), SignTokenizer()), flip=True, encode_batch=3)
    assert len(batches) == 14
    for view in (every(read), every(read, flip=True)):
        assert view.labels_B.tolist() == ToyImages().labels() and view.codes_BN.dtype == torch.int64


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    frozen = FrozenTokenizers(PoolTokenizer(), SignTokenizer())
    need = sum(tensor.nbytes for tensor in every(kept(frozen)).tensors())
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * need}[name])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    kept(frozen)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="for 20 encoded images in each of 3 processes, and cpu has"):
        kept(frozen)
