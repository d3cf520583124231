"""Token caches that would be wrong without a word."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixar_core.data.cache import TokenCache
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.errors import UserError
from mixar_core.storage import FolderLock
from mixar_core.types import Posterior
from tests.core.cache_toys import WideTokenizer, begun, plan, write
from tests.toys import SignTokenizer


class Loud(WideTokenizer):
    """Latents of bright images are beyond what float16 holds."""

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        found = super().posterior(images_B3HW)
        return Posterior(found.mean_BChw * 1e7, found.logvar_BChw)


class Lost(WideTokenizer):
    """Of the fourth image of a batch it does not know how wide its posterior is."""

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        found = super().posterior(images_B3HW)
        return Posterior(found.mean_BChw, found.logvar_BChw.index_fill(0, torch.tensor([3]), torch.nan))


@pytest.mark.parametrize(("tokenizer", "dtype", "image"), [(Loud(), "float16", 0), (Lost(), "float32", 3)])
def test_latents_that_are_not_finite_are_refused_before_they_are_written(tmp_path: Path, tokenizer, dtype, image):
    with pytest.raises(UserError, match=rf"^image {image}: its latents are not finite as {dtype}"):
        write(tmp_path / "cache", frozen=FrozenTokenizers(tokenizer, SignTokenizer()), dtype=dtype)
    assert not [*(tmp_path / "cache").glob("*.safetensors")]


def test_a_posterior_of_no_width_may_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    narrow = WideTokenizer()
    posterior = narrow.posterior
    none = torch.tensor(-torch.inf)
    monkeypatch.setattr(narrow, "posterior", lambda x: Posterior((m := posterior(x).mean_BChw), none.expand_as(m)))
    cache = write(tmp_path / "cache", frozen=FrozenTokenizers(narrow, SignTokenizer()))
    assert cache.index is not None and cache.index.statistics is not None
    assert all(map(math.isfinite, cache.index.statistics.std))


def test_a_call_that_waited_for_another_takes_what_that_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both saw an empty folder; the other had the lock first."""
    taken = FolderLock.take

    def late(lock: FolderLock, *changes: object) -> None:
        monkeypatch.setattr(FolderLock, "take", taken)
        write(tmp_path / "cache", seed=1)
        taken(lock)

    for seed in (1, 2):
        monkeypatch.setattr(FolderLock, "take", late)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        if seed == 1:
            assert begun(tmp_path / "cache", plan(seed=seed)) == TokenCache.open(tmp_path / "cache").index
        else:
            with pytest.raises(UserError, match="seed was 1, is 2"):
                begun(tmp_path / "cache", plan(seed=seed))


LABELS = torch.tensor([0, 3, -1])


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"latents": torch.zeros(3, 2, 5, 5), "labels": LABELS}, "they must agree"),
        ({"latents": torch.zeros(3, 2, 4, 4), "latents_flip": torch.zeros(3, 2, 4, 4), "labels": LABELS}, "must agree"),
        ({"latents": torch.zeros(2, 2, 4, 4), "labels": LABELS}, "labels of 3, latents of 2"),
        ({"latents": torch.zeros(0, 2, 4, 4), "labels": LABELS[:0]}, "each image, of one or more, has one of each"),
        ({"latents": torch.zeros(3, 2, 4, 4), "labels": LABELS - 1}, "whole numbers"),
        ({"latents": torch.zeros(3, 2, 4, 4), "labels": LABELS.float()}, "whole numbers"),
    ],
)
def test_published_latents_that_do_not_fit_each_other_are_refused(tmp_path: Path, second: dict[str, Tensor], reason):
    save_file({"latents": torch.zeros(3, 2, 4, 4), "labels": LABELS}, tmp_path / "a.safetensors")
    assert TokenCache.open(tmp_path).num_classes == 4
    save_file(second, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=rf"b\.safetensors.*{reason}"):
        TokenCache.open(tmp_path)
