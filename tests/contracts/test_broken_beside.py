"""The contract of continuous tokenizers that need codes: a good one passes, in each bad one a fault is named."""

from __future__ import annotations

from copy import copy

import pytest
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.testing import check_continuous_tokenizer, check_part
from mixar_core.testing.parts import StandInTokenizer
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Posterior
from tests.toys import PoolTokenizer


class Leftover(PoolTokenizer):
    """What the codes' first three numbers leave over of the pooled pixels."""

    needs_codes = True
    codes_BN: Tensor | None = None

    def __init__(self, config: None = None, *, image_size: int = 16, tokenizer: DiscreteTokenizer) -> None:
        super().__init__(image_size)
        self.discrete = (tokenizer,)

    def beside(self, codes_BN: Tensor | None) -> Leftover:
        one = copy(self)
        one.codes_BN = codes_BN
        return one

    def of_codes(self, codes_BN: Tensor) -> Tensor:
        return self.discrete[0].vectors_on_grid(codes_BN)[..., :3].transpose(1, 2).unflatten(2, (4, 4))

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        found = super().posterior(images_B3HW)
        codes_BN = self.discrete[0].encode(images_B3HW) if self.codes_BN is None else self.codes_BN
        return Posterior(found.mean_BChw - self.of_codes(codes_BN), found.logvar_BChw)

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        if self.codes_BN is None:
            raise UserError("needs codes")
        return super().decode_raw(latents_BChw + self.of_codes(self.codes_BN))


class Silent(Leftover):
    needs_codes = False


class Guessing(Leftover):
    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        return (
            PoolTokenizer.decode_raw(self, latents_BChw) if self.codes_BN is None else super().decode_raw(latents_BChw)
        )


class Deaf(Leftover):
    def of_codes(self, codes_BN: Tensor) -> Tensor:
        return super().of_codes(codes_BN * 0)


class Foreign(Leftover):
    """Without codes it takes others than the image's own."""

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        if self.codes_BN is not None:
            return super().posterior(images_B3HW)
        return self.beside(self.discrete[0].encode(-images_B3HW)).posterior(images_B3HW)


def check(broken: type[Leftover]) -> None:
    discrete = StandInTokenizer().eval()
    check_continuous_tokenizer(lambda: broken(tokenizer=discrete), tokenizer=discrete)


def test_it_is_checked_as_a_part_is() -> None:
    check_part(Leftover, None)
    plain: ContinuousTokenizer = PoolTokenizer()
    assert not plain.needs_codes and plain.beside(None) is plain


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Silent, "does not say `needs_codes`"),
        (Guessing, "decoding without codes raises no UserError"),
        (Deaf, "decodes to the same image beside other codes"),
        (Foreign, "without codes it is not what it is beside the images' own"),
    ],
)
def test_what_is_broken_is_named(broken: type[Leftover], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(broken)
