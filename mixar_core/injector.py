"""Guidance injectors: how discrete tokens enter the backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import nn

from mixar_core.errors import UserError
from mixar_core.types import DiscreteTokens, Guidance

Door = Literal["fill", "prefix", "memory"]


class GuidanceInjector(nn.Module, ABC):
    """Turns discrete tokens into `Guidance`.

    Registered as a Part, an injector is built as `Class(config, tokenizer=<DiscreteTokenizer or None>, width=D)`; the
    tokenizer is there to be asked (layout, codebook_size, code_width) and must not become a submodule.
    """

    meta_safe: ClassVar[bool] = True
    """Whether it runs on torch's `meta` device, where recipes are checked without values; False: it is not tried."""
    opens: ClassVar[frozenset[Door]]
    """The doors this injector opens. The backbone makes cross-attention blocks only where "memory" is among them."""
    follows: ClassVar[bool] = False
    """Whether it is asked again before every step of sampling, because it looks at the share of tokens known."""

    @property
    def needs_codes(self) -> bool:
        """Whether there is anything to inject: False only for plain MAR."""
        return bool(self.opens)

    @abstractmethod
    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """Guidance with exactly the doors of `opens`: fill (B, N, D), prefix (B, P, D), memory (B, M, D)."""


def check_guidance(
    guidance: Guidance, injector: GuidanceInjector, *, images: int, tokens: int, fill_width: int, width: int
) -> None:
    """See that an injector opens the doors it announced, each in its shape; looks at no value.

    Args:
        images, tokens: B and N.
        fill_width, width: D of the decoder, in which a fill stands, and of the encoder, which a prefix and a memory
            meet.

    Raises:
        UserError: it does not; names its class.
    """
    name, doors = type(injector).__name__, guidance.doors
    if doors.keys() != injector.opens:
        listed = [", ".join(sorted(names)) or "none" for names in (doors, injector.opens)]
        raise UserError(f"injector {name} opens the doors {listed[0]}; its class announces (`opens`): {listed[1]}")
    for door, tensor in doors.items():
        length, size = (tokens, fill_width) if door == "fill" else ("any length", width)
        shape = tuple(tensor.shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (images, size) or length not in ("any length", shape[1]):
            wanted = f"({images}, {length}, {size})"
            raise UserError(f"injector {name}: its {door} has the shape {shape}; needed: {wanted}")
