"""Samplers whose steps reuse what earlier ones computed, as their authors schedule it: LazyMAR and ReCAP."""

from __future__ import annotations

import attrs
from attrs import field, frozen
from attrs.validators import and_, ge, gt, le

from mixar_core.errors import UserError
from mixar_core.types import Step
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler

#: LazyMAR's released code: from which step on the decoder goes on with which share of its tokens
SHARES = {0: 1.0, 20: 0.6, 21: 0.5, 25: 0.4, 30: 0.15, 35: 0.12, 40: 0.05}
LONGEST = 64


@frozen
class LazyMARConfig(CosineConfig):
    """LazyMAR's schedule on that of `cosine`.

    Args:
        full, period: so many steps and one more are full at first, then one of every `period`.
    """

    full: int = field(default=5, validator=ge(0))
    period: int = field(default=9, validator=ge(1))


class LazyMARSampler(CosineSampler):
    """LazyMAR (arXiv 2503.12450): most steps compute one half of the guidance, and few of the decoder's tokens."""

    config: LazyMARConfig

    def refined(self, step: Step, index: int, steps: int) -> Step:
        """Full or not, and with which share of tokens.

        Raises:
            UserError: more steps than there are shares for.
        """
        if steps > LONGEST:
            raise UserError(f"sampling.steps: {steps}; the sampler lazymar has a schedule for at most {LONGEST}")
        past = index - self.config.full
        share = next(share for begin, share in reversed(SHARES.items()) if begin <= index)
        return attrs.evolve(step, reuse="lazymar", refresh=past < 0 or past % self.config.period == 0, share=share)


@frozen
class ReCAPConfig(CosineConfig):
    """ReCAP's schedule on that of `cosine`.

    Args:
        begin: share of the steps after which every other one reuses.
        head_steps_share: of the head steps, in those that do.
    """

    begin: float = field(default=0.5, validator=and_(ge(0.0), le(1.0)))
    head_steps_share: float = field(default=0.4, validator=and_(gt(0.0), le(1.0)))


class ReCAPSampler(CosineSampler):
    """ReCAP: every other step computes only what it is to predict, with the keys and values of the step before."""

    config: ReCAPConfig

    def refined(self, step: Step, index: int, steps: int) -> Step:
        """Full or not; of those that are not, the head takes fewer steps.

        Raises:
            UserError: a share of head steps is wanted, and it is not said of how many.
        """
        past = index - int(self.config.begin * steps)
        if past < 0 or past % 2 == 0:
            return attrs.evolve(step, reuse="recap")
        head_steps = step.head_steps
        if self.config.head_steps_share < 1.0:
            if head_steps is None:
                raise UserError("sampler.head_steps_share: it is a share of sampling.head_steps, and there are none")
            head_steps = max(2, int(self.config.head_steps_share * head_steps))
        return attrs.evolve(step, reuse="recap", refresh=False, head_steps=head_steps)
