"""Asked for findings, a contract goes on past what does not hold and tells what it found, topic by topic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.testing import check_part
from mixar_core.testing.report import Finding, findings
from mixar_core.types import Step, Z
from mixar_plugins.heads.mixture import MixtureHead, MixtureHeadConfig
from mixar_plugins.heads.mse import MseHead, MseHeadConfig

SMALL = MixtureHeadConfig(components=2, depth=1, width=16)


class Rounds(MixtureHead):
    """Draws from torch's own generator, and gives losses in bf16."""

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return super().loss(z, target_BKC, noise=noise).bfloat16()

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        torch.rand(1)
        return super().sample(z, step, noise=noise)


class Fails(MixtureHead):
    """Cannot be called."""

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return z.cond_BKD @ target_BKC


def test_a_part_that_keeps_its_contract_has_no_problem_and_is_measured() -> None:
    found = findings(lambda: check_part(MixtureHead, SMALL))
    assert not any(finding.problems for finding in found)
    topics = [finding.topic for finding in found]
    assert topics[0] == "it is built" and len({*topics}) == len(topics)
    assert {"random numbers", "repeatable", "state dict", "shapes and ranges", "batch independence"} <= {*topics}
    assert {"under bf16 autocast", "on meta, without values", "gradients"} <= {*topics}
    (figure,) = next(finding.remarks for finding in found if finding.topic == "speed and memory")
    assert figure.startswith("all its calls once, with 3 images: ") and figure.endswith(" MB")


def test_everything_that_does_not_hold_is_found_at_once() -> None:
    found = {finding.topic: finding for finding in findings(lambda: check_part(Rounds, SMALL))}
    assert "torch's global generator" in found["random numbers"].problems[0]
    assert "loss is torch.bfloat16, not torch.float32" in found["shapes and ranges"].problems
    assert not found["state dict"].problems and "gradients" in found
    with pytest.raises(AssertionError, match="global generator"):
        check_part(Rounds, SMALL)


def test_each_finding_is_told_as_soon_as_it_stands() -> None:
    told: list[Finding] = []
    begun: list[str] = []

    class Watches(Rounds):
        def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
            begun.append(told[-1].topic if told else "")
            return super().sample(z, step, noise=noise)

    found = findings(lambda: check_part(Watches, SMALL), tell=told.append)
    assert begun[0] == "its submodules" and "gradients" not in begun and len({*begun}) > 4
    told_of: dict[str, tuple[str, ...]] = {}
    for finding in told:  # a topic that is returned to is told again, of what is new there
        told_of[finding.topic] = (*told_of.get(finding.topic, ()), *finding.problems)
    assert {name: {*said} for name, said in told_of.items()} == {each.topic: {*each.problems} for each in found}


def test_an_error_ends_the_contract_and_is_told() -> None:
    *held, last = findings(lambda: check_part(Fails, SMALL))
    assert not any(finding.problems for finding in held)
    assert last.topic == "random numbers" and last.problems[0].startswith("RuntimeError: ")
    assert last.problems[0].endswith("what follows was not checked")
    check_part(MixtureHead, SMALL)  # outside, a contract is as strict as before


def test_what_refuses_to_be_built_is_no_finding() -> None:
    class Refuses(MixtureHead):
        def __init__(self, *_: object, **__: object) -> None:
            raise UserError("head: no")

    with pytest.raises(UserError, match="head: no"):
        findings(lambda: check_part(Refuses, SMALL))
    with pytest.raises(UserError, match="dict derives from no abstract class"):
        check_part(dict, SMALL)
    assert issubclass(Refuses, ContinuousHead)


def test_a_head_that_draws_nothing_says_so() -> None:
    class Mean(MseHead):
        """As if it drew."""

        deterministic = False

    small = MseHeadConfig(depth=1, width=16)
    check_part(MseHead, small)
    with pytest.raises(AssertionError, match="another seed, yet the same sample"):
        check_part(Mean, small)


class Overflows(MixtureHead):
    """Not finite under autocast."""

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        drawn = super().sample(z, step, noise=noise)
        return drawn / 0.0 if torch.is_autocast_enabled("cpu") else drawn


class Stays(MixtureHead):
    """Its losses come out on the CPU wherever it is."""

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        loss_BK = super().loss(z, target_BKC, noise=noise)
        return torch.zeros(loss_BK.shape, device="cpu") if loss_BK.is_meta else loss_BK


@pytest.mark.parametrize(
    ("broken", "topic", "message"),
    [
        (Overflows, "under bf16 autocast", "sample under autocast holds a value that is not finite"),
        (Stays, "on meta, without values", "loss lies on cpu, not on `meta`"),
    ],
)
def test_other_precisions_and_devices_are_tried(broken: type[MixtureHead], topic: str, message: str) -> None:
    failing = [finding for finding in findings(lambda: check_part(broken, SMALL)) if finding.problems]
    assert [finding.topic for finding in failing] == [topic] and message in failing[0].problems
