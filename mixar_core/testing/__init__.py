"""Contracts that any plugin's component must pass: call them from your own tests.

    from mixar_core.testing import check_part

    def test_my_head() -> None:
        check_part(MyHead, MyConfig(depth=1))

`check_part` builds a part amid small stand-ins and runs the contract of its kind, one of the others, which take a
function that builds it for whatever you want it checked beside: it is called more than once, also under
`torch.device("meta")`. Each raises AssertionError with what is wrong.
"""

from __future__ import annotations

from mixar_core.testing.backbones import check_backbone
from mixar_core.testing.data import check_callback, check_dataset, check_extractor
from mixar_core.testing.discriminators import check_discriminator
from mixar_core.testing.heads import check_head
from mixar_core.testing.injectors import check_conditioner, check_injector
from mixar_core.testing.optimizers import check_optimizer
from mixar_core.testing.parts import check_part
from mixar_core.testing.priors import check_prior
from mixar_core.testing.samplers import check_plan, check_sampler
from mixar_core.testing.tokenizers import check_continuous_tokenizer, check_discrete_tokenizer

__all__ = [
    "check_backbone",
    "check_callback",
    "check_conditioner",
    "check_continuous_tokenizer",
    "check_dataset",
    "check_discrete_tokenizer",
    "check_discriminator",
    "check_extractor",
    "check_head",
    "check_injector",
    "check_optimizer",
    "check_part",
    "check_plan",
    "check_prior",
    "check_sampler",
]
