"""The contracts of what enters the backbone: guidance injectors and conditioners."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixar_core.conditioner import Conditioner
from mixar_core.injector import GuidanceInjector
from mixar_core.testing.common import (
    BATCH,
    check_gradients,
    check_module,
    codes_of,
    expect,
    expect_alone,
    expect_equal,
    expect_tensor,
    labels_of,
    normal,
    topic,
    unchanged,
)
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import NO_CLASS, Condition, DiscreteTokens, Guidance


def check_injector(make: Callable[[], GuidanceInjector], *, tokenizer: DiscreteTokenizer, width: int) -> None:
    """Raise AssertionError where a guidance injector breaks its contract.

    Args:
        make: builds one with this tokenizer and width; one that opens no door must be content without a tokenizer.
        tokenizer: of any layout; codes without a place in the image cannot be injected through the door `fill`.
    """
    layout, truth_BN = tokenizer.layout, codes_of(tokenizer.codebook_size, tokenizer.layout.tokens)
    unsure_BN = -normal(*truth_BN.shape).square()

    def exercise(
        module: GuidanceInjector,
        device: str,
        codes_BN: Tensor = truth_BN,
        confidence_BN: Tensor | None = None,
        known: float = 0.0,
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            vectors_BNE = tokenizer.code_vectors(codes_BN).to(device)
            on_grid_BNE = None if layout.grid is None else tokenizer.vectors_on_grid(codes_BN).to(device)
        tokens = DiscreteTokens(codes_BN.to(device), vectors_BNE, on_grid_BNE, confidence_BN, known)
        with unchanged(codes_BN=tokens.codes_BN, vectors_BNE=vectors_BNE, on_grid_BNE=on_grid_BNE):
            guidance = module(tokens)
        expect(isinstance(guidance, Guidance), f"forward returns a {type(guidance).__name__}, not Guidance")
        return guidance.doors

    placed = layout.grid is not None or "fill" not in make().opens
    expect(placed, f"it opens the door fill, and codes in a {layout} have no place")
    injector, opened = check_module(make, exercise)
    expect(opened.keys() == injector.opens, f"it opens {sorted(opened)} but announces {sorted(injector.opens)}")
    for door, tensor in opened.items():
        length = layout.grid.tokens if door == "fill" and layout.grid is not None else tensor.shape[1]
        expect_tensor(door, tensor, (BATCH, length, width))
    expect(injector.needs_codes or not opened, "it opens a door but says that it needs no codes")
    if injector.needs_codes:
        with torch.no_grad():
            topic("what it depends on")
            other = exercise(injector, "cpu", (truth_BN + 1) % tokenizer.codebook_size)
            expect(any(not torch.equal(opened[d], other[d]) for d in opened), "other codes, yet the same guidance")
            expect_alone(opened, exercise(injector, "cpu", truth_BN[:1]))
            topic("uncertain codes, and the share known")
            certain = exercise(injector, "cpu", confidence_BN=torch.zeros_like(unsure_BN))
            expect_equal("no confidence is not as certain codes", certain, opened)
            for door, tensor in exercise(injector, "cpu", confidence_BN=unsure_BN).items():
                expect_tensor(f"{door} of uncertain codes", tensor, opened[door].shape)
            later = exercise(injector, "cpu", known=0.75)
            looks = any(not torch.equal(opened[d], later[d]) for d in opened)
            expect(looks or not injector.follows, "it follows the sampling (`follows`), yet ignores the share known")
            expect(injector.follows or not looks, "it looks at the share known, yet does not follow it (`follows`)")

    injector.train()
    opened = exercise(injector, "cpu", confidence_BN=unsure_BN, known=0.25)
    if any(parameter.requires_grad for parameter in injector.parameters()):
        total = torch.stack([(normal(*tensor.shape) * tensor).sum() for tensor in opened.values()]).sum()
        check_gradients(injector, total)


def check_conditioner(make: Callable[[], Conditioner], *, num_classes: int) -> None:
    """Raise AssertionError where a conditioner breaks its contract.

    Args:
        make: builds one for labels in [0, num_classes), of which there are at least two.
    """

    asked_B = labels_of(num_classes)

    def exercise(module: Conditioner, device: str, labels_B: Tensor = asked_B) -> dict[str, Tensor]:
        labels_B = labels_B.to(device)
        with unchanged(labels_B=labels_B):
            condition = module(labels_B)
        expect(isinstance(condition, Condition), f"forward returns a {type(condition).__name__}, not a Condition")
        expect(condition.vectors_BTF is not None, "the condition has no vectors; labels alone need no conditioner")
        return {"labels": condition.labels_B, "vectors": condition.vectors_BTF, "mask": condition.counting_BT()}

    conditioner, found = check_module(make, exercise)
    length = found["vectors"].shape[1]
    expect_tensor("labels", found["labels"], (BATCH,), dtype=torch.int64, within=(NO_CLASS, num_classes - 1))
    expect_tensor("vectors", found["vectors"], (BATCH, length, conditioner.width))
    expect_tensor("mask", found["mask"], (BATCH, length), dtype=torch.bool)
    with torch.no_grad():
        topic("what it depends on")
        expect(torch.equal(found["labels"], asked_B), "the labels are not those it was given")
        expect_alone(found, exercise(conditioner, "cpu", asked_B[:1]))
        topic("what it depends on")
        other = exercise(conditioner, "cpu", (asked_B + 1) % num_classes)
        expect(not found["mask"][-1].any(), "a vector counts although there is no class; dropped, none would")
        counting = [(said["vectors"] * said["mask"][..., None])[:-1] for said in (found, other)]
        expect(not torch.equal(*counting), "other labels, yet the same vectors")

    conditioner.train()
    vectors_BTF = exercise(conditioner, "cpu")["vectors"]
    if any(parameter.requires_grad for parameter in conditioner.parameters()):
        check_gradients(conditioner, (normal(*vectors_BTF.shape) * vectors_BTF).sum())
